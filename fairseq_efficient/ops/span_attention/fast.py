"""Span attention in tiles, heads grouped by how far they see: the work follows the sum of the spans."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_efficient.ops.common import add_product, check_keys, random_state, same_draws
from fairseq_efficient.ops.span_attention.common import (
    check_arguments,
    head_groups,
    soft_mask,
    span_width,
)
from fairseq_efficient.ops.span_attention.tiles import Group, Tile, Workspace
from fairseq_efficient.precision import wide_dtype


def span_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor | None = None,
    ramp: int = 32,
    *,
    known_spans: Sequence[float] | None = None,
    constant: tuple[Tensor, Tensor] | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Causal attention over the last S keys, with relative positions and a soft span (Sukhbaatar et al. 2019, sec. 2).

    Query i stands at key K - M + i and sees the S keys before it, not itself. With x = distance - 1,
    ``score = (q_i . k_j + q_i . positions[x]) * scale`` and weights ``a_j = m(x) exp(score) / sum m exp(score)``,
    where ``m`` is :func:`~fairseq_efficient.ops.span_attention.soft_mask`: log m is added to the scores, so rows sum to
    1 whatever the scores are. Distances whose mask is 0 in a head are not computed, but for a few that heads of nearly
    the same span share.

    Args:
        q: (B, H, M, d).
        k, v: (B, H, K, d), K >= M; the first K - M are memory, the last one is seen by none.
        positions: (S, d), by ascending distance from 1; shared by the heads.
        spans: (H,), or (1,) for all heads, or (B, H, M), in tokens, not negative; None: S without a mask.
        ramp: tokens over which the mask falls from 1 to 0.
        known_spans: ``spans`` as numbers (of each head; of (B, H, M) the largest of each), so that the device is not
            asked.
        constant: keys and values (H, N, d) that every query sees, without position and mask (persistent memory).
        dropout_p: dropout on attention weights, drawn from torch's global generator.
        scale: 1 / sqrt(d) if not given.

    Returns:
        (B, H, M, d) in the dtype of q; a query that sees no key gives zero. Softmax and mask in fp32 or better.

    Raises:
        ValueError: wrong shapes, ramp < 1 or dropout_p outside [0, 1).
    """
    check_arguments(q, k, v, positions, spans, ramp, constant, dropout_p)
    check_keys(q, k)
    scale = q.size(3) ** -0.5 if scale is None else scale
    groups = _groups(q, positions.size(0), spans, ramp, known_spans)
    keys, values = (None, None) if constant is None or not constant[0].size(1) else constant
    with torch.autocast(q.device.type, enabled=False):
        others = [None if x is None else x.to(q.dtype) for x in (k, v, positions, keys, values)]
        return _SpanAttention.apply(q, *others, spans, groups, ramp, dropout_p, scale)


def span_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor | None = None,
    ramp: int = 32,
    *,
    constant: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
) -> Tensor:
    """The newest query of each row over the keys before it.

    Args:
        q: (R, H, 1, d). k, v: (R, H, t, d), t may be 0; the query's own key is not among them.
        spans: (H,), (1,) or (R, H, 1).

    Returns:
        (R, H, 1, d); other arguments as for :func:`span_attention`. Not meant for training: plain autograd.
    """
    check_arguments(q, k, v, positions, spans, ramp, constant, 0.0)
    seen = min(k.size(2), positions.size(0))
    with torch.autocast(q.device.type, enabled=False):
        q = q * (q.size(3) ** -0.5 if scale is None else scale)
        k, v = (x[:, :, x.size(2) - seen :].to(q.dtype) for x in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) + torch.matmul(q, positions[:seen].to(q.dtype).flip(0).t())
        if spans is not None:
            bias = soft_mask(spans, ramp, seen).log().flip(-1)
            scores = scores + (bias.unsqueeze(1) if spans.dim() == 1 else bias)
        if constant is not None:
            keys, values = (x.to(q.dtype) for x in constant)
            scores = torch.cat([scores, torch.matmul(q, keys.transpose(1, 2)).to(scores.dtype)], 3)
            v = torch.cat([v, values.expand(q.size(0), -1, -1, -1)], 2)
        return torch.matmul(scores.softmax(-1, dtype=wide_dtype(q.dtype)).to(q.dtype), v)


def _groups(
    q: Tensor, most: int, spans: Tensor | None, ramp: int, known: Sequence[float] | None
) -> list[tuple[list[int] | None, int, int]]:
    """(heads or None for all, width, distances whose mask is surely 1) of each group."""
    heads = q.size(1)
    if spans is None:
        return [(None, most, most)]
    if known is None:
        largest = spans.detach() if spans.dim() == 1 else spans.detach().amax((0, 2))
        known = largest.tolist()
    known = list(known) * (heads if len(known) == 1 else 1)
    widths = [span_width(span, ramp, most) for span in known]
    found = []
    for members, width in head_groups(widths, q.size(0)):
        least = min(0.0 if math.isnan(known[head]) else known[head] for head in members)
        sure = max(0, int(least)) if spans.dim() == 1 else 0
        found.append((None if len(members) == heads else members, width, min(sure, width)))
    return found


