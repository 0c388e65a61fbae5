"""Gumbel-softmax that keeps one tensor for the backward, in fp32 or better whatever the model's precision."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_efficient.precision import wide, wide_dtype


def gumbel_like(logits: Tensor) -> Tensor:
    """Independent Gumbel(0, 1) noise of the shape of ``logits``, in fp32 or better, from torch's global generator.

    ``argmax(logits + noise)`` then is k with probability ``softmax(logits)[k]``, at any temperature.
    """
    kind = wide_dtype(logits.dtype)
    waiting = torch.empty(logits.shape, dtype=kind, device=logits.device).exponential_()
    # -log(Exp(1)) is Gumbel(0, 1); an exponential may be drawn as 0 exactly
    return waiting.clamp_(min=torch.finfo(kind).tiny).log_().neg_()


def relaxed_onehot(logits: Tensor, temperature: float = 1.0, hard: bool = True, noise: Tensor | None = None) -> Tensor:
    """A choice among the K entries of the last dimension (Jang et al. 2017, arXiv 1611.01144).

    Args:
        logits: (..., K), of any precision.
        temperature: of the relaxation; > 0. It does not change which entry is chosen.
        hard: exactly one 1 forward, the gradient of the relaxation backward (straight-through); else the relaxation.
        noise: (..., K) of :func:`gumbel_like` for a random choice; None: the largest logit, deterministic, the first
            of equals.

    Returns:
        (..., K), fp32 or better.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be greater than 0")
    scores = wide(logits)
    if noise is not None:
        scores = scores + noise
    if not hard:
        return torch.softmax(scores / temperature, -1)
    return _StraightThrough.apply(scores, temperature)


def _one_of(scores: Tensor) -> Tensor:
    """Exactly one 1 in each row of the last dimension: at the first of the largest."""
    if scores.size(-1) == 2:  # argmax over two is slow on the CPU
        second = scores[..., 1:] > scores[..., :1]
        return torch.cat([~second, second], -1).to(scores.dtype)
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


class _StraightThrough(torch.autograd.Function):
    """``hard + (soft - soft.detach())``, without keeping ``hard``, scores or noise."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.temperature = temperature
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.softmax(scores / temperature, -1))
        return _one_of(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (soft,) = ctx.saved_tensors
        weighted = soft * grads[0]
        return (weighted - soft * weighted.sum(-1, keepdim=True)) / ctx.temperature, None
