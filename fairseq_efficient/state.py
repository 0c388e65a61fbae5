"""State of incremental decoding: dataclasses kept in fairseq's ``incremental_state``, which own their reordering.

Shapes: R rows (hypotheses), S sentences, H heads, D head dim, t tokens so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_efficient.beam import reorder_sentences

_BLOCK = 32  # tokens by which a cache grows: at most this many slots are copied for nothing
_FIRST = 64  # slots of a cache that doubles


@dataclass
class SelfAttentionCache:
    """Keys and values of the tokens so far, one row per hypothesis."""

    buffer: Tensor  # (R, 2, H, capacity, D), keys then values
    length: int = 0
    padding_mask: Tensor | None = None  # (R, t) True = pad, None while no pad was seen
    spare: Tensor | None = None  # target of the next reorder: the two buffers take turns

    @classmethod
    def empty(cls, like: Tensor) -> "SelfAttentionCache":
        """A cache for keys (R, H, t, D) such as ``like``."""
        rows, heads, _, dim = like.shape
        return cls(like.new_empty(rows, 2, heads, _BLOCK, dim))

    def append(self, keys: Tensor, values: Tensor, padding_mask: Tensor | None) -> None:
        """Add (R, H, n, D) keys and values; padding_mask (R, n), True = pad."""
        added = keys.size(2)
        end = self.length + added
        if end > self.buffer.size(3):
            rows, _, heads, _, dim = self.buffer.shape
            capacity = -(-end // _BLOCK) * _BLOCK
            grown = self.buffer.new_empty(rows, 2, heads, capacity, dim)
            grown[:, :, :, : self.length] = self.buffer[:, :, :, : self.length]
            self.buffer, self.spare = grown, None
        self.buffer[:, 0, :, self.length : end] = keys
        self.buffer[:, 1, :, self.length : end] = values
        if padding_mask is not None or self.padding_mask is not None:
            old = self.padding_mask
            if old is None:
                old = torch.zeros(keys.size(0), self.length, dtype=torch.bool, device=keys.device)
            new = old.new_zeros(keys.size(0), added) if padding_mask is None else padding_mask.bool()
            self.padding_mask = torch.cat([old, new], 1)
        self.length = end

    @property
    def keys(self) -> Tensor:
        """(R, H, t, D)"""
        return self.buffer[:, 0, :, : self.length]

    @property
    def values(self) -> Tensor:
        """(R, H, t, D)"""
        return self.buffer[:, 1, :, : self.length]

    def reorder(self, new_order: Tensor) -> None:
        if self.spare is not None and self.spare.size(0) == new_order.numel() and not self.buffer.requires_grad:
            torch.index_select(self.buffer, 0, new_order, out=self.spare)
            self.buffer, self.spare = self.spare, self.buffer
        else:
            selected = self.buffer.index_select(0, new_order)
            self.spare = torch.empty_like(selected)
            self.buffer = selected
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask.index_select(0, new_order)

    def size_bytes(self) -> int:
        return self.buffer.nbytes * (1 if self.spare is None else 2)


@dataclass
class CrossAttentionCache:
    """Projected encoder keys and values, one copy per sentence whatever the beam."""

    keys: Tensor  # (S, H, source length, D)
    values: Tensor
    padding_mask: Tensor | None  # (S, source length) True = pad, None if nothing is padded
    rows: int  # hypotheses: row r reads sentence r // (rows / S)

    def reorder(self, new_order: Tensor) -> None:
        sentences = self.keys.size(0)
        kept, _ = reorder_sentences(new_order, sentences, self.rows // sentences)
        self.rows = new_order.numel()
        if kept is not None:
            self.keys, self.values = self.keys.index_select(0, kept), self.values.index_select(0, kept)
            if self.padding_mask is not None:
                self.padding_mask = self.padding_mask.index_select(0, kept)

    def size_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass
class LayerCache:
    """Keys and values of one causal layer whose rows share a length (one token per step and row), or whose rows have
    lengths of their own (:meth:`ragged`: some rows get a key in a step). Capacity doubles; no step copies the past.

    Slots beyond the length of a row hold finite numbers that mean nothing.
    """

    lengths: Tensor | int = 0  # keys of every row, or (R,) int64 keys of each row
    buffer: Tensor | None = None  # (2, R, H, capacity, D), keys then values; made by the first key, in its dtype
    longest: int = 0  # keys of the longest row
    table: Tensor | None = None  # what the layer knows about positions, (., positions, n); not per row
    spare: Tensor | None = None  # target of the next reorder: the two buffers take turns

    @classmethod
    def ragged(cls, rows: int, device: torch.device | str | None = None) -> "LayerCache":
        """An empty cache of ``rows`` rows that grow one by one."""
        return cls(torch.zeros(rows, dtype=torch.int64, device=device))

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add (R, H, n, D) keys and values to all rows; they must share a length."""
        if not isinstance(self.lengths, int):
            raise ValueError("rows of different lengths: use append_rows")
        end = self.lengths + keys.size(2)
        buffer = self._room(keys, keys.size(0), end)
        buffer[0, :, :, self.lengths : end] = keys
        buffer[1, :, :, self.lengths : end] = values
        self.lengths = self.longest = end

    def append_rows(self, rows: Tensor | None, keys: Tensor, values: Tensor) -> None:
        """Add one key and value (m, H, 1, D) to each of ``rows`` (m,) int64, no row twice; None means all rows."""
        if isinstance(self.lengths, int):
            raise ValueError("rows share a length: use append, or a ragged cache")
        if rows is None:
            rows = torch.arange(self.lengths.numel(), device=keys.device)
        place = self.lengths[rows]
        longest = max(self.longest, int(place.max()) + 1)
        buffer = self._room(keys, self.lengths.numel(), longest)
        buffer[0][rows, :, place] = keys.squeeze(2)
        buffer[1][rows, :, place] = values.squeeze(2)
        self.lengths = self.lengths.index_add(0, rows, torch.ones_like(rows))
        self.longest = longest

    def fill(self, keys: Tensor, values: Tensor, lengths: Tensor | None = None) -> None:
        """Start with (R, H, n, D) keys and values; row r keeps the first ``lengths[r]`` (int64) of them, or all.

        Raises:
            ValueError: there are keys already, or lengths are missing in a ragged cache.
        """
        if self.longest:
            raise ValueError("only an empty cache can be filled")
        if lengths is None and not isinstance(self.lengths, int):
            raise ValueError("a ragged cache is filled with the lengths of its rows")
        used = keys.size(2)
        buffer = self._room(keys, keys.size(0), used)
        buffer[0, :, :, :used] = keys
        buffer[1, :, :, :used] = values
        self.lengths = used if lengths is None else lengths.clone()
        self.longest = used if lengths is None else int(lengths.max())

    def select_rows(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | int]:
        """keys and values (m, H, t, D) and lengths of ``rows`` (m,), or of all rows without copying anything."""
        assert self.buffer is not None
        used = self.buffer[:, :, :, : self.longest]
        if rows is None:
            return used[0], used[1], self.lengths
        lengths = self.lengths if isinstance(self.lengths, int) else self.lengths[rows]
        return used[0].index_select(0, rows), used[1].index_select(0, rows), lengths

    def reorder(self, new_order: Tensor) -> None:
        """Row i becomes the old row ``new_order[i]``; rows may be dropped or doubled."""
        count = new_order.numel()
        if count == self._rows() and torch.equal(new_order, torch.arange(count, device=new_order.device)):
            return
        if not isinstance(self.lengths, int):
            self.lengths = self.lengths.index_select(0, new_order)
            self.longest = int(self.lengths.max()) if count else 0
        if self.buffer is None:
            return
        two, _, heads, capacity, dim = self.buffer.shape
        target = self.spare
        if target is None or target.size(1) != count or self.buffer.requires_grad:
            target = self.buffer.new_zeros(two, count, heads, capacity, dim)
        used = slice(self._first(), self.longest)
        for kind in (0, 1):
            target[kind, :, :, used] = self.buffer[kind, :, :, used].index_select(0, new_order)
        self.buffer, self.spare = target, self.buffer

    def _first(self) -> int:
        """The first slot in use."""
        return 0

    def _rows(self) -> int | None:
        if self.buffer is not None:
            return self.buffer.size(1)
        return None if isinstance(self.lengths, int) else self.lengths.numel()

    def _room(self, like: Tensor, rows: int, end: int) -> Tensor:
        """The buffer, with room for ``end`` keys such as ``like`` (., H, ., D) in each row."""
        capacity = 0 if self.buffer is None else self.buffer.size(3)
        if self.buffer is None or end > capacity:
            grown = like.new_zeros(2, rows, like.size(1), max(_FIRST, 2 * capacity, end), like.size(3))
            if self.buffer is not None:
                grown[:, :, :, : self.longest] = self.buffer[:, :, :, : self.longest]
            self.buffer, self.spare = grown, None
        return self.buffer

    def size_bytes(self) -> int:
        return sum(one.nbytes for one in (self.buffer, self.spare, self.table) if one is not None)


