"""How span attention of one group of heads is cut into tiles, and what is computed in one.

A tile holds m queries of some pairs of row and head, the w distances that they see at most, and the n = w + m - 1 keys
in reach of any of them. Its scores are a contiguous (P, m, n + N) matrix, N being constant keys. Element (i, i + w - x)
is the score of distance x: with one element more per row the same memory reads (P, m, w), by distance. So the scores of
positions, one product for all pairs because they share the table, are written through the second view, together with
the mask, and those of the content added through the first; what lies between the bands is -inf from the start.

The backward computes the probabilities again and reads the gradient of the scores through both views. Tiles live in
memories that are made once.
"""

from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_efficient.ops.common import largest_divisor
from fairseq_efficient.ops.span_attention.common import soft_mask
from fairseq_efficient.precision import wide, wide_dtype

_TILE = {"cpu": 1 << 19, "cuda": 1 << 25}  # scores per tile, about: what stays in a CPU's cache
_QUERIES = (64, 128)  # per tile, about: for narrow windows, where keys out of reach cost most, and for wide ones
_WIDE = 512
_TENSORS = ("query", "key", "value", "table", "spans", "bias")


class Tile(NamedTuple):
    """Pairs [p0, p1) of row and head (row-major), queries [i0, i1), ``width`` distances, keys [lo, hi) of the window.

    The first ``missing`` keys lie before all that there are.
    """

    p0: int
    p1: int
    i0: int
    i1: int
    width: int
    lo: int
    hi: int
    missing: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(pairs of row and head, queries, keys)."""
        return self.p1 - self.p0, self.i1 - self.i0, self.hi - self.lo


class Group:
    """Heads that share a width: their part of the inputs, in the form that tiles read, and their tiles.

    Args:
        heads: indices, or None for all in order. width: distances computed, of which in all heads the mask is 1 for the
            first ``sure``.
        q (B, H, M, d), k, v (B, H, K, d), positions (S, d), spans (H,), (1,) or (B, H, M) or None, constant: as the
        operator's.
    """

    def __init__(
        self,
        heads: list[int] | None,
        width: int,
        sure: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        spans: Tensor | None,
        ramp: int,
        constant: tuple[Tensor, Tensor] | None,
        scale: float,
    ):
        self.heads, self.sure, self.ramp, self.scale = heads, sure, ramp, scale
        self.batch, _, self.queries, self.dim = q.shape
        self.size = q.size(1) if heads is None else len(heads)
        before = k.size(2) - self.queries
        self.width = max(1, min(width, k.size(2) - 1))
        target = _QUERIES[self.width > _WIDE]
        self.step = -(-self.queries // max(1, round(self.queries / target)))  # no small tile is left at the end
        self.kept = min(before, self.width)  # keys before the first query that any query sees
        self.front = min(self.width - self.kept, max(1, self.step - 1))  # places for keys before all that there are
        self.start = before - self.kept
        self.query = (self.pick(q) * scale).flatten(0, 1)  # (pairs, M, d)
        self.key, self.value = self._window(k), self._window(v)  # (pairs, front + kept + M - 1, d)
        self.table = positions[: self.width].flip(0)  # (W, d) by descending distance
        self.by_query = spans is not None and spans.dim() == 3
        self.spans: Tensor | None = None  # (B or 1, G or 1, M or 1)
        if spans is not None:
            spans = spans.view(1, -1, 1) if spans.dim() == 1 else spans
            self.spans = self.pick(spans) if spans.size(1) > 1 else spans
        self.constant: tuple[Tensor, Tensor] | None = None
        if constant is not None:
            keys, values = ((x if heads is None else x[heads]).contiguous() for x in constant)
            self.constant = keys, values
        self.more = 0 if self.constant is None else self.constant[0].size(1)
        self.blind = before == 0 and not self.more  # the first query sees nothing
        self.pairs = self._pairs(q.device.type)
        self.bias: Tensor | None = None  # (1, G or 1, 1, W)
        if self.spans is not None and not self.by_query:
            self.bias = self.log_mask(self.spans, self.width)

    def put_away(self) -> list[Tensor | None]:
        """Its tensors, which it then no longer holds: autograd keeps them between forward and backward."""
        found = [getattr(self, name) for name in _TENSORS] + list(self.constant or ())
        for name in _TENSORS:
            setattr(self, name, None)
        self.constant = None
        return found

    def with_tensors(self, tensors: Iterator[Tensor | None]) -> "Group":
        """A copy that holds what :meth:`put_away` returned, taken from ``tensors``."""
        found = copy(self)
        for name in _TENSORS:
            setattr(found, name, next(tensors))
        if self.more:
            found.constant = next(tensors), next(tensors)  # type: ignore[assignment]
        return found

    def pick(self, x: Tensor) -> Tensor:
        """(B, H, ...) -> (B, G, ...) of this group's heads."""
        return x if self.heads is None else x[:, self.heads]

    def _window(self, x: Tensor) -> Tensor:
        """Keys or values (B, H, K, d) in reach -> (pairs, front + kept + M - 1, d), zeros in front."""
        used = self.pick(x[:, :, self.start : x.size(2) - 1]).to(self.query.dtype)
        made = used.new_empty(self.batch, self.size, self.front + used.size(2), self.dim)
        made[:, :, : self.front] = 0
        made[:, :, self.front :] = used
        return made.flatten(0, 1)

    def _pairs(self, device: str) -> int:
        """How many pairs a tile holds: some heads of a row, or all heads of some rows."""
        fits = _TILE.get(device, 1 << 25) // (self.step * (self.width + self.step - 1 + self.more))
        some = largest_divisor(self.size, fits)
        if some == self.size and not self.more:  # rows do not share a tile with constant keys: see backward
            some *= largest_divisor(self.batch, fits // self.size)
        return some

    def tiles(self) -> Iterator[Tile]:
        """All tiles of the group, queries first."""
        for i0 in range(0, self.queries, self.step):
            i1 = min(i0 + self.step, self.queries)
            reach = self.kept + i0  # keys before the first query
            width = max(1, min(self.width, reach + i1 - i0 - 1))
            lo = self.front + reach - width
            for p0 in range(0, self.batch * self.size, self.pairs):
                p1 = p0 + self.pairs
                yield Tile(p0, p1, i0, i1, width, lo, lo + width + i1 - i0 - 1, max(0, width - reach))

    def largest(self) -> int:
        """Numbers in the memory of the largest tile."""
        return self.pairs * self.step * (self.width + self.step - 1 + self.more)

    def split(self, tile: Tile) -> tuple[slice, slice]:
        """The rows and the heads of a tile."""
        rows = slice(tile.p0 // self.size, (tile.p1 - 1) // self.size + 1)
        first = tile.p0 % self.size
        return rows, slice(first, min(first + tile.p1 - tile.p0, self.size))

    # --- the mask ---------------------------------------------------------------------------------------------------

    def log_mask(self, spans: Tensor, width: int) -> Tensor:
        """log m, (..., W) by descending distance, in the precision of the scores."""
        return soft_mask(spans, self.ramp, width).log_().flip(-1).to(self.query.dtype)

    def bias_of(self, tile: Tile) -> Tensor | None:
        """What is added to the scores by distance, (rows or 1, heads or 1, m or 1, w)."""
        if self.spans is None:
            return None
        rows, heads = self.split(tile)
        if self.by_query:
            return self.log_mask(self.spans[rows, heads, tile.i0 : tile.i1], tile.width)
        assert self.bias is not None
        heads = heads if self.bias.size(1) > 1 else slice(None)
        return self.bias[:, heads, :, self.width - tile.width :]

    def slope(self, spans: Tensor, width: int) -> Tensor:
        """d log m / d span, (..., W) by descending distance, in fp32 or better."""
        spans = wide(spans).unsqueeze(-1)
        x = torch.arange(width - 1, -1, -1, dtype=spans.dtype, device=spans.device)
        height = (self.ramp + spans - x) / self.ramp
        return torch.where((height > 0) & (height <= 1), 1 / (self.ramp * height), 0.0)


class Workspace:
    """Memories of one group's tiles, each of the size of the largest."""

    def __init__(self, group: Group):
        self.group = group
        self.scores = group.query.new_empty(group.largest())
        self.raw = group.query.new_empty(group.pairs * group.step * group.width)
        self._bands: tuple[int, ...] = ()  # form of the tile whose gaps are -inf in ``scores``

    def other(self) -> Tensor:
        """A memory like that of the scores."""
        return torch.empty_like(self.scores)

    def by_key(self, memory: Tensor, tile: Tile) -> Tensor:
        """(P, m, n + N) without gaps."""
        pairs, m, n = tile.shape
        row = n + self.group.more
        return memory[: pairs * m * row].view(pairs, m, row)

    def by_distance(self, memory: Tensor, tile: Tile) -> Tensor:
        """(P, m, w) by descending distance, in the same memory."""
        pairs, m, n = tile.shape
        row = n + self.group.more
        return memory.as_strided((pairs, m, tile.width), (m * row, row + 1, 1))

    def flat(self, tile: Tile) -> Tensor:
        """(P * m, w) without gaps, in a memory of its own."""
        pairs, m, _ = tile.shape
        return self.raw[: pairs * m * tile.width].view(pairs * m, tile.width)

    def probabilities(self, tile: Tile, out: Tensor) -> Tensor:
        """(P, m, n + N) in the memory ``out``."""
        group, (p0, p1, i0, i1, width, lo, hi, missing) = self.group, tile
        pairs, m, n = tile.shape
        scores = self.by_key(self.scores, tile)
        if self._bands != (m, width, pairs):
            self._bands = (m, width, pairs)
            scores.fill_(float("-inf"))
        q = group.query[p0:p1, i0:i1]
        raw = torch.mm(q.reshape(pairs * m, -1), group.table[group.width - width :].t(), out=self.flat(tile))
        band, bias = self.by_distance(self.scores, tile), group.bias_of(tile)
        if bias is None:
            band.copy_(raw.view(pairs, m, width))
        else:
            rows, heads = group.split(tile)
            form = (rows.stop - rows.start, heads.stop - heads.start, m, width)
            torch.add(raw.view(form), bias, out=band.view(form))
        content = scores if not group.more else scores[:, :, :n]
        content.baddbmm_(q, group.key[p0:p1, lo:hi].transpose(1, 2))
        if missing:
            content[:, :, :missing] = float("-inf")
        if group.constant is not None:
            keys = group.constant[0][group.split(tile)[1]]
            scores[:, :, n:] = torch.bmm(q, keys.transpose(1, 2))
        if group.blind and i0 == 0:
            scores[:, 0] = 0
        probs = self.by_key(out, tile)
        kind = wide_dtype(probs.dtype)
        if kind == probs.dtype:
            torch.softmax(scores, -1, out=probs)
        else:
            probs.copy_(scores.softmax(-1, dtype=kind))
        if group.blind and i0 == 0:
            self._bands = ()  # the first row's gaps were overwritten
        return probs
