"""The two cost models, and the argument checks of both implementations."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

LOGIT = 80.0  # what a logit costs beside its product on CPUs, measured by scripts/bench/par_search.py


class Costs(NamedTuple):
    """Cost of a partition, times the number of all tokens.

    The head of the first c types costs ``head_size * c + head * c * mass``; tail i (from 0) of n types costs
    ``mass * (once[i] + each[i] * n)``; ``mass``: tokens of the types in the bin.
    """

    head_size: float
    head: float
    constant: float
    once: list[float]
    each: list[float]


def band_width(dim: int, factor: float, number: int) -> int:
    """Channels of band ``number``, 0 for the head, of an adaptive softmax."""
    return max(1, int(dim // factor**number))


def cost_model(total: float, tails: int, dim: int | None, factor: float, logit: float) -> Costs:
    """See :func:`fairseq_efficient.ops.optimal_cutoffs.fast.optimal_cutoffs`; ``total``: number of all tokens."""
    if dim is None:
        return Costs(0.0, 1.0, 0.0, [0.0] * tails, [1.0] * tails)
    widths = [band_width(dim, factor, tail + 1) for tail in range(tails)]
    head = (dim + logit) * total
    return Costs(head, 0.0, tails * head, [float(dim * width) for width in widths], [width + logit for width in widths])


def check_arguments(
    counts: np.ndarray, clusters: int, dim: int | None, factor: float, smallest_head: int, logit: float
) -> np.ndarray:
    """(N + 1,) float64: tokens of the first 0, 1, ... N types."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iuf":
        raise ValueError(f"counts: one number for each type expected, got {counts.dtype} of shape {counts.shape}")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("counts: numbers of at least 0 expected")
    if not counts.sum() > 0:
        raise ValueError("counts: all are 0")
    if clusters < 1:
        raise ValueError(f"clusters {clusters}: must be at least 1")
    if smallest_head < 1:
        raise ValueError(f"smallest_head {smallest_head}: must be at least 1")
    if smallest_head + clusters - 1 > len(counts):
        raise ValueError(f"clusters {clusters}: more than {len(counts)} types can fill")
    if dim is not None and dim < 1:
        raise ValueError(f"dim {dim}: must be at least 1")
    if not factor >= 1:
        raise ValueError(f"factor {factor}: must be at least 1")
    if not 0 <= logit < np.inf:
        raise ValueError(f"logit {logit}: must be at least 0")
    return np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])


def check_cutoffs(cutoffs: list[int], types: int) -> list[int]:
    """[0, *cutoffs, types], which must rise."""
    edges = [0, *cutoffs, types]
    if any(one >= other for one, other in pairwise(edges)):
        raise ValueError(f"cutoffs {cutoffs}: must rise, between 0 and {types}")
    return edges
