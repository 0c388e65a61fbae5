"""Relative attention in tiles: no T x S matrix, no copy to shift one, no score of a key that no query may see.

A tile holds m queries and the n keys up to the last of them. Positions are scored against the table of descending
distance n-1 .. 0 and one row more: ``raw`` (m, n + 1). Read row after row from place m - 1 on, the same memory is an
(m, n) matrix whose entry (i, j) is the score of the distance between query i and key j (entries of later keys hold
other rows' scores, and are masked). The scores of the content are added to it. The backward computes the
probabilities again (unless they are few, and were kept), writes the gradient of the scores into memory of the same
form, and reads it back as that of ``raw``. Products go into whole memories that are made once: BLAS then runs a tile as
one batch.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from fairseq_efficient.ops.common import add_product, largest_divisor, random_state, same_draws
from fairseq_efficient.ops.relative_attention.common import check_arguments
from fairseq_efficient.precision import wide_dtype

_QUERIES = 128  # per tile, about
_TILE = {"cpu": 1 << 20, "cuda": 1 << 25}  # scores per tile, about: what stays in a CPU's cache


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    scale: float | None = None,
    keep: int = 0,
) -> Tensor:
    """Causal attention with Transformer-XL's relative positions (Dai et al. 2019, section 3.3).

    Query i stands at key S - T + i and sees the keys j up to itself. With x their distance,
    ``score = ((q_i + content_bias) . k_j + (q_i + position_bias) . r_x) * scale``.

    Args:
        q: (B, H, T, d).
        k, v: (B, H, S, d), S >= T; the first S - T are memory.
        r: (H, S or more, d), the projected position encodings by ascending distance from 0.
        content_bias, position_bias: (H, d), u and v of the paper.
        key_padding_mask: (B, S) bool, True = pad; pads are never attended to.
        dropout_p: dropout on attention weights, drawn from torch's global generator.
        window: keys that a query sees at most, itself included.
        scale: 1 / sqrt(d) if not given.
        keep: keep the probabilities for the backward if they are at most so many numbers; else they are computed again,
            which takes a fifth longer, and nothing of the size B * H * T * S stays.

    Returns:
        (B, H, T, d) in the dtype of q; a query that sees no key gives zero. Softmax runs in fp32 or better.

    Raises:
        ValueError: wrong shapes, window < 1 or dropout_p outside [0, 1).
    """
    check_arguments(q, k, v, r, content_bias, position_bias, key_padding_mask, dropout_p, window)
    scale = q.size(3) ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        others = [x.to(q.dtype) for x in (k, v, r[:, : k.size(2)], content_bias, position_bias)]
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in (q, *others)):
            keep = 0
        return _RelativeAttention.apply(q, *others, key_padding_mask, dropout_p, window, scale, keep)


def relative_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    lengths: Tensor | int,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """The newest query of each row over its cached keys; rows may hold different numbers of keys.

    Args:
        q: (R, H, 1, d); the query of a row stands at its last key.
        k, v: (R, H, capacity, d); what lies beyond a row's length must be finite and is not seen.
        r: (H, capacity or more, d) by ascending distance.
        lengths: (R,) int64 keys of each row, at least 1; or one int for all rows.

    Returns:
        (R, H, 1, d); other arguments as for :func:`relative_attention`. Not meant for training: plain autograd.
    """
    with torch.autocast(q.device.type, enabled=False):
        scale = q.size(3) ** -0.5 if scale is None else scale
        if isinstance(lengths, int):
            k, v = k[:, :, :lengths], v[:, :, :lengths]
        keys = k.size(2)
        content = torch.matmul((q + content_bias.to(q.dtype).unsqueeze(1)) * scale, k.to(q.dtype).transpose(2, 3))
        by_distance = (q + position_bias.to(q.dtype).unsqueeze(1)).squeeze(2).transpose(0, 1) * scale
        by_distance = torch.bmm(by_distance, r[:, :keys].to(q.dtype).transpose(1, 2)).transpose(0, 1)  # (R, H, keys)
        place = torch.arange(keys, device=q.device)
        if isinstance(lengths, int):
            scores, hidden = content + by_distance.flip(2).unsqueeze(2), None
            distance = (keys - 1 - place).unsqueeze(0)
        else:
            distance = lengths.unsqueeze(1) - 1 - place  # (R, keys)
            index = distance.clamp(min=0).unsqueeze(1).expand(-1, q.size(1), -1)
            scores, hidden = content + by_distance.gather(2, index).unsqueeze(2), distance < 0
        if window is not None:
            hidden = distance >= window if hidden is None else hidden | (distance >= window)
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
        probs = scores.softmax(-1, dtype=wide_dtype(q.dtype)).to(q.dtype)
        return torch.matmul(probs, v.to(q.dtype))


class _Tile(NamedTuple):
    """Pairs [p0, p1) of row and head (row-major), queries [i0, i1), keys [lo, hi)."""

    p0: int
    p1: int
    i0: int
    i1: int
    lo: int
    hi: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.p1 - self.p0, self.i1 - self.i0, self.hi - self.lo


class _Plan:
    """How one call is cut into tiles, and what a tile may see. The same in forward and backward."""

    def __init__(self, q: Tensor, keys: int, mask: Tensor | None, dropout_p: float, window: int | None, scale: float):
        self.batch, self.heads, self.queries, self.dim = q.shape
        self.keys, self.dropout_p, self.window, self.scale = keys, dropout_p, window, scale
        self.dtype, self.device = q.dtype, q.device
        self.step = -(-self.queries // max(1, round(self.queries / _QUERIES)))  # no small tile is left at the end
        seen = keys if window is None else min(keys, window + self.step)
        fits = _TILE.get(q.device.type, 1 << 25) // (self.step * (seen + 1))
        self.pairs = largest_divisor(self.heads, fits)
        if self.pairs == self.heads:
            self.pairs *= largest_divisor(self.batch, fits // self.heads)
        self.mask, self.blind = mask, None
        if mask is not None:
            real = pad((~mask).cumsum(1), (1, 0))  # (B, S + 1): real keys before each
            end = torch.arange(keys - self.queries, keys, device=q.device) + 1
            start = (end - (keys if window is None else window)).clamp(min=0)
            self.blind = (real[:, end] == real[:, start])[:, None, :, None]  # (B, 1, T, 1): sees no key
        self._later: dict[int, Tensor] = {}  # (m, m), hides the keys after each query

    def tiles(self) -> Iterator[_Tile]:
        """The last queries of some pairs come first: without a window they see all keys."""
        memory = self.keys - self.queries
        for p0 in range(0, self.batch * self.heads, self.pairs):
            for i0 in reversed(range(0, self.queries, self.step)):
                i1 = min(i0 + self.step, self.queries)
                lo = 0 if self.window is None else max(0, memory + i0 - self.window + 1)
                yield _Tile(p0, p0 + self.pairs, i0, i1, lo, memory + i1)

    def largest(self) -> int:
        """Numbers in the memory of the largest tile."""
        return max((p * m * (n + 1) for p, m, n in (tile.shape for tile in self.tiles())), default=0)

    def heads_of(self, tile: _Tile) -> slice:
        """The heads of a tile that does not span several rows."""
        start = tile.p0 % self.heads
        return slice(start, start + tile.p1 - tile.p0)

    def positions(self, table: Tensor, tile: _Tile) -> Tensor:
        """table (H, S + 1, d) by descending distance -> that of the tile's pairs (P, n + 1, d)."""
        pairs, _, n = tile.shape
        part = table[:, self.keys - n :]
        return part.repeat(pairs // self.heads, 1, 1) if pairs > self.heads else part[self.heads_of(tile)]

    def total(self) -> int:
        """Probabilities of all tiles."""
        return sum(p * m * n for p, m, n in (tile.shape for tile in self.tiles()))

    def without_later_keys(self, shifted: Tensor, scores: Tensor, tile: _Tile) -> Tensor:
        """shifted (P, m, n) into scores, far below all others where a key comes after the query."""
        _, m, n = tile.shape
        if m not in self._later:
            lowest = torch.finfo(scores.dtype).min / 2  # not -inf: rows that see nothing stay finite
            self._later[m] = torch.full((m, m), lowest, dtype=scores.dtype, device=self.device).triu_(1)
        scores[:, :, : n - m].copy_(shifted[:, :, : n - m])
        torch.add(shifted[:, :, n - m :], self._later[m], out=scores[:, :, n - m :])
        return scores

    def hide(self, scores: Tensor, tile: _Tile) -> None:
        """Fill scores (P, m, n) of keys that are out of sight, or pads."""
        pairs, m, _ = tile.shape
        lowest = torch.finfo(scores.dtype).min
        far = 0 if self.window is None else tile.hi - self.window - tile.lo  # columns out of sight for the last query
        if far > 0:
            hidden = torch.ones(m, far, dtype=torch.bool, device=self.device).tril_(far - m)
            scores[:, :, :far].masked_fill_(hidden, lowest)
        if self.mask is not None:
            rows = slice(tile.p0 // self.heads, (tile.p1 - 1) // self.heads + 1)
            mask = self.mask[rows, None, tile.lo : tile.hi]  # (rows, 1, n)
            if pairs > self.heads:
                mask = mask.repeat_interleave(self.heads, 0)
            scores.masked_fill_(mask, lowest)

    def workspace(self, like: Tensor, count: int) -> list[Tensor]:
        """Memories for the largest tile, made once: fresh ones for each tile cost more than the sums in them."""
        return [like.new_empty(self.largest()) for _ in range(count)]

    def probabilities(
        self,
        content: Tensor,
        position: Tensor,
        k: Tensor,
        table: Tensor,
        tile: _Tile,
        memory: Tensor,
        other: Tensor,
        probs: Tensor | None = None,
    ) -> Tensor:
        """(P, m, n) in ``probs`` or ``memory``, for queries with their biases (pairs, T, d), scaled; uses ``other``."""
        p0, p1, i0, i1, lo, hi = tile
        raw, shifted = _forms(memory, tile)
        torch.bmm(position[p0:p1, i0:i1], self.positions(table, tile).transpose(1, 2), out=raw)
        scores = self.without_later_keys(shifted, _by_key(other, tile), tile)
        scores.baddbmm_(content[p0:p1, i0:i1], k[p0:p1, lo:hi].transpose(1, 2))
        self.hide(scores, tile)
        probs = _by_key(memory, tile) if probs is None else probs
        if wide_dtype(self.dtype) == self.dtype:
            return torch.softmax(scores, -1, out=probs)
        return probs.copy_(scores.softmax(-1, dtype=wide_dtype(self.dtype)))

    def kept(self, tile: _Tile) -> Tensor:
        """A draw of the weights that dropout keeps, (P, m, n) of 0 and 1."""
        return torch.empty(tile.shape, dtype=self.dtype, device=self.device).bernoulli_(1 - self.dropout_p)


def _forms(memory: Tensor, tile: _Tile) -> tuple[Tensor, Tensor]:
    """The two readings of a tile's memory: by distance (P, m, n + 1) and, shifted, by key (P, m, n)."""
    pairs, m, n = tile.shape
    raw = memory[: pairs * m * (n + 1)].view(pairs, m, n + 1)
    return raw, raw.as_strided((pairs, m, n), (m * (n + 1), n, 1), m - 1)


def _by_key(memory: Tensor, tile: _Tile) -> Tensor:
    """A tile's memory as (P, m, n) without gaps."""
    pairs, m, n = tile.shape
    return memory[: pairs * m * n].view(pairs, m, n)


def _biased(q: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(B, H, T, d) -> (B * H, T, d)"""
    return torch.add(q, bias.unsqueeze(1), out=q.new_empty(q.shape)).mul_(scale).flatten(0, 1)


def _kept_tiles(kept: Tensor | None, plan: _Plan) -> Iterator[tuple[_Tile, Tensor | None]]:
    """Each tile with its part of the memory ``kept`` (P, m, n), if there is one."""
    start = 0
    for tile in plan.tiles():
        size = math.prod(tile.shape)
        yield tile, None if kept is None else kept[start : start + size].view(tile.shape)
        start += size


def _descending(r: Tensor) -> Tensor:
    """(H, S, d) by ascending distance -> (H, S + 1, d) by descending distance and a row of zeros."""
    return pad(r.flip(1), (0, 0, 0, 1))


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q, k, v, r, content_bias, position_bias, mask, dropout_p: float, window, scale: float, keep: int
    ) -> Tensor:
        plan = _Plan(q, k.size(2), mask, dropout_p, window, scale)
        state = random_state(q.device) if dropout_p else None
        content, position = _biased(q, content_bias, scale), _biased(q, position_bias, scale)
        keys, values, table = k.flatten(0, 1), v.flatten(0, 1), _descending(r)
        memory, other = plan.workspace(q, 2)
        out = torch.empty_like(content)
        kept = q.new_empty(plan.total()) if keep and plan.total() <= keep else None
        for tile, place in _kept_tiles(kept, plan):
            p0, p1, i0, i1, lo, hi = tile
            probs = plan.probabilities(content, position, keys, table, tile, memory, other, place)
            if dropout_p:
                probs = torch.mul(probs, plan.kept(tile), out=_by_key(memory, tile))
            if p1 - p0 == 1 or i1 - i0 == plan.queries:
                torch.bmm(probs, values[p0:p1, lo:hi], out=out[p0:p1, i0:i1])
            else:
                out[p0:p1, i0:i1] = torch.bmm(probs, values[p0:p1, lo:hi])
        out = out.view(q.shape)
        if dropout_p:
            out.div_(1 - dropout_p)
        if plan.blind is not None:
            out.masked_fill_(plan.blind, 0.0)
        ctx.plan, ctx.random_state = plan, state
        ctx.save_for_backward(q, k, v, r, content_bias, position_bias, out, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with torch.autocast(grad.device.type, enabled=False), same_draws(grad.device, ctx.random_state):
            grads = _gradients(ctx.plan, grad, *ctx.saved_tensors)
        return (*grads, None, None, None, None, None)


def _gradients(
    plan: _Plan, grad: Tensor, q, k, v, r, content_bias, position_bias, out, probabilities
) -> tuple[Tensor, ...]:
    """Of q, k, v, r and the two biases."""
    wide = wide_dtype(plan.dtype)
    if plan.blind is not None:
        grad = grad.masked_fill(plan.blind, 0.0)
    share = (grad.to(wide) * out.to(wide)).sum(-1, keepdim=True).flatten(0, 1)  # (pairs, T, 1)
    grad = grad.flatten(0, 1).contiguous()
    content, position = _biased(q, content_bias, plan.scale), _biased(q, position_bias, plan.scale)
    keys, values, table = k.flatten(0, 1), v.flatten(0, 1), _descending(r)
    memory, other, shifted = plan.workspace(q, 3)
    make = torch.empty if plan.window is None else torch.zeros
    grad_k, grad_v = (make(x.shape, dtype=wide, device=x.device) for x in (keys, values))
    grad_r = torch.zeros(table.shape, dtype=wide, device=q.device)
    grad_content, grad_position = (torch.empty(content.shape, dtype=wide, device=q.device) for _ in range(2))
    for tile, probs in _kept_tiles(probabilities, plan):
        p0, p1, i0, i1, lo, hi = tile
        some, here, there = slice(p0, p1), slice(i0, i1), slice(lo, hi)
        fresh = plan.window is None and hi == plan.keys  # nothing is in grad_k and grad_v yet
        if probs is None:
            probs = plan.probabilities(content, position, keys, table, tile, memory, other)
        kept = plan.kept(tile).div_(1 - plan.dropout_p) if plan.dropout_p else None
        of_probs = torch.bmm(grad[some, here], values[some, there].transpose(1, 2), out=_by_key(other, tile))
        if kept is not None:
            of_probs.mul_(kept)
        by_distance, by_key = _forms(shifted, tile)
        by_distance.flatten(1)[:, : i1 - i0 - 1] = 0  # all that the other form does not reach
        by_distance[:, -1, -1] = 0
        torch.mul(of_probs.sub_(share[some, here]), probs, out=by_key)
        used = probs if kept is None else torch.mul(probs, kept, out=_by_key(memory, tile))
        add_product(grad_v[some, there], used.transpose(1, 2), grad[some, here], fresh)
        add_product(grad_k[some, there], by_key.transpose(1, 2), content[some, here], fresh)
        grad_content[some, here] = torch.bmm(by_key, keys[some, there])
        grad_position[some, here] = torch.bmm(by_distance, plan.positions(table, tile))
        if p1 - p0 > plan.heads:
            of_r = torch.bmm(by_distance.transpose(1, 2), position[some, here])
            grad_r[:, lo - hi - 1 :] += of_r.view(-1, plan.heads, *of_r.shape[1:]).sum(0, dtype=wide)
        else:
            add_product(grad_r[plan.heads_of(tile), lo - hi - 1 :], by_distance.transpose(1, 2), position[some, here])
    grad_content, grad_position = (x.view(q.shape).mul_(plan.scale) for x in (grad_content, grad_position))
    grads = (grad_content + grad_position, grad_k.view(k.shape), grad_v.view(v.shape), grad_r[:, :-1].flip(1))
    return tuple(x.to(plan.dtype) for x in (*grads, grad_content.sum((0, 2)), grad_position.sum((0, 2))))
