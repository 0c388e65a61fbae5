"""What the predictor is taught, and counts of what it does. Masks: True = pad."""

from typing import Any

import torch
from torch import Tensor

from dynamic_pooling.boundaries import Boundaries, BoundaryOptions
from fairseq_efficient.losses import binomial_nll, boundary_bce, entropy_spikes, ratio_loss
from fairseq_efficient.precision import wide


def boundary_loss(
    options: Any, found: Boundaries, logits: Tensor, targets: Tensor | None, padding_mask: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Loss summed over real tokens, and the reference (B, T) that the predictor is taught, if there is one.

    Args:
        options: HourglassOptions. logits: (B, T, V), the language model's. targets: (B, T), a tokenizer's boundaries.
    """
    kind = options.boundaries.type
    if kind == "gumbel":
        trials = (~padding_mask).sum(1)
        if options.rate_loss == "binomial":
            return {"boundary": binomial_nll(wide(found.values).sum(1), trials, options.prior).sum()}, None
        assert found.probability is not None
        ratio = ratio_loss(found.values, found.probability, padding_mask, options.prior)
        return {"boundary": (ratio * trials).sum()}, None
    if kind == "entropy":
        reference: Tensor | None = entropy_spikes(logits, options.spikes_left)
    elif kind == "unigram":
        reference = None if targets is None else targets.bool()
    else:
        return {}, None
    if reference is None:
        return {}, None
    assert found.logits is not None
    return {"boundary": boundary_bce(found.logits, reference, padding_mask, twice=options.loss_twice)}, reference


@torch.no_grad()
def statistics(
    options: BoundaryOptions,
    tokens: Tensor,
    found: Boundaries,
    reference: Tensor | None,
    tokenizer: Tensor | None,
    padding_mask: Tensor,
) -> dict[str, Tensor]:
    """Counts over real tokens, which batches and ranks add up: tokens, closed segments, sum of probabilities, and how
    often boundaries agree with the predictor's reference, with spaces, and with a tokenizer."""
    real = ~padding_mask
    closed = found.values.bool()
    stats = {"tokens": real.sum(), "closed": closed.sum()}
    if found.probability is not None and found.logits is not None:
        stats["probability"] = (found.probability * real).sum()
        if options.type != "gumbel":
            closed = (found.logits > 0) & real  # also where boundaries were forced
    closing = torch.tensor(options.closing, device=tokens.device)
    references = {"boundary": reference, "unigram": tokenizer}
    if options.type != "whitespaces" and len(options.closing):
        references["spaces"] = torch.isin(tokens, closing)
    for name, given in references.items():
        if given is not None:
            given = given.bool() & real
            stats[f"{name}_both"] = (closed & given).sum()
            stats[f"{name}_found"], stats[f"{name}_given"] = closed.sum(), given.sum()
    return stats
