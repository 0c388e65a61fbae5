"""Texts as rows of dictionary indices, cut to the length of a model."""

import itertools
from collections.abc import Sequence

import numpy as np

from fairseq_efficient.text.classification.read import Labelled
from fairseq_efficient.text.subwords import Subwords
from fairseq_efficient.text.symbols import EOS


class Coder:
    """Texts -> rows of dictionary indices, EOS last, cut so that a row with its special tokens fits.

    Pairs are cut longest first, ending with ``max_tokens - 3`` (4 with a separator) pieces in all.
    """

    def __init__(
        self, subwords: Subwords, table: np.ndarray, dtype: np.dtype, max_tokens: int, separator: bool | None
    ) -> None:
        self.subwords, self.table, self.dtype = subwords, table, dtype
        self.separator = subwords.kind != "WordPiece" if separator is None else separator
        self.max_tokens = max_tokens

    def encode(self, items: Sequence[Labelled]) -> list[tuple[list[np.ndarray], int]]:
        """Rows of each item's texts, and how many tokens were cut off them."""
        texts = list(itertools.chain.from_iterable(item.texts for item in items))
        rows = iter([self.table[ids].astype(self.dtype) for ids in self.subwords.encode_ids(texts)])
        return [self._fit([next(rows) for _ in item.texts]) for item in items]

    def _fit(self, rows: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
        end = self.dtype.type(EOS)
        lengths = [len(row) for row in rows]
        kept = longest_first(lengths, self.max_tokens - 1 - len(rows) - (len(rows) == 2 and self.separator))
        return [np.append(row[:size], end) for row, size in zip(rows, kept, strict=True)], sum(lengths) - sum(kept)


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths of one row or two that fit into ``room``: tokens go one by one from the longer row (from the second, if
    they are equal)."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    return [min(first, max(room - room // 2, room - second)), min(second, max(room // 2, room - first))]
