"""Segment pooling for whole batches: no loop, no one-hot matrix, exact under padding anywhere.

Segments are runs of consecutive tokens, so the padded (B, S, D) result is one ``embedding_bag`` over the flattened
tokens: bags in the order (row, column), each described by where it ends. Tokens after the last boundary of a row, and
its pads, fall into the bag of the next row's null group, which is overwritten afterwards. The backward is a gather:
every token has at most one column. The way back up is the same pair with the roles exchanged.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

from fairseq_efficient.ops.common import flat_rows, take_rows
from fairseq_efficient.ops.segment_pool.common import (
    SegmentLayout,
    SegmentPooled,
    check_pool_arguments,
    check_upsample_arguments,
    hard_boundaries,
)
from fairseq_efficient.precision import wide, wide_dtype


def segment_layout(boundaries: Tensor, padding_mask: Tensor | None = None, groups: int | None = None) -> SegmentLayout:
    """Where segments lie: what :func:`segment_pool` and :func:`upsample` need to know of boundaries.

    Args and errors as for :func:`segment_pool`. Without ``groups`` the host waits for the largest number of boundaries.
    """
    hard = hard_boundaries(boundaries, padding_mask)
    ids = hard.cumsum(1)
    lengths = ids[:, -1] + 1
    if groups is None:
        groups = int(lengths.max()) - 1
    else:
        torch._assert_async((lengths <= groups + 1).all(), f"a row has more than {groups} closed segments")
    place, order = _places(hard, padding_mask)
    ends = _ends(hard, ids, place, lengths, groups + 1)
    length = hard.size(1)
    every = torch.arange(hard.numel(), device=hard.device)
    return SegmentLayout(
        ids=ids,
        hard=hard,
        place=place,
        ends=ends,
        counts=pad(ends.diff(dim=1), (1, 0)),
        lengths=lengths,
        tokens=every if order is None else flat_rows(order, length).flatten(),
        bags=pad(flat_rows(ends, length).flatten(), (1, 0)),
        padding_mask=padding_mask,
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
    """Pool each closed segment of each row to one vector (Nawrot et al. 2023, section 2).

    Args:
        hidden: (B, T, D), any float dtype; sums run in fp32 or better.
        boundaries: (B, T) bool, True = the token is the last of its segment; or float with the values 0 and 1, which
            receives a straight-through gradient if it requires one.
        padding_mask: (B, T) bool, True = pad, anywhere in the row; pads close nothing and belong to nothing.
        kind: ``mean`` of the segment, or its ``last`` token (no straight-through gradient).
        estimator: with s_j, g_j the mean of segment j and the gradient that arrives there, ``interior`` gives a token
            inside a closed segment, at place i of n, ``sum_{q > i} <g_j, h_q - s_j> / n``, and zero to boundaries and
            unclosed tokens; ``both`` also gives a boundary between two closed segments what the two lose by merging:
            ``<g_j, s_j - m> + <g_{j+1}, s_{j+1} - m>``, m the mean of both.
        groups: columns to make room for besides the null group, at least the largest number of boundaries in a row;
            without it the host waits for that number.
        null: (D,), written into column 0 of every row; zeros if not given.
        layout: :func:`segment_layout` of the same boundaries and mask, if it is known already.

    Returns:
        :class:`SegmentPooled`. What follows the last boundary of a row is dropped.

    Raises:
        ValueError: wrong shapes, names or a gradient that is not defined. RuntimeError: more segments than ``groups``.
    """
    check_pool_arguments(hidden, boundaries, padding_mask, kind, estimator, groups, null)
    if layout is None:
        layout = segment_layout(boundaries, padding_mask, groups)
    elif layout.ids.shape != boundaries.shape:
        raise ValueError(f"layout is of boundaries {tuple(layout.ids.shape)}, not {tuple(boundaries.shape)}")
    values = _Pool.apply(hidden, boundaries, null, layout, kind, estimator == "both")
    return SegmentPooled(values, layout.counts, layout.lengths)


def upsample(values: Tensor, ids: Tensor) -> Tensor:
    """Give every token a column of its row: ``out[b, t] = values[b, ids[b, t]]``.

    Args:
        values: (B, S, D).
        ids: (B, T) int64 in [0, S), never decreasing along a row: the inclusive ids of :func:`segment_ids`.

    Returns:
        (B, T, D).

    Raises:
        ValueError: wrong shapes. RuntimeError: ids out of range; in the backward, ids that decrease.
    """
    check_upsample_arguments(values, ids)
    if values.size(0) > 1:  # with one row index_select looks itself; with more a wrong id may be one of the next row
        within = (ids >= 0) & (ids < values.size(1))
        torch._assert_async(within.all(), f"upsample: ids must lie in [0, {values.size(1)})")
    return _Upsample.apply(values, ids)


def _places(hard: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Where each token stands once the pads of its row have moved behind it.

    Returns:
        place (B, T) or (1, T) int64; order (B, T) int64, its inverse, or None if nothing moves.
    """
    tokens = torch.arange(hard.size(1), device=hard.device).unsqueeze(0)
    if padding_mask is None:
        return tokens, None
    real = ~padding_mask
    before = real.cumsum(1)
    place = torch.where(real, before - 1, tokens - before + before[:, -1:])
    return place, torch.empty_like(place).scatter_(1, place, tokens.expand_as(place))


