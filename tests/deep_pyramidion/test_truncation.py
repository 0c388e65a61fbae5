"""Cutting of long rows."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deep_pyramidion.truncation import CutCounter, align_left, cut_keep_last

PAD, EOS = 1, 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.sampled_from([PAD, PAD, EOS, 5, 6]), min_size=6, max_size=6), min_size=1, max_size=4))
def test_align_left(rows: list[list[int]]):
    tokens = torch.tensor(rows)
    before = tokens.clone()
    real = [[t for t in row if t != PAD] for row in rows]
    longest = max(map(len, real))
    aligned, order, shortest, found = align_left(tokens, PAD)
    assert torch.equal(tokens, before)
    assert aligned.tolist() == [row + [PAD] * (max(longest, 1) - len(row)) for row in real]
    assert (shortest, found) == (min(map(len, real)), longest)
    if order is None:
        assert all(row[: len(r)] == r for row, r in zip(rows, real, strict=True))
    else:
        assert torch.equal(tokens.gather(1, order)[:, : aligned.size(1)], aligned)


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 9])
def test_cut_keep_last(limit: int):
    rows = [[5, 6, 7, 8, EOS], [5, 6, 7, EOS], [5, EOS], [EOS], []]
    tokens = torch.tensor([row + [PAD] * (5 - len(row)) for row in rows])
    before = tokens.clone()
    cut, columns = cut_keep_last(tokens, limit, PAD)
    assert torch.equal(tokens, before) and torch.equal(tokens.gather(1, columns), cut)
    for row, left in zip(rows, cut.tolist(), strict=True):
        expected = row if len(row) <= limit else [*row[: limit - 1], row[-1]]
        assert left == expected + [PAD] * (min(limit, 5) - len(expected))


def test_cuts_are_counted_and_told_once_per_doubling(caplog: pytest.LogCaptureFixture):
    counter = CutCounter("source")
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            counter.add(1, 64)
    told = [record.getMessage() for record in caplog.records]
    assert counter.count == 9 and [line.split()[0] for line in told] == ["1", "2", "4", "8"]
    assert "64 tokens" in told[0] and "source" in told[0] and "EOS" in told[0]


def test_nothing_cut_is_not_told(caplog: pytest.LogCaptureFixture):
    counter = CutCounter("source")
    counter.add(0, 64)
    assert counter.count == 0 and not caplog.records
