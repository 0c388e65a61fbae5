"""The dynamic pooling benchmark's checks: variants that must compute the same do, in a small model on few tokens."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bench_parts.dynamic_pooling.generation import ready, searcher
from bench_parts.dynamic_pooling.models import TRANSFORMER_LM, Setup, build, text
from bench_parts.dynamic_pooling.ops import EINSUM, RELATIVE, attend, attention_inputs, pooling_pieces
from fairseq_efficient.bench.decoding import token_by_token
from fairseq_efficient.bench.parity import Check, difference, relative
from fairseq_efficient.bench.work import token_loss

TOLERANCE = 1e-4  # of logits and relative to the largest gradient, in fp32


def parity(setup: Setup) -> Iterator[Check]:
    setup = replace(setup, dtype="fp32", batch=3, dropout=0.0)
    yield from _attention(setup)
    yield from _pooling(setup)
    setup = replace(setup, dim=min(setup.dim, 128), ffn=min(setup.ffn, 256), layers=4, outer=1)
    for encoding in ("relative", "rotary"):
        yield from _packed(encoding, setup)
    for kind in ("vanilla-relative", "sf4-rotary", "padded-relative", "padded-rotary"):
        yield _cached(kind, setup)
    for kind in ("vanilla-rotary", "sf4-relative"):
        yield _generated(kind, setup)
    yield _same_size(setup)


def _attention(setup: Setup) -> Iterator[Check]:
    inputs, grad = attention_inputs(150, setup)  # more than a tile of queries
    names = ("output", "gradient of q, k, v", "gradient of r", "gradient of u", "gradient of v")
    for name, one, other in zip(names, attend(RELATIVE, inputs, grad), attend(EINSUM, inputs, grad), strict=True):
        yield Check(f"relative attention: {name} equals einsum", relative(one, other), TOLERANCE)


def _pooling(setup: Setup) -> Iterator[Check]:
    for ours, bare, first in (("pool", "embedding_bag", 1), ("upsample", "index_select", 0)):
        function, values = pooling_pieces(ours, 40, setup)
        expected = pooling_pieces(bare, 40, setup)[0](values)
        found = function(values)[:, first:].reshape(expected.shape)
        yield Check(f"{ours} equals {bare}", difference(found, expected), 1e-5)


def _packed(encoding: str, setup: Setup) -> Iterator[Check]:
    tokens = text(70, setup)
    logits, gradients = zip(
        *(_trained(f"{what}-{encoding}", tokens, setup) for what in ("padded", "packed")), strict=True
    )
    yield Check(f"packed-{encoding}: logits equal padded", difference(*logits), TOLERANCE)
    yield Check(f"packed-{encoding}: gradient equals padded", relative(gradients[1], gradients[0]), TOLERANCE)


def _trained(kind: str, tokens: Tensor, setup: Setup) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the embedding and of a shortened layer."""
    model = build(kind, tokens.size(1), setup).train()
    logits = model(tokens)[0]
    token_loss(logits, tokens.roll(-1, 1)).backward()
    weights = (model.decoder.embed_tokens.weight, model.decoder.short.layers[0].fc1.weight)
    return logits.detach(), torch.cat([weight.grad.flatten() for weight in weights])


@torch.no_grad()
def _cached(kind: str, setup: Setup) -> Check:
    decoder, tokens = ready(kind, 70, setup).decoder, text(70, setup)
    found = torch.cat([*token_by_token(decoder, tokens)], 1)
    return Check(f"{kind}: with caches equals without", difference(found, decoder(tokens)[0]), TOLERANCE)


@torch.no_grad()
def _generated(kind: str, setup: Setup) -> Check:
    """Scores that the generator gives its tokens, against a full forward over them; its tokens, against the best."""
    model = ready(kind, 48, setup)
    generator, sample, prompt = searcher(model, 48, setup)
    hypotheses = [found[0] for found in generator.generate([], sample, prefix_tokens=prompt, bos_token=generator.eos)]
    tokens = torch.stack([one["tokens"] for one in hypotheses])[:, :-1]  # without the EOS that ends every hypothesis
    before = torch.cat([tokens.new_full((len(tokens), 1), generator.eos), tokens[:, :-1]], 1)
    logits = model.decoder(before)[0]
    logits[:, :, [generator.eos, generator.pad]] = -torch.inf  # not allowed before the end
    new = slice(prompt.size(1), None)
    chosen = logits.gather(2, tokens.unsqueeze(2)).squeeze(2)
    wrong = difference(chosen[:, new], logits.amax(2)[:, new])
    return Check(f"{kind}: the generator chooses the best token of a full forward", wrong, TOLERANCE)


def _same_size(setup: Setup) -> Check:
    ours, theirs = (
        sum(weight.numel() for weight in build(kind, 8, setup).parameters())
        for kind in ("vanilla-rotary", TRANSFORMER_LM)
    )
    return Check("vanilla-rotary has as many weights as transformer_lm, relative", abs(ours - theirs) / theirs, 0.01)
