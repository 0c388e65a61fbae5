"""The published implementation's mask, applied after the softmax; for comparison with its models only.

It differs from equation 3 where scores are extreme: what lies in the columns but outside the span takes part in the
softmax, and where that has nearly all of the mass, rows no longer sum to 1. How many columns there are therefore
changes the result.
"""

import torch
from torch import Tensor

from fairseq_efficient.ops.common import check_keys
from fairseq_efficient.ops.span_attention.common import check_arguments, soft_mask, span_width
from fairseq_efficient.precision import wide_dtype

_STEP = 64  # columns by which the published code trims
_EPS = 1e-8


def published_columns(span: float, ramp: int, most: int) -> int:
    """S', how many distances the published code computes in a layer whose longest span this is."""
    seen = span_width(span, ramp, most)
    return most - _STEP * (min(most - 1, most - seen) // _STEP)


def masked_after_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor,
    ramp: int = 32,
    *,
    constant: tuple[Tensor, Tensor] | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """``softmax(scores) * m / (sum + 1e-8)`` over the distances of ``positions`` and the constant keys (unmasked).

    Arguments as of :func:`~fairseq_efficient.ops.span_attention.span_attention`; positions are cut to the columns that
    take part. All keys at once, by plain autograd.
    """
    check_arguments(q, k, v, positions, spans, ramp, constant, dropout_p)
    check_keys(q, k)
    columns, queries, keys = positions.size(0), q.size(2), k.size(2)
    distance = torch.arange(keys - queries, keys, device=q.device).unsqueeze(1) - torch.arange(keys, device=q.device)
    index = (distance - 1).clamp(0, columns - 1)
    q = q * (q.size(3) ** -0.5 if scale is None else scale)
    by_distance = torch.matmul(q, positions.to(q.dtype).t())
    scores = torch.matmul(q, k.transpose(2, 3)) + by_distance.gather(3, index.expand(*q.shape[:2], -1, -1))
    scores = scores.masked_fill((distance < 1) | (distance > columns), float("-inf"))
    mask = soft_mask(spans, ramp, columns)
    mask = mask.unsqueeze(1) if spans.dim() == 1 else mask  # (H or 1, 1, S) or (B, H, M, S)
    mask = mask.expand(*q.shape[:3], columns).gather(3, index.expand(*q.shape[:2], -1, -1))
    if constant is not None:
        scores = torch.cat([scores, torch.matmul(q, constant[0].to(q.dtype).transpose(1, 2))], 3)
        mask = torch.cat([mask, mask.new_ones(*q.shape[:3], constant[0].size(1))], 3)
        v = torch.cat([v, constant[1].to(v.dtype).expand(v.size(0), -1, -1, -1)], 2)
    blind = scores.eq(float("-inf")).all(3, keepdim=True)
    probs = scores.masked_fill(blind, 0.0).softmax(-1, dtype=wide_dtype(q.dtype)).masked_fill(blind, 0.0) * mask
    probs = probs / (probs.sum(-1, keepdim=True) + _EPS)
    return torch.matmul(torch.dropout(probs.to(q.dtype), dropout_p, dropout_p > 0), v)
