"""A language model must not see what it predicts: checked by changing later tokens and looking at earlier outputs."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError

LENGTH, PLACES = 48, (1, 2, 7, 24, 47)


def check_causality(model: Any, types: int, first_type: int = 4) -> float:
    """Run the model with two continuations after each of several places; a second at most.

    Dropout is off. Boundaries that are sampled are sampled in both runs from the same noise, and thresholded ones are
    checked too. Leaves the mode of the model and torch's generators as they were.

    Args:
        types: dictionary size; ``first_type``: the first id that is no special symbol.

    Returns:
        Seconds it took.

    Raises:
        UserError: an output depends on a later token.
    """
    start = time.monotonic()
    device = next(model.parameters()).device
    low = min(first_type, types - 1)

    with _undisturbed(model, device):
        torch.manual_seed(0)
        base, *others = torch.randint(low, types, (1 + len(PLACES), 1, LENGTH)).to(device)
        for sample in (False, True):
            expected = _logits(model, base, sample)
            for place, other in zip(PLACES, others, strict=True):
                changed = torch.cat([base[:, :place], other[:, place:]], 1)
                found = _logits(model, changed, sample)
                gap = (found[:, :place] - expected[:, :place]).abs().amax(-1)[0]
                if not bool((gap <= _tolerance(expected)).all()):
                    seen = int((~(gap <= _tolerance(expected))).nonzero()[0])
                    raise UserError(
                        f"the model is not causal: its output at token {seen} changes with tokens from {place} on "
                        f"(by {float(gap[seen]):.3g}); --check-causality never trains it all the same"
                    )
    return time.monotonic() - start


def _tolerance(logits: Tensor) -> float:
    """Other tokens later may change the order of sums, not more."""
    scale = max(float(logits.abs().max()), 1.0)
    return scale * (1e-4 if logits.dtype in (torch.float32, torch.float64) else 0.05)


def _logits(model: Any, tokens: Tensor, sample: bool) -> Tensor:
    torch.manual_seed(2)
    logits: Tensor = model(tokens, sample_boundaries=sample)[0]
    return logits


@contextlib.contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    training = model.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)