def _columns(layout: SegmentLayout, kind: str) -> Tensor:
    """(B, T) int64: the column that each token counts for, 0 for none."""
    column = layout.ids - layout.hard.long() + 1
    column = column.masked_fill(column >= layout.lengths.unsqueeze(1), 0)
    if layout.padding_mask is not None:
        column = column.masked_fill(layout.padding_mask, 0)
    return column.masked_fill(~layout.hard, 0) if kind == "last" else column


def _ends(hard: Tensor, inclusive: Tensor, place: Tensor, lengths: Tensor, columns: int) -> Tensor:
    """(B, S) int64: the place behind the last token of each column; columns not in use end where the last one does."""
    after = (place + 1).expand_as(inclusive)
    ends = after.new_zeros(hard.size(0), columns + 1)  # the column more takes what closes nothing
    ends.scatter_(1, inclusive.masked_fill(~hard, columns), after)
    last = after.masked_fill(~hard, 0).amax(1, keepdim=True)
    unused = torch.arange(columns, device=hard.device) >= lengths.unsqueeze(1)
    return torch.where(unused, last, ends[:, :columns])


def _runs(x: Tensor, tokens: Tensor, bags: Tensor, counts: Tensor | None = None) -> Tensor:
    """x (B, T, D) -> (B, S, D): sum (mean, with ``counts`` (B, S)) of what lies between the ends of two columns.

    tokens (B * T,): rows of the flattened x in the order of their bags; bags (B * S + 1,): where each begins, and the
    end of the last. The bag of column 0 holds what the row before left over, the one behind the last row what that one
    did. Both kernels sum in fp32 or better. CUDA's divides too; the CPU's is slower at that than a division afterwards,
    for which sums of float16 must not overflow.
    """
    batch, length, channels = x.shape
    flat = x.detach().reshape(batch * length, channels)
    if x.dtype == torch.float16 and not x.is_cuda:
        flat = wide(flat)
    mode = "mean" if x.is_cuda and counts is not None else "sum"
    out = embedding_bag(tokens, flat, bags, mode=mode)[:-1].view(batch, -1, channels)
    if counts is not None and mode == "sum":
        out = wide(out).div_(counts.clamp(min=1).to(wide_dtype(x.dtype)).unsqueeze(-1))
    return out.to(x.dtype)


