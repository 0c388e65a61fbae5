"""Decoding caches, and rows of a beam that share a sentence."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_efficient.beam import reorder_sentences
from fairseq_efficient.state import _BLOCK, CrossAttentionCache, SelfAttentionCache

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
