"""Which updates are of the weights and which of the architecture: a function of their number, nothing to save."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fairseq_efficient.errors import UserError

WEIGHTS, ARCHITECTURE = "weights", "architecture"
LEAST_SHARE = 0.001


@dataclass(frozen=True)
class Phases:
    """``warmup`` updates of the weights; then of every 1 / share updates the last one is of the architecture."""

    warmup: int
    share: Fraction

    @classmethod
    def of_flags(cls, warmup: int, share: float) -> "Phases":
        """UserError for flags out of range."""
        if warmup < 0:
            raise UserError(f"--arch-warmup-updates {warmup}: must not be negative")
        if not LEAST_SHARE <= share <= 1 - LEAST_SHARE:
            raise UserError(f"--arch-update-share {share}: must be between {LEAST_SHARE:g} and {1 - LEAST_SHARE:g}")
        return cls(warmup, Fraction(share).limit_denominator(1000))

    def architecture_updates(self, updates: int) -> int:
        """How many of the first ``updates`` updates are of the architecture."""
        return math.floor(max(0, updates - self.warmup) * self.share)

    def phase(self, update: int) -> str:
        """Of update ``update``, counted from 0."""
        of_architecture = self.architecture_updates(update + 1) > self.architecture_updates(update)
        return ARCHITECTURE if of_architecture else WEIGHTS

    def of_architecture(self, start: int, weight_updates: int) -> np.ndarray:
        """For each update from ``start`` on, until ``weight_updates`` of the weights are done: whether it is of the
        architecture. The last one is of the weights."""
        most = math.ceil((weight_updates + 1) / (1 - self.share)) + 1
        after = np.maximum(np.arange(start, start + most + 1) - self.warmup, 0)
        done = after * self.share.numerator // self.share.denominator
        found = np.diff(done) > 0
        end = int(np.searchsorted(np.cumsum(~found), weight_updates))
        return found[: end + 1]
