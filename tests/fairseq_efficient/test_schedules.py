import itertools
import math

import pytest

from fairseq_efficient.schedules import geometric


def test_geometric_is_exact_at_both_ends_and_outside():
    start, end = 1.7, 212.3
    assert [geometric(start, end, 30, n) for n in (-1, 0)] == [start, start]
    assert [geometric(start, end, 30, n) for n in (30, 31, 10**9, None)] == [end] * 4


@pytest.mark.parametrize(("start", "end"), [(2.0, 200.0), (200.0, 2.0), (5.0, 5.0)])
def test_geometric_moves_by_one_factor(start: float, end: float):
    values = [geometric(start, end, 10, n) for n in range(11)]
    factors = [b / a for a, b in itertools.pairwise(values)]
    assert all(math.isclose(factor, (end / start) ** 0.1, rel_tol=1e-12) for factor in factors)
    assert math.isclose(values[5], math.sqrt(start * end), rel_tol=1e-12)


def test_no_updates_means_the_end():
    assert geometric(2.0, 20.0, 0, 0) == geometric(2.0, 20.0, 0, None) == 20.0
