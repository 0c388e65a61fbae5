"""Gumbel-softmax step by step (Jang et al. 2017, arXiv 1611.01144, equations 1 and 2). Reference."""

import torch
from torch import Tensor

from fairseq_efficient.precision import wide, wide_dtype


def gumbel_like(logits: Tensor) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.relaxed_onehot.fast.gumbel_like`."""
    uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device).clamp(1e-300, 1 - 1e-16)
    kind = wide_dtype(logits.dtype)
    return (-torch.log(-torch.log(uniform))).to(kind)


def relaxed_onehot(logits: Tensor, temperature: float = 1.0, hard: bool = True, noise: Tensor | None = None) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.relaxed_onehot.fast.relaxed_onehot`."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be greater than 0")
    scores = wide(logits)
    if noise is not None:
        scores = scores + noise
    soft = torch.softmax(scores / temperature, -1)
    if not hard:
        return soft
    chosen = torch.nn.functional.one_hot(scores.argmax(-1), scores.size(-1)).to(soft.dtype)
    return chosen + (soft - soft.detach())
