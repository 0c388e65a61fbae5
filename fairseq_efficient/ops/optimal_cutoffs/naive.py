"""Optimal cutoffs by dynamic programming over all pairs of cuts, O(K N^2). Reference."""

import numpy as np

from fairseq_efficient.ops.optimal_cutoffs.common import check_arguments, cost_model


def optimal_cutoffs(
    counts: np.ndarray,
    clusters: int,
    *,
    dim: int | None = None,
    factor: float = 4.0,
    smallest_head: int = 1,
    logit: float = 0.0,
) -> tuple[list[int], float]:
    """Same contract as :func:`fairseq_efficient.ops.optimal_cutoffs.fast.optimal_cutoffs`."""
    before = check_arguments(counts, clusters, dim, factor, smallest_head, logit)
    types, tails = len(counts), clusters - 1
    model = cost_model(before[-1], tails, dim, factor, logit)
    # best[c]: (cost of bins that end at c, their cutoffs)
    best = {
        c: (model.constant + model.head_size * c + model.head * c * before[c], [c])
        for c in range(smallest_head, types + 1)
    }
    for once, each in zip(model.once, model.each, strict=True):
        longer = {}
        for end in range(smallest_head, types + 1):
            options = [
                (cost + (before[end] - before[start]) * (once + each * (end - start)), [*cuts, end])
                for start, (cost, cuts) in best.items()
                if start < end
            ]
            if options:
                longer[end] = min(options)
        best = longer
    cost, cuts = best[types]
    return cuts[:-1], float(cost / before[-1] if dim is not None else cost)


def partition_cost(
    counts: np.ndarray, cutoffs: list[int], *, dim: int | None = None, factor: float = 4.0, logit: float = 0.0
) -> float:
    """Same contract as :func:`fairseq_efficient.ops.optimal_cutoffs.fast.partition_cost`."""
    edges = [0, *cutoffs, len(counts)]
    bins = [(edges[i + 1] - edges[i], float(sum(counts[edges[i] : edges[i + 1]]))) for i in range(len(edges) - 1)]
    if dim is None:
        return float(sum(size * mass for size, mass in bins))
    total = sum(mass for _, mass in bins)
    cost = float((bins[0][0] + len(cutoffs)) * (dim + logit))
    for number, (size, mass) in enumerate(bins[1:], start=1):
        width = max(1, int(dim // factor**number))
        cost += mass / total * (dim * width + size * (width + logit))
    return cost
