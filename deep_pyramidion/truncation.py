"""Cutting long token rows: aligned, the last token (EOS) kept, and counted."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def align_left(tokens: Tensor, pad: int) -> tuple[Tensor, Tensor | None, int, int]:
    """Move each row's tokens to the left and drop columns that are pad in every row (one host sync).

    Args:
        tokens: (B, T) ids, pads anywhere.

    Returns:
        tokens (B, T'), T' >= 1; the gather order (B, T) if rows moved, else None; the shortest and longest row.
    """
    is_pad = tokens.eq(pad)
    lengths = tokens.size(1) - is_pad.sum(1)
    crooked = (is_pad[:, :-1] & ~is_pad[:, 1:]).any().to(lengths)
    shortest, longest, moved = torch.stack([lengths.min(), lengths.max(), crooked]).tolist()
    order = None
    if moved:
        order = is_pad.to(torch.uint8).argsort(dim=1, stable=True)
        tokens = tokens.gather(1, order)
    return tokens[:, : max(longest, 1)], order, shortest, longest


def cut_keep_last(tokens: Tensor, limit: int, pad: int) -> tuple[Tensor, Tensor]:
    """Cut left-aligned rows (B, T) to ``limit`` columns; rows that were longer end in their last token (EOS).

    Returns:
        tokens (B, min(limit, T)) and the column each came from, int64.
    """
    limit = min(limit, tokens.size(1))
    lengths = tokens.ne(pad).sum(1, keepdim=True)
    columns = torch.arange(limit, device=tokens.device).expand(tokens.size(0), -1).clone()
    columns[:, -1:] = torch.where(lengths > limit, lengths - 1, columns[:, -1:])
    return tokens.gather(1, columns), columns


class CutCounter:
    """Counts rows cut at run time and says so: at once, then whenever the count has doubled."""

    def __init__(self, what: str):
        self.what, self.count, self._next = what, 0, 1

    def add(self, rows: int, limit: int) -> None:
        self.count += rows
        if self.count >= self._next:
            self._next = 2 * self.count
            logger.warning(
                "%d %s(s) longer than the model's %d tokens were cut to that length, EOS kept (so far)",
                self.count,
                self.what,
                limit,
            )
