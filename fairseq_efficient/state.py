"""State of incremental decoding: dataclasses kept in fairseq's ``incremental_state``, which own their reordering.

Shapes: R rows (hypotheses), S sentences, H heads, D head dim, t tokens so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_efficient.modules.beam import reorder_sentences

_BLOCK = 32  # tokens by which a cache grows: at most this many slots are copied for nothing


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
