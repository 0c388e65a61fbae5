"""Chunked (blockwise) self-attention by a full score matrix and a mask.

Reference; Pietruszka et al. 2022, section 4.
"""

import torch
from torch import Tensor


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
    """Same contract as :func:`fairseq_efficient.ops.chunk_attention.fast.chunk_attention`."""
    length, dim = q.size(1), q.size(3)
    position = torch.arange(length, device=q.device)
    start = (position + shift) // chunk_size * chunk_size - shift
    visible = (position >= start[:, None] - overlap) & (position < start[:, None] + chunk_size + overlap)
    visible = visible.unsqueeze(0) if padding_mask is None else visible & ~padding_mask[:, None, :]
    visible = visible.unsqueeze(1)  # (B or 1, 1, T, T)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / dim**0.5
    probs = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    probs = probs.masked_fill(~visible, 0.0)  # a query that sees nothing gives zero, not NaN
    probs = torch.dropout(probs, dropout_p, dropout_p > 0)
    return torch.einsum("bhts,bshd->bthd", probs, v)