def _by_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function`` of tensors (n, D) or (n, 1); on a CPU a few rows at a time: what it makes stays in the cache."""
    count, channels = tensors[0].shape
    rows = max(1, count if tensors[0].is_cuda else (1 << 18) // max(1, channels))
    return torch.cat([function(*parts) for parts in zip(*(one.split(rows) for one in tensors), strict=True)])


def _dots(one: Tensor, two: Tensor) -> Tensor:
    """(n, D), (n, D) -> (n,) in fp32 or better."""
    kind = wide_dtype(one.dtype)
    return (one.to(kind) * two.to(kind)).sum(-1)


class _Pool(torch.autograd.Function):
    """The pooled values."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, boundaries: Tensor, null: Tensor | None, layout: SegmentLayout, kind: str, both: bool
    ) -> Tensor:
        counts = layout.counts
        if kind == "mean":
            out = _runs(hidden, layout.tokens, layout.bags, counts)
        else:
            last = layout.tokens[(layout.bags[1:] - 1).clamp(min=0)]
            out = hidden.detach().flatten(0, 1).index_select(0, last).view(*counts.shape, -1)
            out.masked_fill_((counts == 0).unsqueeze(-1), 0.0)
            counts = counts.clamp(max=1)
        if null is None:
            out[:, 0] = 0
        else:
            out[:, 0] = null
        soft = ctx.needs_input_grad[1]
        ctx.save_for_backward(counts, hidden if soft else None, out if soft and both else None)
        ctx.layout, ctx.kind = layout, kind
        ctx.boundary_dtype, ctx.null_dtype = boundaries.dtype, None if null is None else null.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        counts, hidden, values = ctx.saved_tensors
        place, ends = ctx.layout.place, ctx.layout.ends
        grad_hidden = grad_boundaries = grad_null = None
        if ctx.needs_input_grad[2]:
            grad_null = grad[:, 0].sum(0, dtype=ctx.null_dtype)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            column = _columns(ctx.layout, ctx.kind)
            share = counts.to(wide_dtype(grad.dtype)).reciprocal()
            share = share.masked_fill(counts == 0, 0.0)
            grad_hidden = take_rows((grad * share.unsqueeze(-1)).to(grad.dtype), column)
        if ctx.needs_input_grad[1] and grad_hidden is not None:
            soft = _interior(hidden, grad_hidden, column, place, ends, counts)
            if values is not None:
                soft = soft + _merging(values, grad, counts, column, place, ends)
            grad_boundaries = soft.to(ctx.boundary_dtype)
        return grad_hidden, grad_boundaries, grad_null, None, None, None


def _interior(hidden: Tensor, grad: Tensor, column: Tensor, place: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
    """(B, T) float64: sum over the tokens q after t in its segment of <grad_q, h_q> less their mean in the segment.

    grad (B, T, D) is the gradient of ``hidden``. Sums over a segment are differences of a running sum over the row, in
    float64: their error does not grow with T to anything that fp32 products would show.
    """
    dots = _by_chunks(_dots, hidden.flatten(0, 1), grad.flatten(0, 1)).view(column.shape)
    running = dots.double().masked_fill_(column == 0, 0.0).cumsum(1)
    after = ends.gather(1, column) - 1 - place  # tokens after t in its segment
    closing = (after == 0) & (column > 0)
    at_end = running.new_zeros(ends.size(0), ends.size(1) + 1)
    at_end.scatter_(1, column.masked_fill(~closing, ends.size(1)), running)
    upto = at_end.gather(1, column)
    total = upto - at_end.gather(1, (column - 1).clamp(min=0))
    mean = total / counts.gather(1, column).clamp(min=1)
    return (upto - running - after * mean).masked_fill(closing | (column == 0), 0.0)


def _merging(values: Tensor, grad: Tensor, counts: Tensor, column: Tensor, place: Tensor, ends: Tensor) -> Tensor:
    """(B, T) float64: at a boundary between closed segments of n and m tokens, what both lose by becoming one,
    <m g_j - n g_{j+1}, s_j - s_{j+1}> / (n + m); zero elsewhere."""
    count = counts.view(-1, 1).to(wide_dtype(values.dtype))
    g, s = grad.flatten(0, 1), values.flatten(0, 1)
    # neighbours in the flattened columns; the last column of a row and the first of the next are never both segments
    loss = _by_chunks(_loss_by_merging, g[:-1], g[1:], s[:-1], s[1:], count[:-1], count[1:])
    loss = pad(loss, (0, 1)).double().view(counts.shape)  # by the column that the boundary closes
    closing = (column > 0) & (ends.gather(1, column) - 1 == place)
    return loss.gather(1, column).masked_fill(~closing, 0.0)


def _loss_by_merging(g: Tensor, g_next: Tensor, s: Tensor, s_next: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """(columns, D), counts (columns, 1) -> (columns,); zero unless both columns are segments."""
    loss = _dots(m * g - n * g_next, s - s_next) / (n + m).clamp(min=1).squeeze(1)
    return loss.masked_fill(((n == 0) | (m == 0)).squeeze(1), 0.0)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.columns = values.size(1)
        return take_rows(values, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (ids,) = ctx.saved_tensors
        torch._assert_async((ids.diff(dim=1) >= 0).all(), "upsample: ids must not decrease along a row")
        columns = torch.arange(ctx.columns, device=ids.device).expand(ids.size(0), -1).contiguous()
        ends = torch.searchsorted(ids.contiguous(), columns, right=True)
        tokens = torch.arange(ids.numel(), device=ids.device)
        return _runs(grad, tokens, pad(flat_rows(ends, ids.size(1)).flatten(), (1, 0))), None
