"""Upsampling by confidence (after H-Net, arXiv 2507.07955, section 2.2): gradient to the predictor at every token."""

import torch
from torch import Tensor

_LEAST = 1e-4  # of a probability: keeps logarithms finite


def closing_probability(probability: Tensor, ids: Tensor, closed: Tensor, columns: int) -> Tensor:
    """How sure the predictor was of the boundary that closed each segment.

    Args:
        probability: (B, T). ids: (B, T), segments closed up to each token, itself included. closed: (B, T) bool.

    Returns:
        (B, columns): 1 for the null segment in column 0, 0 behind a row's last segment.
    """
    target = torch.where(closed, ids, columns)
    out = probability.new_zeros(probability.size(0), columns + 1).scatter(1, target, probability)[:, :columns]
    first = torch.arange(columns, device=out.device) == 0
    return torch.where(first, torch.ones_like(out), out)


def smooth_segments(segments: Tensor, probability: Tensor) -> Tensor:
    """Running mean ``m_j = p_j s_j + (1 - p_j) m_{j-1}`` along the segments, ``m_0 = s_0``.

    Args:
        segments: (B, S, D). probability: (B, S), from :func:`closing_probability`.

    Its weights are (B, S, S): the recurrence as one product of matrices, small beside attention over the same segments.
    """
    p = probability.clamp(max=1 - _LEAST)
    p = torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], 1)
    log_left = torch.cat([torch.zeros_like(p[:, :1]), torch.log1p(-p[:, 1:])], 1).cumsum(1)
    # weight of s_k in m_j: p_k times what every segment after k up to j left over
    weights = (log_left.unsqueeze(2) - log_left.unsqueeze(1)).tril().exp().tril() * p.unsqueeze(1)
    return torch.bmm(weights.to(segments.dtype), segments)


def smooth_step(segment: Tensor, before: Tensor, probability: Tensor) -> Tensor:
    """One step of :func:`smooth_segments`: (m, D), (m, D), (m,) -> (m, D)."""
    p = probability.clamp(max=1 - _LEAST).to(segment.dtype).unsqueeze(-1)
    return p * segment + (1 - p) * before


def confidence(probability: Tensor, closed: Tensor) -> Tensor:
    """A factor of exactly 1 for each token (B, T) whose gradient is that of the probability of what was decided."""
    chosen = torch.where(closed, probability, 1 - probability)
    return 1 + (chosen - chosen.detach())
