"""The variants of the Pyramidion benchmark as pieces of work, their FLOPs, and the check that they compute the same."""

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModelBase
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

import deep_pyramidion  # noqa: F401  (registers)
from deep_pyramidion.config import PyramidionConfig
from deep_pyramidion.model import PyramidionModel
from fairseq_efficient.bench import flops
from fairseq_efficient.bench.parity import Check, difference, relative
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.timing import Stopwatch
from fairseq_efficient.bench.work import dictionary, for_generation, generation_batch, token_loss, training_step
from fairseq_efficient.ops.topk_halving import topk_halving
from fairseq_efficient.ops.topk_halving.naive import topk_halving as naive_topk_halving
from fairseq_efficient.plugin.flat_config import nested_transformer_config

STOCK, BLOCKWISE, PYRAMIDION = "stock", "blockwise", "pyramidion"
PYRAMIDION_BF16 = "pyramidion-bf16"  # on the CPU: --cpu-bf16
STOCK_DECODER = "blockwise-stock-decoder"  # our blockwise encoder, no pooling, fairseq's decoder


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of model and work, and where it runs."""

    dim: int = 512
    ffn: int = 2048
    heads: int = 8
    layers: int = 6  # of encoder and of decoder
    chunk: int = 512
    kept: int = 512  # halving stops here
    vocab: int = 8000
    target: int = 128  # tokens of the target in a training step
    batch: int = 1
    beam: int = 16
    tokens: int = 128  # generated


def widths(kind: str, n: int, setup: Setup) -> list[int]:
    """Tokens that enter each encoder layer, and tokens that leave the last."""
    found = [n]
    for _ in range(setup.layers):
        halves = kind.startswith(PYRAMIDION) and found[-1] > setup.kept
        found.append(max(found[-1] // 2, setup.kept) if halves else found[-1])
    return found


def config(kind: str, n: int, setup: Setup) -> PyramidionConfig:
    cfg = PyramidionConfig(
        max_source_positions=n, dropout=0.1, attention_dropout=0.0, share_all_embeddings=True, chunk_size=setup.chunk
    )
    for side in ("encoder", "decoder"):
        sizes = {"layers": setup.layers, "embed_dim": setup.dim, "ffn_embed_dim": setup.ffn}
        sizes["attention_heads"] = setup.heads
        for name, value in sizes.items():
            setattr(cfg, f"{side}_{name}", value)
    if kind in (BLOCKWISE, STOCK_DECODER):
        cfg.use_sparse_attn = "only_blockwise"
    elif kind.startswith(PYRAMIDION):
        pyramid = widths(kind, n, setup)
        cfg.encoder_pooling, cfg.sort_back, cfg.cpu_bf16 = "topk", 1, kind == PYRAMIDION_BF16
        cfg.enc_layers_and_token_width = ",".join(
            f"{layer}:{after}" for layer, (before, after) in enumerate(pairwise(pyramid)) if after < before
        )
    return cfg


def build(kind: str, n: int, setup: Setup) -> Any:
    """A model of ``kind`` for sources of ``n`` tokens."""
    torch.manual_seed(1)
    words, cfg = dictionary(setup.vocab), config(kind, n, setup)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    if kind == STOCK:
        model = TransformerModelBase.build_model(nested_transformer_config(cfg), task)
    else:
        model = PyramidionModel.build_model(cfg, task)
    if kind == STOCK_DECODER:
        nested = nested_transformer_config(cfg)
        nested.share_decoder_input_output_embed = True
        model.decoder = TransformerDecoderBase(nested, words, model.decoder.embed_tokens)
        model.decoder.need_attn = False
        # that decoder wants a copy of the encoder's states for each hypothesis
        model.encoder.reorder_encoder_out = types.MethodType(TransformerEncoderBase.reorder_encoder_out, model.encoder)
    return setup.placed(model)


def documents(n: int, setup: Setup, seed: int = 2) -> Tensor:
    """(batch, n) random ids, EOS at the end."""
    torch.manual_seed(seed)
    tokens = torch.randint(4, setup.vocab, (setup.batch, n))
    tokens[:, -1] = 2
    return tokens.to(setup.place)


# --- work: each function prepares, and returns what is to be measured ------------------------------------------------


def encoder_forward(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Inference forward of the encoder; reports the part ``pooling``."""
    model, source = build(kind, n, setup).eval(), documents(n, setup)
    watch = Stopwatch(setup.place)
    pooler = getattr(model.encoder, "pooler", None)
    if pooler is not None:
        pooler.forward = watch.wrap(pooler.forward)

    @torch.no_grad()
    def run() -> dict[str, float]:
        model.encoder(source)
        return {} if pooler is None else {"pooling": watch.take()}

    return run


def train_step(kind: str, n: int, setup: Setup) -> Callable[[], None]:
    """Forward and backward of encoder and decoder, dropout on, no optimizer."""
    model, source = build(kind, n, setup).train(), documents(n, setup)
    target = documents(setup.target, setup, seed=3)
    return training_step(model, lambda: token_loss(model(source, None, target)[0], target))


