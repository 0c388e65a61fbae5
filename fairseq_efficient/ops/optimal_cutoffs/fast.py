"""Optimal cutoffs in O(K N log N).

The cost of a tail, mass * (a + b * size), satisfies the quadrangle inequality, because mass and size both add up. So
the best start of the last tail moves right with its end, and the starts between two known ones lie between those:
each of log N rounds halves the distance between known ends and looks at N candidates in all, in a few numpy calls.
"""

import numpy as np

from fairseq_efficient.ops.optimal_cutoffs.common import check_arguments, check_cutoffs, cost_model


def optimal_cutoffs(
    counts: np.ndarray,
    clusters: int,
    *,
    dim: int | None = None,
    factor: float = 4.0,
    smallest_head: int = 1,
    logit: float = 0.0,
) -> tuple[list[int], float]:
    """Exactly cheapest partition of a vocabulary into ``clusters`` bins of consecutive ids, none of them empty.

    Two cost models. Without ``dim``: the sum over all bins, the head too, of types times tokens. With ``dim``, d: the
    multiply-adds of one token on average, ``(c_0 + J) d + sum_i p_i (d d_i + n_i d_i)``, for a head of c_0 types and
    J = clusters - 1 cluster logits, and tails of n_i types, probability p_i, width d_i = max(1, floor(d / factor^i)).
    With ``logit`` each logit costs so many more (``LOGIT`` on CPUs): its softmax, forward and backward, which in narrow
    bands takes longer than its product.

    Args:
        counts: (N,) tokens of each type, by id; need not fall, but then frequent types pay for their neighbours.
        clusters: bins, the head among them.
        smallest_head: types that the head must hold at least (special symbols).

    Returns:
        ``clusters - 1`` rising ids at which tails begin, as ``--adaptive-softmax-cutoff`` takes them, and the cost.

    Raises:
        ValueError: counts that are negative, not finite or all 0; more clusters than types; dim, factor or
            smallest_head below 1; logit below 0.
    """
    before = check_arguments(counts, clusters, dim, factor, smallest_head, logit)
    types = len(counts)
    model = cost_model(before[-1], clusters - 1, dim, factor, logit)
    ends = np.arange(types + 1, dtype=np.float64)
    costs = model.constant + model.head_size * ends + model.head * ends * before
    starts = []
    for tail, (once, each) in enumerate(zip(model.once, model.each, strict=True)):
        first = smallest_head + tail  # the first place at which the bins before can end
        asked = np.array([types]) if tail == clusters - 2 else np.arange(first + 1, types + 1)
        costs, chosen = _append_tail(costs, before, first, once, each, asked)
        starts.append(chosen)
    cutoffs: list[int] = []
    place = types
    for chosen in reversed(starts):
        place = int(chosen[place])
        cutoffs.insert(0, place)
    cost = float(costs[types])
    return cutoffs, cost / float(before[-1]) if dim is not None else cost


def partition_cost(
    counts: np.ndarray, cutoffs: list[int], *, dim: int | None = None, factor: float = 4.0, logit: float = 0.0
) -> float:
    """Cost of given cutoffs; models and arguments as for :func:`optimal_cutoffs`.

    Raises:
        ValueError: cutoffs that do not rise, or lie outside the vocabulary; see also there.
    """
    before = check_arguments(counts, len(cutoffs) + 1, dim, factor, 1, logit)
    edges = check_cutoffs(cutoffs, len(counts))
    model = cost_model(before[-1], len(cutoffs), dim, factor, logit)
    cost = model.constant + edges[1] * (model.head_size + model.head * before[edges[1]])
    for once, each, start, end in zip(model.once, model.each, edges[1:-1], edges[2:], strict=True):
        cost += (before[end] - before[start]) * (once + each * (end - start))
    return float(cost / before[-1] if dim is not None else cost)


def _append_tail(
    costs: np.ndarray, before: np.ndarray, first: int, once: float, each: float, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest bins with one tail more that end at each of ``ends`` (elsewhere: infinite), and where that tail starts.

    costs: (N + 1,) of the bins before, which end at ``first`` or later.
    """
    types, count = len(costs) - 1, len(ends)
    found, chosen = np.full(types + 1, np.inf), np.zeros(types + 1, np.int64)
    stride = 1 << (count.bit_length() - 1)
    known = np.full(count + stride + 1, types - 1, np.int64)  # starts of the ends, numbered from 1; beyond: no bound
    known[0] = first
    while stride:
        number = np.arange(stride, count + 1, 2 * stride)  # both neighbours at this stride are known
        end = ends[number - 1]
        low, high = known[number - stride], np.minimum(known[number + stride], end - 1)
        sizes = high - low + 1
        segments = np.cumsum(sizes) - sizes
        start = np.arange(int(sizes.sum())) + np.repeat(low - segments, sizes)
        owner = np.repeat(end, sizes)
        options = costs[start] + (before[owner] - before[start]) * (once + each * (owner - start))
        best = np.minimum.reduceat(options, segments)
        places = np.flatnonzero(options == np.repeat(best, sizes))
        winner = start[places[np.searchsorted(places, segments)]]  # the first of equals
        found[end], chosen[end], known[number] = best, winner, winner
        stride >>= 1
    return found, chosen
