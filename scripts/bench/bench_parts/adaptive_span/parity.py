"""The adaptive span benchmark's checks: variants that must compute the same do, in a small model."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bench_parts.adaptive_span.models import LONGEST, SDPA, Setup, attend, attention_inputs, build, remembered, text
from fairseq_efficient.bench.decoding import block_by_block, token_by_token
from fairseq_efficient.bench.parity import Check, difference, relative

TOLERANCE = 2e-4  # of outputs and relative to the largest gradient, in fp32
NAMES = ("output", "gradient of q", "gradient of k", "gradient of v", "gradient of positions", "gradient of spans")


def parity(setup: Setup) -> Iterator[Check]:
    setup = replace(setup, dtype="fp32", batch=2, block=min(setup.block, 150))  # more than a tile of queries
    for kind in ("full", "span10pct", "mixed"):
        yield from _attention(kind, setup)
    setup = replace(setup, dim=min(setup.dim, 128), ffn=min(setup.ffn, 256), layers=2, types=64)
    for kind in ("full", "mixed"):
        yield _cached(kind, setup)
        yield _blocks(kind, setup)


def _attention(kind: str, setup: Setup) -> Iterator[Check]:
    """Ours against torch's fused attention over all keys; heads together against in groups."""
    size = 300
    inputs, grad = attention_inputs(f"{SDPA}{kind}", size, setup)
    ours = attend(kind, inputs, grad, setup)
    for against in (f"{SDPA}{kind}", *([LONGEST] if kind == "mixed" else [])):
        theirs = attend(against, inputs, grad, setup)
        for name, one, other in zip(NAMES, ours, theirs, strict=False):
            yield Check(f"{kind}: {name} equals {against.rstrip('_')}", relative(one, other, least=1.0), TOLERANCE)


@torch.no_grad()
def _cached(kind: str, setup: Setup) -> Check:
    decoder, tokens = build(kind, 60, setup).eval().decoder, text(150, setup)
    wrong = difference(torch.cat([*token_by_token(decoder, tokens)], 1), decoder(tokens)[0])
    return Check(f"{kind}: token by token equals a whole forward", wrong, TOLERANCE)


@torch.no_grad()
def _blocks(kind: str, setup: Setup) -> Check:
    model, tokens = build(kind, 60, setup).eval(), text(150, setup)
    memory: list[Tensor] = remembered(model, 60, setup)
    whole = model.decoder(tokens, memory=memory)[0]
    parts = [out for out, _ in block_by_block(model.decoder, tokens, 37, memory)]
    return Check(f"{kind}: blocks with caches equal one block", difference(torch.cat(parts, 1), whole), TOLERANCE)
