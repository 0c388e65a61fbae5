"""Optimal cutoffs: fast is naive is the best of all partitions, under all cost models."""

import itertools
import time

import numpy as np
import pytest

from fairseq_efficient.ops.optimal_cutoffs import fast, naive, optimal_cutoffs, partition_cost

MODELS = [{}, {"dim": 64}, {"dim": 7, "factor": 2.0}, {"dim": 32, "factor": 1.0}, {"dim": 9, "logit": 5.5}]
KINDS = ["zipf", "flat", "random", "zeros", "shares"]


def counts_of(kind: str, types: int, seed: int = 0) -> np.ndarray:
    draw = np.random.RandomState(seed)
    if kind == "zipf":
        return (1e6 / np.arange(1, types + 1) ** 1.1).astype(np.int64)
    if kind == "flat":
        return np.full(types, 3)
    if kind == "random":  # does not fall
        return draw.randint(1, 50, types)
    if kind == "zeros":  # special symbols first, padding last
        found = np.sort(draw.randint(0, 9, types))[::-1].copy()
        found[: types // 4] = 0
        found[types // 2] = 1
        return found
    return np.sort(draw.rand(types))[::-1] / types


def exhaustive(counts: np.ndarray, clusters: int, smallest_head: int, **model: float) -> float:
    ways = itertools.combinations(range(smallest_head, len(counts)), clusters - 1)
    return min(naive.partition_cost(counts, list(cuts), **model) for cuts in ways)


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_partition_is_cheaper(kind: str, model: dict[str, float]):
    """Both models, against every partition (par_search property 11)."""
    for types, clusters, head in [(1, 1, 1), (2, 2, 1), (5, 5, 1), (9, 3, 1), (11, 4, 5), (12, 2, 4), (12, 1, 3)]:
        counts = counts_of(kind, types) if types > 4 else np.arange(types, 0, -1)
        expected = exhaustive(counts, clusters, head, **model)
        for op in (fast, naive):
            cutoffs, cost = op.optimal_cutoffs(counts, clusters, smallest_head=head, **model)
            assert cost == pytest.approx(expected, rel=1e-12)
            assert cost == pytest.approx(op.partition_cost(counts, cutoffs, **model), rel=1e-12)
            assert len(cutoffs) == clusters - 1 and [0, *cutoffs, types] == sorted({0, *cutoffs, types})
            assert not cutoffs or cutoffs[0] >= head


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fast_is_naive(kind: str, model: dict[str, float]):
    for types, clusters, seed in [(33, 2, 1), (64, 3, 2), (90, 5, 3), (128, 4, 4)]:
        counts = counts_of(kind, types, seed)
        costs = [op.optimal_cutoffs(counts, clusters, **model)[1] for op in (fast, naive)]
        assert costs[0] == pytest.approx(costs[1], rel=1e-12)


def test_the_spec_case_of_six_types():
    """Counts where an implementation that prints one index too few would put the cut at 0 (bug 14)."""
    counts = np.array([100, 5, 1, 1, 1, 1])
    cutoffs, cost = optimal_cutoffs(counts, 2)
    assert cutoffs == [1] and cost == 100 + 5 * 9


def test_a_vocabulary_of_250_000_takes_seconds():
    counts = counts_of("zipf", 250_000)
    start = time.process_time()
    cutoffs, cost = optimal_cutoffs(counts, 4, dim=512)
    assert time.process_time() - start < 10
    assert cost < partition_cost(counts, [20_000, 60_000], dim=512) < partition_cost(counts, [], dim=512) / 5
    for place, step in itertools.product(range(3), (-10, -1, 1, 10)):  # no neighbour is better
        other = [cut + step * (place == number) for number, cut in enumerate(cutoffs)]
        assert partition_cost(counts, other, dim=512) >= cost


def test_the_models():
    counts = np.array([6, 2, 1, 1])
    assert partition_cost(counts, [1, 2]) == 6 * 1 + 2 * 1 + 2 * 2
    expected = (1 + 2) * 8 + 0.2 * (8 * 4 + 1 * 4) + 0.2 * (8 * 2 + 2 * 2)
    assert partition_cost(counts, [1, 2], dim=8, factor=2) == pytest.approx(expected)
    assert partition_cost(counts, [], dim=8) == 4 * 8
    softmaxes = 3 * (1 + 2) + 3 * (0.2 * 1 + 0.2 * 2)  # 3 for each logit of the head and of the tails
    assert partition_cost(counts, [1, 2], dim=8, factor=2, logit=3) == pytest.approx(expected + softmaxes)


@pytest.mark.parametrize("op", [fast, naive], ids=["fast", "naive"])
@pytest.mark.parametrize(
    ("counts", "clusters", "more", "message"),
    [
        ([1, 2], 3, {}, "clusters 3: more than 2 types can fill"),
        ([1, 2, 3], 2, {"smallest_head": 3}, "more than 3 types"),
        ([1, 2], 0, {}, "clusters 0: must be at least 1"),
        ([], 1, {}, "counts"),
        ([0, 0], 1, {}, "all are 0"),
        ([1, -1], 1, {}, "numbers of at least 0"),
        ([1.0, float("nan")], 1, {}, "numbers of at least 0"),
        ([[1, 2]], 1, {}, "one number for each type"),
        ([1, 2], 2, {"dim": 0}, "dim 0"),
        ([1, 2], 2, {"dim": 4, "factor": 0.5}, "factor 0.5"),
        ([1, 2], 2, {"smallest_head": 0}, "smallest_head 0"),
        ([1, 2], 2, {"dim": 4, "logit": -1.0}, "logit -1.0"),
    ],
)
def test_wrong_arguments(op, counts, clusters, more, message):
    with pytest.raises(ValueError, match=message):
        op.optimal_cutoffs(np.array(counts), clusters, **more)


@pytest.mark.parametrize("cutoffs", [[0], [3], [2, 2], [2, 1], [-1]])
def test_wrong_cutoffs(cutoffs):
    with pytest.raises(ValueError, match="must rise"):
        partition_cost(np.array([3, 2, 1]), cutoffs)
