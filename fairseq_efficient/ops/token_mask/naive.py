"""Attention over kept keys, and states of skipped tokens carried on, straight from the formulas. Reference."""

import torch
from torch import Tensor

from fairseq_efficient.ops.token_mask.common import MAX_EXPONENT, RULES
from fairseq_efficient.precision import wide_dtype


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    rule: str = "renorm",
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.token_mask.fast.masked_attention`."""
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not one of {', '.join(RULES)}")
    kind = wide_dtype(q.dtype)
    scores = torch.einsum("bthd,bshd->bhts", q.to(kind), k.to(kind)) / q.size(-1) ** 0.5
    real = torch.ones_like(keep, dtype=torch.bool) if padding_mask is None else ~padding_mask
    kept = (real & (keep > 0) if rule == "renorm" else real)[:, None, None, :]
    top = scores.detach().masked_fill(~kept, -torch.inf).amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)  # no key is kept
    weights = (scores - top).clamp(max=MAX_EXPONENT).exp() * real[:, None, None, :]
    mask = keep.to(kind)[:, None, None, :]
    if rule == "renorm":
        weights = weights * mask
    total = weights.sum(-1, keepdim=True)
    probs = torch.where(total == 0, 0.0, weights / total.masked_fill(total == 0, 1.0))  # no key is kept: no gradient
    if rule == "postmult":
        probs = probs * mask
    probs = torch.dropout(probs, dropout_p, dropout_p > 0)
    return torch.einsum("bhts,bshd->bthd", probs, v.to(kind)).to(q.dtype)


def masked_update(new: Tensor, old: Tensor, keep: Tensor) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.token_mask.fast.masked_update`."""
    keep = keep.unsqueeze(-1)
    return (new * keep + old * (1 - keep)).to(torch.promote_types(new.dtype, old.dtype))
