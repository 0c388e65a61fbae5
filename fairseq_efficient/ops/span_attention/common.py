"""The soft mask, how many distances it leaves, which heads are computed together, and argument checks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_efficient.ops.common import check_dropout, shapes
from fairseq_efficient.precision import wide

_GROUP = 48  # a group of heads of its own costs about as much as so many more distances of one head


def soft_mask(spans: Tensor, ramp: int, distances: int) -> Tensor:
    """``m(x) = clamp((ramp + span - x) / ramp, 0, 1)`` for x = distance - 1 (equation 3), in fp32 or better.

    Args:
        spans: (...), in tokens. ramp: R, in tokens.

    Returns:
        (..., distances), by ascending distance from 1.
    """
    spans = wide(spans)
    x = torch.arange(distances, dtype=spans.dtype, device=spans.device)
    return ((ramp + spans.unsqueeze(-1) - x) / ramp).clamp(0, 1)


def span_width(span: float, ramp: int, most: int) -> int:
    """How many distances a head with this span sees: those whose mask is not 0, at most ``most``.

    A span that is not a number sees all, so that it reaches the loss and stops a training there.
    """
    if math.isnan(span):
        return most
    return max(0, min(most, math.ceil(span) + ramp))


def head_groups(widths: Sequence[int], rows: int = 1) -> list[tuple[list[int], int]]:
    """Heads that are computed together, with the width of the widest: (heads in ascending order, width).

    One call per width would be most calls and least work, one call for all the other way round: this is the cheapest
    cut of the heads in order of width, narrow heads first.

    Args:
        widths: (H,) distances that each head needs. rows: how many rows share a call.
    """
    order = sorted(range(len(widths)), key=lambda head: widths[head])
    price = _GROUP / max(1, rows)
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first heads, and where their last group begins
    for end in range(1, len(order) + 1):
        width = widths[order[end - 1]]
        best.append(min((best[start][0] + price + (end - start) * width, start) for start in range(end)))
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append((sorted(order[start:end]), widths[order[end - 1]]))
        end = start
    return groups[::-1]


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor | None,
    ramp: int,
    constant: tuple[Tensor, Tensor] | None,
    dropout_p: float,
) -> None:
    """Raises ValueError for shapes or values that :func:`fast.span_attention` does not take."""
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape or k.shape[:2] != q.shape[:2] or k.size(3) != q.size(3):
        raise ValueError(f"q (B, H, M, d), k and v (B, H, K, d) expected, got {shapes(q, k, v)}")
    batch, heads, queries, dim = q.shape
    if positions.dim() != 2 or positions.size(0) < 1 or positions.size(1) != dim:
        raise ValueError(f"positions (S, {dim}), S >= 1, expected, got {shapes(positions)}")
    if spans is not None and spans.shape not in ((heads,), (1,), (batch, heads, queries)):
        raise ValueError(f"spans ({heads},), (1,) or ({batch}, {heads}, {queries}) expected, got {shapes(spans)}")
    if ramp < 1:
        raise ValueError(f"ramp must be at least 1, got {ramp}")
    if constant is not None:
        keys, values = constant
        if keys.dim() != 3 or keys.size(0) != heads or keys.size(2) != dim or values.shape != keys.shape:
            raise ValueError(f"constant keys and values ({heads}, N, {dim}) expected, got {shapes(keys, values)}")
    check_dropout(dropout_p)