@dataclass
class WindowCache(LayerCache):
    """A layer whose queries see ``window`` keys at most: older ones go. Rows share a length (of what is kept).

    The buffer holds twice the window, and keys move once in a window.
    """

    window: int = 1

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add (R, H, n, D) keys and values to all rows; the last ``window`` stay."""
        assert isinstance(self.lengths, int)
        added = min(keys.size(2), self.window)
        keep = min(self.lengths, self.window - added)
        buffer = self.buffer
        if buffer is None or self.longest + added > buffer.size(3):
            buffer = self._move(keys, keep, added)
        end = self.longest + added
        buffer[0, :, :, self.longest : end] = keys[:, :, keys.size(2) - added :]
        buffer[1, :, :, self.longest : end] = values[:, :, values.size(2) - added :]
        self.longest, self.lengths = end, keep + added

    def fill(self, keys: Tensor, values: Tensor, lengths: Tensor | None = None) -> None:
        """Start with (R, H, n, D) keys and values, of which the last ``window`` stay."""
        if self.longest or lengths is not None:
            raise ValueError("only an empty cache can be filled, with rows of one length")
        self.append(keys, values)

    def select_rows(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | int]:
        """keys and values (R, H, t, D) and their number t; ``rows`` must be None."""
        assert self.buffer is not None and rows is None
        used = self.buffer[:, :, :, self._first() : self.longest]
        return used[0], used[1], self.lengths

    def _first(self) -> int:
        assert isinstance(self.lengths, int)
        return self.longest - self.lengths

    def _move(self, like: Tensor, keep: int, added: int) -> Tensor:
        """A buffer with room for ``added`` more keys behind the last ``keep``, which stand at its start."""
        rows, heads, _, dim = like.shape
        old, start = self.buffer, self.longest - keep
        capacity = 0 if old is None else old.size(3)
        if old is None or keep + added > capacity or (keep > start and capacity < 2 * self.window):
            capacity = max(min(max(_FIRST, 2 * capacity), 2 * self.window), keep + added)
            self.buffer, self.spare = like.new_zeros(2, rows, heads, capacity, dim), None
        assert self.buffer is not None
        if old is not None and keep:
            kept = old[:, :, :, start : self.longest]
            self.buffer[:, :, :, :keep] = kept.clone() if self.buffer is old else kept
        self.longest = keep
        return self.buffer
