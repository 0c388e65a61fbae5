"""What both implementations of the operator share: its result and its argument checks."""

import math
from typing import NamedTuple

from torch import Tensor


class Pooled(NamedTuple):
    """Result of :func:`topk_halving`. B batch, k' = min(k, n) kept slots, C channels.

    With n <= k these are the inputs as they came (index counts the positions, pads included).
    """

    values: Tensor  # (B, k', C), in the dtype of the input values; masked slots are zero
    scores: Tensor  # (B, k'), blended scores, fp32 or better; masked slots are zero
    padding_mask: Tensor | None  # (B, k') True = pad, or None if no input was padded
    index: Tensor  # type: ignore[assignment]  # (B, k') int64: position of the input that won every round of its slot; -1 if masked


def num_rounds(n: int, k: int) -> int:
    """Rounds of halving that bring n slots to k: ceil(log2(n / k)), 0 if n <= k."""
    return 0 if n <= k else math.ceil(math.log2(n / k) - 1e-12)


def check_arguments(values: Tensor, scores: Tensor, k: int, padding_mask: Tensor | None, base: float) -> None:
    """Raises ValueError for shapes or values that :func:`fast.topk_halving` does not take."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not base > 1:
        raise ValueError(f"base must be greater than 1, got {base}")
    if values.dim() != 3 or scores.shape != values.shape[:2]:
        shapes = f"{tuple(values.shape)}, {tuple(scores.shape)}"
        raise ValueError(f"values (B, n, C) and scores (B, n) expected, got {shapes}")
    if padding_mask is not None and padding_mask.shape != scores.shape:
        raise ValueError(f"padding_mask must be {tuple(scores.shape)}, got {tuple(padding_mask.shape)}")
