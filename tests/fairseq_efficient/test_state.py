"""Decoding caches, rows of a beam that share a sentence, and cutting of long rows."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_efficient.beam import reorder_sentences
from fairseq_efficient.state import _BLOCK, CrossAttentionCache, SelfAttentionCache
from fairseq_efficient.text.truncation import CutCounter, align_left, cut_keep_last

PAD, EOS = 1, 2


# --- rows that share a sentence -------------------------------------------------------------------------------------


def owners(sentences: int, group: int) -> Tensor:
    return torch.arange(sentences).repeat_interleave(group)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_reorder_sentences_follows_every_row(data: st.DataObject):
    """Whatever the order (dropped, doubled, mixed rows): row i reads what row ``new_order[i]`` read."""
    sentences, beam = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    order = torch.tensor(data.draw(st.lists(st.integers(0, sentences * beam - 1), min_size=1, max_size=12)))
    kept, group = reorder_sentences(order, sentences, beam)
    stored = torch.arange(sentences) if kept is None else kept
    assert torch.equal(stored.repeat_interleave(group), owners(sentences, beam)[order])


@pytest.mark.parametrize(
    ("order", "sentences", "beam", "kept", "group"),
    [
        ([1, 0, 0, 5, 3, 4], 2, 3, None, 3),  # hypotheses change places within their sentence
        ([0, 0, 0, 1, 1, 1], 2, 1, None, 3),  # the first expansion of a beam search
        ([3, 3, 5], 2, 3, [1], 3),  # the first sentence is done
        ([3, 4, 5, 0, 1, 2], 2, 3, [1, 0], 3),
        ([0, 0, 1, 1], 2, 2, [0], 4),  # one sentence in place of two
        ([0, 3, 1, 4], 2, 3, [0, 1, 0, 1], 1),
        ([0, 0, 3], 2, 3, [0, 0, 1], 1),  # unequal groups: a copy for every row
    ],
)
def test_reorder_sentences_copies_only_what_it_must(
    order: list, sentences: int, beam: int, kept: list | None, group: int
):
    found, rows = reorder_sentences(torch.tensor(order), sentences, beam)
    assert (None if found is None else found.tolist()) == kept and rows == group


# --- caches ---------------------------------------------------------------------------------------------------------


class Plain:
    """What a cache must behave like: tensors that are concatenated and indexed."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def append(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        none = torch.zeros(keys.size(0), keys.size(2), dtype=torch.bool)
        self.parts.append((keys, values, none if mask is None else mask))

    def reorder(self, order: Tensor) -> None:
        self.parts = [tuple(t[order] for t in part) for part in self.parts]

    def check(self, cache: SelfAttentionCache) -> None:
        keys, values, mask = (torch.cat(p, 2 if p[0].dim() == 4 else 1) for p in zip(*self.parts, strict=True))
        assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
        assert torch.equal(cache.padding_mask, mask) if cache.padding_mask is not None else not mask.any()
        assert cache.length == keys.size(2)


def test_self_attention_cache(poisoned_memory: None):
    """Appended, reordered, shrunk and grown past several blocks, it holds what plain tensors hold."""
    draw, rows, plain = torch.Generator().manual_seed(3), 6, Plain()
    cache = SelfAttentionCache.empty(torch.zeros(rows, 2, 1, 4))
    for step in range(3 * _BLOCK):
        added = 1 if step % 7 else 3
        keys, values = torch.randn(2, rows, 2, added, 4, generator=draw)
        mask = torch.rand(rows, added, generator=draw) < 0.3 if 5 < step < 40 and step % 2 else None
        cache.append(keys, values, mask)
        plain.append(keys, values, mask)
        plain.check(cache)
        if step % 3 == 0:
            rows = max(1, rows - (step % 30 == 0))
            order = torch.randint(0, keys.size(0), (rows,), generator=draw)
            cache.reorder(order)
            plain.reorder(order)
            plain.check(cache)
    assert cache.length > 3 * _BLOCK and cache.size_bytes() >= 2 * cache.keys.nbytes


def test_self_attention_cache_grows_by_blocks_and_two_buffers_take_turns():
    cache = SelfAttentionCache.empty(torch.zeros(2, 1, 1, 4))
    seen = set()
    for _ in range(_BLOCK):
        cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4), None)
        cache.reorder(torch.tensor([1, 0]))
        seen.add(cache.buffer.data_ptr())
    assert cache.buffer.size(3) == _BLOCK and len(seen) == 2


def test_caches_reorder_one_by_one():
    """Two caches with the same memory would overwrite each other."""
    one = SelfAttentionCache.empty(torch.zeros(2, 1, 1, 4))
    other = SelfAttentionCache.empty(torch.zeros(2, 1, 1, 4))
    keys = torch.arange(8.0).view(2, 1, 1, 4)
    for cache, sign in ((one, 1), (other, -1)):
        cache.append(sign * keys, sign * keys, None)
    for _ in range(3):
        one.reorder(torch.tensor([1, 0]))
        other.reorder(torch.tensor([0, 0]))
    assert torch.equal(one.keys, keys.flip(0)) and torch.equal(other.keys, -keys[:1].expand(2, -1, -1, -1))


def test_cross_attention_cache_is_not_copied_for_beams():
    keys, mask = torch.randn(3, 2, 7, 4), torch.rand(3, 7) < 0.5
    cache = CrossAttentionCache(keys, keys + 1, mask, rows=6)
    cache.reorder(torch.tensor([1, 1, 2, 3, 5, 4]))
    assert cache.keys is keys and cache.padding_mask is mask and cache.rows == 6
    cache.reorder(torch.tensor([0, 1, 5, 5]))  # the second sentence is done
    assert torch.equal(cache.keys, keys[[0, 2]]) and torch.equal(cache.values, keys[[0, 2]] + 1)
    assert torch.equal(cache.padding_mask, mask[[0, 2]]) and cache.rows == 4
    cache.reorder(torch.tensor([3, 0, 0]))  # no equal groups any more: one copy per row
    assert torch.equal(cache.keys, keys[[2, 0, 0]]) and cache.rows == 3
    assert cache.size_bytes() == 2 * 3 * 2 * 7 * 4 * 4


# --- cutting --------------------------------------------------------------------------------------------------------


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
