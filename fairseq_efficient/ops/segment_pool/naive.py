"""Segment pooling, segment by segment (reference; Nawrot et al. 2023, section 2, and the authors' released estimator).
Written for reading, in the precision of its inputs.

The straight-through gradient is what autograd makes of soft memberships: token t weighs ``1 + G(t) - stop(G(t))`` in
its segment, G(t) being the number of boundaries before t. Their values are 1; their gradients say what the mean would
become if the tokens after t counted more than those up to t.
"""

import torch
from torch import Tensor

from fairseq_efficient.ops.segment_pool.common import (
    SegmentLayout,
    SegmentPooled,
    check_pool_arguments,
    check_upsample_arguments,
    hard_boundaries,
)


def segment_layout(boundaries: Tensor, padding_mask: Tensor | None = None, groups: int | None = None) -> SegmentLayout:
    """Same contract as :func:`fairseq_efficient.ops.segment_pool.fast.segment_layout`."""
    batch, length = boundaries.shape
    hard = hard_boundaries(boundaries, padding_mask)
    ids, place = (torch.zeros(batch, length, dtype=torch.int64) for _ in range(2))
    tokens, bounds = [], []
    for r in range(batch):
        pads = [t for t in range(length) if padding_mask is not None and padding_mask[r, t]]
        real = [t for t in range(length) if t not in pads]
        for t in range(length):
            ids[r, t] = hard[r, : t + 1].sum()
        for position, t in enumerate([*real, *pads]):
            place[r, t] = position
            tokens.append(r * length + t)
        bounds.append([position + 1 for position, t in enumerate(real) if hard[r, t]])
    columns = 1 + (max(map(len, bounds), default=0) if groups is None else groups)
    ends = torch.tensor([[0, *row, *[[0, *row][-1]] * (columns - 1 - len(row))] for row in bounds])
    counts = ends.diff(dim=1, prepend=torch.zeros(batch, 1, dtype=torch.int64))
    bags = [0, *(r * length + int(end) for r in range(batch) for end in ends[r])]
    return SegmentLayout(
        ids, hard, place, ends, counts, 1 + hard.sum(1), torch.tensor(tokens), torch.tensor(bags), padding_mask
    )


def segment_pool(
    hidden: Tensor,
    boundaries: Tensor,
    padding_mask: Tensor | None = None,
    *,
    kind: str = "mean",
    estimator: str = "interior",
    groups: int | None = None,
    null: Tensor | None = None,
    layout: SegmentLayout | None = None,
) -> SegmentPooled:
    """Same contract as :func:`fairseq_efficient.ops.segment_pool.fast.segment_pool`; ``layout`` is not used."""
    check_pool_arguments(hidden, boundaries, padding_mask, kind, estimator, groups, null)
    batch, length, channels = hidden.shape
    hard = hard_boundaries(boundaries, padding_mask)
    if padding_mask is not None:
        boundaries = boundaries.masked_fill(padding_mask, 0)
    rows = []
    for r in range(batch):
        real = [t for t in range(length) if padding_mask is None or not padding_mask[r, t]]
        rows.append(_closed_segments(real, hard[r]))
    columns = 1 + (max(map(len, rows), default=0) if groups is None else groups)
    counts = torch.zeros(batch, columns, dtype=torch.int64)
    table = []
    for r, segments in enumerate(rows):
        for j, members in enumerate(segments):
            counts[r, j + 1] = len(members)
        first = hidden.new_zeros(channels) if null is None else null.to(hidden.dtype)
        pooled = [hidden[r, m[-1]] for m in segments] if kind == "last" else _means(hidden[r], boundaries[r], segments)
        if estimator == "both" and boundaries.requires_grad:
            pooled = _with_merging(pooled, boundaries[r], segments)
        table.append([first, *pooled, *[hidden.new_zeros(channels)] * (columns - 1 - len(segments))])
    values = torch.stack([torch.stack(row) for row in table])
    return SegmentPooled(values, counts, 1 + hard.sum(1))


def _closed_segments(real: list[int], hard: Tensor) -> list[list[int]]:
    """Members of each closed segment, in order; tokens after the last boundary are in none."""
    segments: list[list[int]] = []
    members: list[int] = []
    for t in real:
        members.append(t)
        if hard[t]:
            segments.append(members)
            members = []
    return segments


def _means(hidden: Tensor, boundaries: Tensor, segments: list[list[int]]) -> list[Tensor]:
    weight = torch.ones(len(hidden), dtype=hidden.dtype)
    if boundaries.requires_grad:
        before = boundaries.cumsum(0) - boundaries
        weight = weight + (before - before.detach()).to(hidden.dtype)
    return [
        torch.stack([weight[t] * hidden[t] for t in members]).sum(0) / weight[members].sum() for members in segments
    ]


def _with_merging(means: list[Tensor], boundaries: Tensor, segments: list[list[int]]) -> list[Tensor]:
    """The boundary between two closed segments also learns what both would become if it were not there: one mean."""
    out = list(means)
    for j in range(len(segments) - 1):
        (one, n), (two, m) = ((means[i].detach(), len(segments[i])) for i in (j, j + 1))
        merged = (n * one + m * two) / (n + m)
        boundary = boundaries[segments[j][-1]]
        change = (boundary - boundary.detach()).to(one.dtype)
        out[j] = out[j] + change * (one - merged)
        out[j + 1] = out[j + 1] + change * (two - merged)
    return out


def upsample(values: Tensor, ids: Tensor) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.segment_pool.fast.upsample`."""
    check_upsample_arguments(values, ids)
    return torch.stack([torch.stack([values[r, int(column)] for column in row]) for r, row in enumerate(ids)])