def _kept(tile: Tile, more: int, like: Tensor, dropout_p: float) -> Tensor:
    """A draw of the weights that dropout keeps, (P, m, n + N) of 0 and 1."""
    pairs, m, n = tile.shape
    return torch.empty(pairs, m, n + more, dtype=like.dtype, device=like.device).bernoulli_(1 - dropout_p)


class _SpanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, positions, keys, values, spans, groups, ramp: int, dropout_p: float, scale: float):
        ctx.random_state = random_state(q.device) if dropout_p else None
        ctx.dropout_p, ctx.shapes, ctx.groups = dropout_p, (q.shape, k.shape), []
        tensors: list[Tensor | None] = []
        constant = None if keys is None else (keys, values)
        out = q.new_empty(q.size(0), q.size(2), q.size(1), q.size(3)).transpose(1, 2)  # so that heads merge by a view
        for heads, width, sure in groups:
            group = Group(heads, width, sure, q, k, v, positions, spans, ramp, constant, scale)
            found = _outputs(group, dropout_p).view(group.batch, group.size, group.queries, group.dim)
            out[:, slice(None) if heads is None else heads] = found
            tensors += group.put_away()
            ctx.groups.append(group)
        ctx.save_for_backward(positions, spans, out, keys, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with torch.autocast(grad.device.type, enabled=False), same_draws(grad.device, ctx.random_state):
            return (*_gradients(ctx, grad, *ctx.saved_tensors), None, None, None, None)


def _outputs(group: Group, dropout_p: float) -> Tensor:
    """(pairs, M, d)"""
    space = Workspace(group)
    memory, out = space.other(), torch.empty_like(group.query)
    for tile in group.tiles():
        p0, p1, i0, i1, _, lo, hi, _ = tile
        probs = space.probabilities(tile, memory)
        if dropout_p:
            probs.mul_(_kept(tile, group.more, probs, dropout_p))
        if group.constant is None:
            out[p0:p1, i0:i1] = torch.bmm(probs, group.value[p0:p1, lo:hi])
        else:
            n = hi - lo
            found = torch.bmm(probs[:, :, :n], group.value[p0:p1, lo:hi])
            out[p0:p1, i0:i1] = found.baddbmm_(probs[:, :, n:], group.constant[1][group.split(tile)[1]])
    if dropout_p:
        out.div_(1 - dropout_p)
    if group.blind:
        out[:, 0] = 0
    return out


def _gradients(ctx: Any, grad: Tensor, positions: Tensor, spans: Any, out: Tensor, keys: Any, *saved: Any) -> Any:
    """Of q, k, v, positions, constant keys and values, and spans."""
    shape, key_shape = ctx.shapes
    tensors = iter(saved)
    kind = wide_dtype(grad.dtype)
    grad_q = grad.new_empty(shape)
    grad_k, grad_v = (grad.new_zeros(key_shape) for _ in range(2))
    grad_table = torch.zeros(positions.shape, dtype=kind, device=grad.device)
    grad_keys, grad_values = (None, None) if keys is None else (torch.zeros_like(keys), torch.zeros_like(keys))
    grad_spans = None if spans is None else torch.zeros(spans.shape, dtype=kind, device=grad.device)
    for skeleton in ctx.groups:
        group = skeleton.with_tensors(tensors)
        parts = _Backward(group, grad, out, ctx.dropout_p, ctx.needs_input_grad[6]).run()
        form = (group.batch, group.size)
        heads = slice(None) if group.heads is None else group.heads
        grad_q[:, heads] = parts.query.view(*form, group.queries, group.dim).mul_(group.scale).to(grad.dtype)
        window = slice(group.start, key_shape[2] - 1)
        for total, part in ((grad_k, parts.key), (grad_v, parts.value)):
            total[:, heads, window] = part.view(*form, -1, group.dim)[:, :, group.front :].to(grad.dtype)
        grad_table[: group.width] += parts.table.flip(0)
        if grad_keys is not None and grad_values is not None:
            grad_keys[heads], grad_values[heads] = (one.to(keys.dtype) for one in parts.constant)
        if grad_spans is not None and ctx.needs_input_grad[6]:
            if spans.dim() > 1:
                grad_spans[:, heads] = parts.spans
            elif spans.numel() == 1:
                grad_spans += parts.spans.sum()
            else:
                grad_spans[heads] = parts.spans
    grad_spans = None if grad_spans is None else grad_spans.to(spans.dtype)
    return grad_q, grad_k, grad_v, grad_table.to(positions.dtype), grad_keys, grad_values, grad_spans


class _Backward:
    """Gradients of one group of heads, added up tile by tile in fp32 or better."""

    def __init__(self, group: Group, grad: Tensor, out: Tensor, dropout_p: float, of_spans: bool):
        self.group, self.dropout_p, self.of_spans = group, dropout_p, of_spans
        self.kind = kind = wide_dtype(grad.dtype)
        self.grad = group.pick(grad).flatten(0, 1).contiguous()
        share = (group.pick(grad).to(kind) * group.pick(out).to(kind)).sum(-1, keepdim=True).flatten(0, 1)
        if group.blind:
            self.grad = self.grad.index_fill(1, torch.zeros(1, dtype=torch.long, device=grad.device), 0)
            share[:, 0] = 0
        self.share = share.neg_().to(grad.dtype)  # (pairs, M, 1)

        def make(shape: Any) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=grad.device)

        self.query, self.key, self.value = make(group.query.shape), make(group.key.shape), make(group.value.shape)
        self.table = make(group.table.shape)  # by descending distance
        self.constant = () if group.constant is None else tuple(make(x.shape) for x in group.constant)
        by_query = (group.batch, group.size, group.queries)
        self.spans = make(by_query if group.by_query else (group.size, group.width))
        self.space = Workspace(group)
        self.memories = self.space.other(), self.space.other()

    def run(self) -> "_Backward":
        for tile in self.group.tiles():
            probs, of_scores = self._scores(tile)
            self._keys(tile, probs, of_scores)
            self._positions(tile)
        group = self.group
        if self.of_spans and not group.by_query:
            slope = group.slope(group.spans[0, :, 0], group.width)  # type: ignore[index]
            self.spans = (self.spans * slope).sum(1)
        return self

    def _scores(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """The weights after dropout, and the gradient of the scores, (P, m, n + N)."""
        group, (p0, p1, i0, i1, _, lo, hi, _), n = self.group, tile, tile.hi - tile.lo
        probs = self.space.probabilities(tile, self.memories[0])
        of_scores = self.space.by_key(self.memories[1], tile)
        grad, share = self.grad[p0:p1, i0:i1], self.share[p0:p1, i0:i1]
        if self.dropout_p:
            of_scores.zero_()
        else:
            of_scores.copy_(share.expand_as(of_scores))
        content = of_scores if group.constant is None else of_scores[:, :, :n]
        content.baddbmm_(grad, group.value[p0:p1, lo:hi].transpose(1, 2))
        if group.constant is not None:
            of_scores[:, :, n:].baddbmm_(grad, group.constant[1][group.split(tile)[1]].transpose(1, 2))
        if not self.dropout_p:
            return probs, of_scores.mul_(probs)
        kept = _kept(tile, group.more, probs, self.dropout_p).div_(1 - self.dropout_p)
        of_scores.mul_(kept).add_(share).mul_(probs)
        return probs.mul_(kept), of_scores

    def _keys(self, tile: Tile, probs: Tensor, of_scores: Tensor) -> None:
        group, (p0, p1, i0, i1, _, lo, hi, _), n = self.group, tile, tile.hi - tile.lo
        q, grad, heads = group.query[p0:p1, i0:i1], self.grad[p0:p1, i0:i1], group.split(tile)[1]
        content, used = of_scores[:, :, :n], probs[:, :, :n]
        add_product(self.key[p0:p1, lo:hi], content.transpose(1, 2), q)
        add_product(self.value[p0:p1, lo:hi], used.transpose(1, 2), grad)
        add_product(self.query[p0:p1, i0:i1], content, group.key[p0:p1, lo:hi])
        if group.constant is not None:
            add_product(self.constant[0][heads], of_scores[:, :, n:].transpose(1, 2), q)
            add_product(self.constant[1][heads], probs[:, :, n:].transpose(1, 2), grad)
            add_product(self.query[p0:p1, i0:i1], of_scores[:, :, n:], group.constant[0][heads])

    def _positions(self, tile: Tile) -> None:
        """What the same gradient, read by distance, is for queries, table and spans."""
        group, (p0, p1, i0, i1, width, *_) = self.group, tile
        pairs, m, _ = tile.shape
        flat = self.space.flat(tile)
        flat.view(pairs, m, width).copy_(self.space.by_distance(self.memories[1], tile))
        table = group.table[group.width - width :]
        self.query[p0:p1, i0:i1] += torch.mm(flat, table).view(pairs, m, -1)
        q = group.query[p0:p1, i0:i1].reshape(pairs * m, -1)
        total = self.table[group.width - width :]
        if total.dtype == q.dtype:
            total.addmm_(flat.t(), q)
        else:
            total += torch.mm(flat.t(), q)
        if not self.of_spans:
            return
        rows, heads = group.split(tile)
        by_head = flat.view(rows.stop - rows.start, heads.stop - heads.start, m, width)
        if group.by_query:
            assert group.spans is not None
            slope = group.slope(group.spans[rows, heads, i0:i1], width)
            self.spans[rows, heads, i0:i1] = (by_head.to(self.kind) * slope).sum(-1)
        else:
            far = max(0, width - group.sure)  # nearer ones have no slope
            start = group.width - width
            self.spans[heads, start : start + far] += by_head[..., :far].sum((0, 2), dtype=self.kind)
