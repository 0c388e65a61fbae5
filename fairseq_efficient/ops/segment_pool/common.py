"""What both implementations share: the numbering of segments, the result and the argument checks.

B rows, T tokens, D channels. A boundary at t closes the segment that ends with token t. n_r: boundaries of row r, the
number of its closed segments; S = 1 + max n_r columns. Column 0 is the null group, column j + 1 the closed segment j.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SegmentPooled(NamedTuple):
    """Result of :func:`segment_pool`."""

    values: Tensor  # (B, S, D), in the dtype of ``hidden``; zero beyond the closed segments of a row
    counts: Tensor  # (B, S) int64: tokens in each column; 0 for the null group and for columns not in use
    lengths: Tensor  # (B,) int64: columns in use, 1 + n_r


class SegmentLayout(NamedTuple):
    """Result of :func:`segment_layout`. Pads stand behind the tokens of their row for all that counts in places."""

    ids: Tensor  # (B, T) int64, the inclusive ids of :func:`segment_ids`
    hard: Tensor  # (B, T) bool, False at pads
    place: Tensor  # (B, T) or (1, T) int64: where each token stands
    ends: Tensor  # (B, S) int64: the place behind the last token of each column
    counts: Tensor  # (B, S) int64, as in :class:`SegmentPooled`
    lengths: Tensor  # (B,) int64, as in :class:`SegmentPooled`
    tokens: Tensor  # (B * T,) int64: tokens of the flattened batch by place
    bags: Tensor  # (B * S + 1,) int64: where each column begins among them, and the end of the last
    padding_mask: Tensor | None


def hard_boundaries(boundaries: Tensor, padding_mask: Tensor | None) -> Tensor:
    """(B, T) bool, False at pads; a float boundary counts from 0.5."""
    hard = boundaries if boundaries.dtype == torch.bool else boundaries.detach() > 0.5
    return hard if padding_mask is None else hard & ~padding_mask


def segment_ids(boundaries: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Number the segments of each row from 0.

    Args:
        boundaries: (B, T) bool, or numbers with 1 for True: the token is the last of its segment.
        padding_mask: (B, T) bool, True = pad; pads close nothing.

    Returns:
        exclusive ids g (B, T) int64, the boundaries before t: the segment that t belongs to (closed if g < n_r);
        inclusive ids a (B, T) int64, the boundaries up to t: the column of the last segment closed at t or before it;
        counts n_r (B,) int64.
    """
    hard = hard_boundaries(boundaries, padding_mask)
    inclusive = hard.cumsum(1)
    counts = inclusive[:, -1] if hard.size(1) else inclusive.sum(1)
    return inclusive - hard.long(), inclusive, counts


def check_pool_arguments(
    hidden: Tensor,
    boundaries: Tensor,
    padding_mask: Tensor | None,
    kind: str,
    estimator: str,
    groups: int | None,
    null: Tensor | None,
) -> None:
    """Raises ValueError for shapes that :func:`fast.segment_pool` does not take."""
    if kind not in ("mean", "last"):
        raise ValueError(f"kind must be 'mean' or 'last', got {kind!r}")
    if estimator not in ("interior", "both"):
        raise ValueError(f"estimator must be 'interior' or 'both', got {estimator!r}")
    if kind == "last" and boundaries.requires_grad:
        raise ValueError("kind 'last' has no straight-through gradient: detach the boundaries or use kind 'mean'")
    if hidden.dim() != 3 or boundaries.shape != hidden.shape[:2]:
        shapes = f"{tuple(hidden.shape)}, {tuple(boundaries.shape)}"
        raise ValueError(f"hidden (B, T, D) and boundaries (B, T) expected, got {shapes}")
    if padding_mask is not None and padding_mask.shape != boundaries.shape:
        raise ValueError(f"padding_mask must be {tuple(boundaries.shape)}, got {tuple(padding_mask.shape)}")
    if groups is not None and groups < 0:
        raise ValueError(f"groups must not be negative, got {groups}")
    if null is not None and null.shape != hidden.shape[2:]:
        raise ValueError(f"null must be {tuple(hidden.shape[2:])}, got {tuple(null.shape)}")


def check_upsample_arguments(values: Tensor, ids: Tensor) -> None:
    """Raises ValueError unless values are (B, S, C) and ids (B, T) segments of them."""
    if values.dim() != 3 or ids.dim() != 2 or ids.size(0) != values.size(0):
        raise ValueError(f"values (B, S, D) and ids (B, T) expected, got {tuple(values.shape)}, {tuple(ids.shape)}")
