"""Auxiliary losses as pure functions, in fp32 or better whatever the model's precision. Masks: True = pad."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fairseq_efficient.precision import wide


def binomial_nll(ones: Tensor, trials: Tensor, rate: float) -> Tensor:
    """``-log Binomial(ones; trials, rate)`` for each row (Nawrot et al. 2023, equation 5; differentiable in ``ones``).

    Args:
        ones: (B,) counts, possibly with a gradient; trials: (B,) lengths; rate: in (0, 1).

    Returns:
        (B,), nats, >= 0.
    """
    ones = wide(ones)
    trials = trials.to(ones.dtype)
    zeros = trials - ones
    ways = torch.lgamma(trials + 1) - torch.lgamma(ones + 1) - torch.lgamma(zeros + 1)
    log_rate = torch.log(torch.tensor([rate, 1 - rate], dtype=ones.dtype, device=ones.device))
    return -(ways + ones * log_rate[0] + zeros * log_rate[1])


def ratio_loss(hard: Tensor, probability: Tensor, padding_mask: Tensor | None, rate: float) -> Tensor:
    """Ratio loss of H-Net (arXiv 2507.07955, section 2.3) for each row, least where the share of ones is ``rate``.

    ``N/(N-1) ((N-1) F G + (1-F)(1-G))`` with N = 1 / rate, F the share of hard ones, G the mean probability; its value
    there is 1.

    Args:
        hard, probability: (B, T); only the second gets a gradient. padding_mask: (B, T) or None.

    Returns:
        (B,).
    """
    probability = wide(probability)
    hard = hard.detach().to(probability.dtype)
    if padding_mask is None:
        share, mean = hard.mean(1), probability.mean(1)
    else:
        real = (~padding_mask).to(probability.dtype)
        count = real.sum(1).clamp(min=1)
        share, mean = (hard * real).sum(1) / count, (probability * real).sum(1) / count
    times = 1 / rate
    return times / (times - 1) * ((times - 1) * share * mean + (1 - share) * (1 - mean))


def boundary_bce(logits: Tensor, targets: Tensor, padding_mask: Tensor | None, twice: bool = False) -> Tensor:
    """Sum over real tokens of the binary cross-entropy between predicted and given boundaries.

    Args:
        logits, targets: (B, T). twice: the sigmoid is applied before the loss too, so that a probability can never be
            matched exactly (a fault of the original, kept for comparison).

    Returns:
        (), in nats.
    """
    logits = wide(logits)
    loss = binary_cross_entropy_with_logits(
        logits.sigmoid() if twice else logits, targets.to(logits.dtype), reduction="none"
    )
    return loss.sum() if padding_mask is None else loss.masked_fill(padding_mask, 0).sum()


def entropy_spikes(logits: Tensor, left: int) -> Tensor:
    """True where a next-token distribution has more entropy than each of the ``left`` before it (Nawrot et al. 2023).

    The first is always True; a tie is no spike.

    Args:
        logits: (B, T, V).

    Returns:
        (B, T) bool, without gradient. Values at pads are arbitrary.
    """
    with torch.no_grad():
        log_probs = torch.log_softmax(wide(logits.detach()), -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        spikes = torch.ones_like(entropy, dtype=torch.bool)
        for distance in range(1, min(left, entropy.size(1) - 1) + 1):
            spikes[:, distance:] &= entropy[:, distance:] > entropy[:, :-distance]
    return spikes
