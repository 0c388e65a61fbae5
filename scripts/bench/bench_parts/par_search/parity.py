"""The PAR benchmark's checks: variants that must compute the same do, in small models on few tokens."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from bench_parts.par_search.models import KEYS, Setup, build, build_supernet, layout_of, text
from bench_parts.par_search.ops import (
    ADDITIVE,
    EINSUM,
    OPTIMAL,
    RELATIVE,
    RULE,
    attention_forward,
    attention_training,
    block,
    cutoffs,
)
from fairseq_efficient.bench.decoding import block_by_block, token_by_token
from fairseq_efficient.bench.parity import Check, difference, relative
from fairseq_efficient.modules.adaptive_softmax import ExactAdaptiveSoftmax
from par_search.supernet import inherited

TOLERANCE = 1e-4  # of outputs, and relative to the largest gradient, in fp32


def parity(setup: Setup) -> Iterator[Check]:
    setup = replace(setup, dtype="fp32", batch=3, dim=min(setup.dim, 128), ffn=min(setup.ffn, 256), memory=50, blocks=5,
                    types=300, init_std=0.2, cutoffs="60,150" if setup.cutoffs else "")  # fmt: skip
    yield from _attention(setup)
    with torch.no_grad():
        yield from _memory(setup)
        yield from _supernet(setup)
        yield from _decoding(setup)
        yield from _softmax(setup)


def _attention(setup: Setup) -> Iterator[Check]:
    n = 150  # more than a tile of queries
    found = difference(attention_forward(RELATIVE, n, setup)(), attention_forward(EINSUM, n, setup)())
    yield Check("attention block: output equals einsums", found, TOLERANCE)
    names = ("x", *(name for name, _ in block(RELATIVE, n, setup)[0].named_parameters()))
    grads = zip(names, *(attention_training(kind, n, setup)() for kind in (RELATIVE, EINSUM)), strict=True)
    worst = max(relative(one, other, least=1e-3) for _, one, other in grads)
    yield Check("attention block: gradients equal those of einsums", worst, TOLERANCE)
    outputs = []
    for kind in (RELATIVE, ADDITIVE):
        one, (x, memory), reach = block(kind, n, setup)
        with torch.no_grad():
            for name, weight in one.named_parameters():
                if name.endswith("_bias") or "r_proj" in name:
                    weight.zero_()
            outputs.append(one(x, memory, reach)[0])
    yield Check("attention block: without positions it is SDPA under the mask", difference(*outputs), TOLERANCE)


def _memory(setup: Setup) -> Iterator[Check]:
    stream = text(60, setup)
    blockwise = lambda net: torch.cat([out for out, _ in block_by_block(net, stream, 20)], 1)  # noqa: E731
    for kind in ("interleaved", "par"):
        nets = [build(kind + cache, 20, setup).eval() for cache in ("", KEYS)]
        nets[1].load_state_dict(nets[0].state_dict())
        outputs = [blockwise(net) for net in nets]
        yield Check(f"{kind}: cached keys equal hidden states projected anew", difference(*outputs), TOLERANCE)
        nets[0].prepare_positions(70)
        found = difference(blockwise(nets[0]), outputs[0])
        yield Check(f"{kind}: prepared positions equal those projected anew", found, TOLERANCE)


def _supernet(setup: Setup) -> Iterator[Check]:
    model = build_supernet(20, setup).eval()
    layout = layout_of("interleaved", setup.blocks)
    net = build(layout, 20, setup).eval()
    ours = {name.removeprefix("decoder."): one for name, one in inherited(model.state_dict(), layout).items()}
    net.load_state_dict(ours)
    stream = text(20, setup)
    found = difference(model.decoder(stream, layout=layout)[0], net(stream)[0])
    yield Check("supernet: a layout forced upon it equals the derived net", found, TOLERANCE)


def _decoding(setup: Setup) -> Iterator[Check]:
    setup = replace(setup, memory=80)
    stream = text(70, setup)
    for kind in ("interleaved", "par"):
        net = build(kind, 20, setup).eval()
        found = torch.cat([*token_by_token(net, stream)], 1)
        yield Check(f"{kind}: with caches equals without", difference(found, net(stream)[0]), TOLERANCE)


def _softmax(setup: Setup) -> Iterator[Check]:
    for kind in (OPTIMAL, RULE):
        torch.manual_seed(1)
        layer = ExactAdaptiveSoftmax(300, setup.dim, cutoffs(kind, 300, setup), 0.0, 1, factor=4.0)
        states, target = torch.randn(1, 40, setup.dim), torch.arange(2, 42).unsqueeze(0) * 7
        logs = layer.get_log_prob(states)
        sums = difference(logs.exp().sum(-1), torch.ones(1, 40))
        yield Check(f"adaptive softmax, {kind} cutoffs: rows sum to 1", sums, 1e-5)
        nll = -logs.gather(2, target.unsqueeze(2)).sum()
        found = difference(layer.loss(states, target), nll) / nll.item()
        yield Check(f"adaptive softmax, {kind} cutoffs: the loss is that of the rows", found, 1e-5)