def generate(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Beam search of ``setup.tokens`` tokens as fairseq-generate does it; reports ``encoder`` and ``decode``."""
    generator, sample = searcher(build(kind, n, setup), n, setup)
    watch = Stopwatch(setup.place)
    total = Stopwatch(setup.place)
    generator.model.forward_encoder = watch.wrap(generator.model.forward_encoder)
    search = total.wrap(generator.generate)

    @torch.no_grad()
    def run() -> dict[str, float]:
        search([], sample)
        encoder = watch.take()
        return {"encoder": encoder, "decode": total.take() - encoder}

    return run


def searcher(model: Any, n: int, setup: Setup) -> tuple[SequenceGenerator, dict[str, Any]]:
    """A beam search over ``model`` (made ready as fairseq-generate makes it), and a batch for it."""
    model, words = for_generation(model, setup.beam), dictionary(setup.vocab)
    generator = SequenceGenerator(
        [model], words, beam_size=setup.beam, min_len=setup.tokens, max_len_a=0, max_len_b=setup.tokens
    )
    return generator, generation_batch(documents(n, setup))


def pool_once(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """One pool of n tokens to half, or (``kind`` embedding_bag) the bare weighted sum of as many fixed pairs."""
    torch.manual_seed(1)
    values = torch.randn(setup.batch, n, setup.dim, device=setup.place, dtype=setup.number)
    scores = torch.rand(setup.batch, n, device=setup.place)
    if kind == PYRAMIDION:
        return torch.no_grad()(lambda: topk_halving(values, scores, n // 2, sort_back=True))
    pairs = torch.randperm(setup.batch * n, device=setup.place).view(-1, 2)
    weights = torch.rand(pairs.shape, device=setup.place, dtype=values.dtype)
    flat = values.view(-1, setup.dim)
    bag = nn.functional.embedding_bag
    return torch.no_grad()(lambda: bag(pairs, flat, mode="sum", per_sample_weights=weights))


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def gflop(what: str, kind: str, n: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of one call of the work ``what`` (``decode``: generation without the encoder)."""
    sizes = (setup.layers, setup.dim, setup.ffn, setup.vocab)
    pyramid = widths(kind, n, setup)
    encoder = flops.encoder(pyramid, setup.dim, setup.ffn, None if kind == STOCK else setup.chunk)
    copies = setup.beam if kind in (STOCK, STOCK_DECODER) else 1
    steps = setup.tokens + 1  # the last one only ends the hypotheses
    decode = flops.generation(steps, pyramid[-1], *sizes, beam=setup.beam, key_copies=copies)
    count = {
        "encoder_forward": encoder,
        "train_step": flops.TRAINING * (encoder + flops.decoder(setup.target, pyramid[-1], *sizes)),
        "generate": encoder + decode,
        "decode": decode,
    }[what]
    return setup.batch * count / 1e9


# --- parity ----------------------------------------------------------------------------------------------------------


def parity(setup: Setup) -> Iterator[Check]:
    """Do variants agree where they must (fp32, nothing pooled, one chunk)? Two layers, same weights, a short source."""
    setup = replace(setup, dtype="fp32", batch=1, layers=2, vocab=1000, beam=min(setup.beam, 4), tokens=12)
    n = min(setup.chunk, setup.kept) * 5 // 8
    source, target = documents(n, setup), documents(min(16, setup.target), setup, seed=3)
    stock = build(STOCK, 4 * n, setup).eval()
    others = {kind: _with_weights(build(kind, 4 * n, setup), stock) for kind in (BLOCKWISE, PYRAMIDION, STOCK_DECODER)}
    expected, gradient = _logits_and_gradient(stock, source, target)
    for kind, model in others.items():
        logits, grad = _logits_and_gradient(model, source, target)
        yield Check(f"{kind}: logits equal stock", difference(logits, expected), 1e-4)
        yield Check(f"{kind}: gradient equals stock", relative(grad, gradient), 1e-4)
    if setup.place.type == "cpu":
        bf16 = _with_weights(build(PYRAMIDION_BF16, 4 * n, setup), stock)
        error = (_logits_and_gradient(bf16, source, target)[0] - expected).norm() / expected.norm()
        yield Check("pyramidion --cpu-bf16: logits near stock, relative", error.item(), 0.05)
    yield from _same_hypotheses(stock, others, n, setup)
    yield _operator_check(setup)


def _with_weights(model: Any, stock: Any) -> Any:
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    wrong = [name for name in missing if ".scorer." not in name] + list(unexpected)
    if wrong:
        raise RuntimeError(f"weights that the variants do not share: {wrong[:3]}")
    getattr(model, "untrained_scorers", set()).clear()  # random ones compute the same work
    return model.eval()


def _logits_and_gradient(model: Any, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the embedding and the encoder's first layer, which all else flows into."""
    model.zero_grad()
    logits = model(source, None, target)[0].float()
    token_loss(logits, target).backward()
    weights = (model.encoder.embed_tokens.weight, model.encoder.layers[0].fc1.weight)
    return logits.detach(), torch.cat([w.grad.float().flatten() for w in weights])


def _same_hypotheses(stock: Any, others: dict[str, Any], n: int, setup: Setup) -> Iterator[Check]:
    """Scores of the best hypotheses agree, and (a difference of 1 per token that is not the same) their tokens."""

    def best(model: Any) -> tuple[Tensor, Tensor]:
        generator, sample = searcher(model, n, setup)
        with torch.no_grad():
            found = generator.generate([], sample)[0][0]
        return found["tokens"], found["positional_scores"]

    tokens, scores = best(stock)
    for kind, model in others.items():
        own_tokens, own_scores = best(model)
        wrong = float((own_tokens != tokens).sum())
        yield Check(f"{kind}: beam search equals stock", wrong + difference(own_scores, scores), 1e-3)


def _operator_check(setup: Setup) -> Check:
    """The pooling operator against its reference, on an uneven length."""
    torch.manual_seed(4)
    values, scores = torch.randn(2, 3 * setup.kept + 1, 16), torch.rand(2, 3 * setup.kept + 1)
    fast = topk_halving(values.to(setup.place), scores.to(setup.place), setup.kept, sort_back=True)
    naive = naive_topk_halving(values.double(), scores.double(), setup.kept, sort_back=True)
    return Check("pooling equals its reference", difference(fast.values.cpu().double(), naive.values), 1e-4)
