"""Chunked self-attention as one SDPA call over (batch x chunk): time and memory O(T * chunk_size), no T x T tensor."""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def chunk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    padding_mask: Tensor | None = None,
    overlap: int = 0,
    shift: int = 0,
    dropout_p: float = 0.0,
) -> Tensor:
    """Self-attention within chunks: position t belongs to chunk ``(t + shift) // chunk_size``.

    Args:
        q, k, v: (B, T, H, D).
        chunk_size: tokens per chunk; with chunk_size >= T and no shift this is full attention.
        padding_mask: (B, T) bool, True = pad; pads are never attended to.
        overlap: keys seen beyond each border of the own chunk, 0 <= overlap <= chunk_size.
        shift: moves the borders left, 0 <= shift < chunk_size (half a chunk in every other layer lets chunks mix).
        dropout_p: dropout on attention weights; above 0 the weights are materialised (T x chunk_size).

    Returns:
        (B, T, H, D); a query that sees no real key gives zero.

    Raises:
        ValueError: chunk_size < 1, overlap or shift out of range.
    """
    if chunk_size < 1 or not 0 <= overlap <= chunk_size or not 0 <= shift < chunk_size:
        raise ValueError(
            f"chunk_size {chunk_size} >= 1, 0 <= overlap {overlap} <= chunk_size, 0 <= shift {shift} < chunk_size"
        )
    batch, length, heads, dim = q.shape
    if length + shift <= chunk_size:
        return _attend(q, k, v, padding_mask, dropout_p)
    tail = -(length + shift) % chunk_size
    count = (length + shift + tail) // chunk_size
    if shift or tail or (overlap and padding_mask is None):
        padding_mask = q.new_zeros(batch, length, dtype=torch.bool) if padding_mask is None else padding_mask
    if padding_mask is not None:
        padding_mask = pad(padding_mask, (shift + overlap, tail + overlap), value=True)
        padding_mask = padding_mask.unfold(1, chunk_size + 2 * overlap, chunk_size).flatten(0, 1)
    q = _pad_time(q, shift, tail).reshape(batch * count, chunk_size, heads, dim)
    k = _windows(_pad_time(k, shift + overlap, tail + overlap), chunk_size, overlap)
    v = _windows(_pad_time(v, shift + overlap, tail + overlap), chunk_size, overlap)
    out = _attend(q, k, v, padding_mask, dropout_p)
    return out.reshape(batch, count * chunk_size, heads, dim)[:, shift : shift + length]


def _pad_time(x: Tensor, left: int, right: int) -> Tensor:
    return pad(x, (0, 0, 0, 0, left, right)) if left or right else x.contiguous()


def _windows(x: Tensor, chunk_size: int, overlap: int) -> Tensor:
    """(B, count * chunk + 2 * overlap, H, D) -> (B * count, chunk + 2 * overlap, H, D)."""
    heads, dim = x.shape[2:]
    if not overlap:
        return x.reshape(-1, chunk_size, heads, dim)
    window = chunk_size + 2 * overlap
    return x.unfold(1, window, chunk_size).permute(0, 1, 4, 2, 3).reshape(-1, window, heads, dim)


def _attend(q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None, dropout_p: float) -> Tensor:
    """Unmasked or key-masked attention, (N, T, H, D) each; padding_mask (N, S)."""
    mask = empty = None
    if padding_mask is not None:
        empty = padding_mask.all(1, keepdim=True)
        mask = (~padding_mask | empty)[:, None, None, :]  # a row without any key would be NaN on some backends
        mask = mask.expand(-1, 1, q.size(1), -1)
    out = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout_p
    ).transpose(1, 2)
    return out if empty is None else out.masked_fill(empty[:, :, None, None], 0.0)
