"""Span attention with a position vector looked up for every pair of query and key, over all keys at once (reference;
Sukhbaatar et al. 2019, equations 1 to 5). Written for reading, in the precision of its inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_efficient.ops.common import check_keys
from fairseq_efficient.ops.span_attention.common import check_arguments, soft_mask
from fairseq_efficient.precision import wide_dtype


def span_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor | None = None,
    ramp: int = 32,
    *,
    known_spans: Sequence[float] | None = None,
    constant: tuple[Tensor, Tensor] | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.span_attention.fast.span_attention`."""
    check_arguments(q, k, v, positions, spans, ramp, constant, dropout_p)
    check_keys(q, k)
    most, queries, keys = positions.size(0), q.size(2), k.size(2)
    distance = torch.arange(keys - queries, keys).unsqueeze(1) - torch.arange(keys)
    distance = distance.to(q.device)  # (M, K); a token does not see itself
    visible = (distance >= 1) & (distance <= most)
    index = (distance - 1).clamp(0, most - 1)
    mask = torch.ones(1, 1, 1, most, dtype=q.dtype, device=q.device)
    if spans is not None:
        mask = soft_mask(spans, ramp, most).to(wide_dtype(q.dtype))
        mask = mask[None, :, None] if spans.dim() == 1 else mask  # (1, H or 1, 1, S) or (B, H, M, S)
    mask = mask.expand(*mask.shape[:2], queries, most).gather(3, index.expand(*mask.shape[:2], -1, -1))
    visible = visible & (mask > 0)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, positions[index])
    scores = scores * (q.size(3) ** -0.5 if scale is None else scale) + torch.where(visible, mask, 1.0).log()
    scores = scores.masked_fill(~visible, float("-inf"))
    if constant is not None:
        more = torch.einsum("bhid,hjd->bhij", q, constant[0]) * (q.size(3) ** -0.5 if scale is None else scale)
        scores = torch.cat([scores, more], 3)
        v = torch.cat([v, constant[1].expand(v.size(0), -1, -1, -1)], 2)
    blind = scores.eq(float("-inf")).all(3, keepdim=True)  # a query that sees nothing gives zero, not NaN
    probs = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    probs = torch.dropout(probs, dropout_p, dropout_p > 0)
    return torch.einsum("bhij,bhjd->bhid", probs.to(q.dtype), v)


def span_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    spans: Tensor | None = None,
    ramp: int = 32,
    *,
    constant: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.span_attention.fast.span_attention_step`."""
    k, v = (torch.cat([x, torch.zeros_like(q)], 2) for x in (k, v))  # the query's own place, which it does not see
    return span_attention(q, k, v, positions, spans, ramp, constant=constant, scale=scale)
