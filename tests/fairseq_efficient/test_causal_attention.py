"""Causal self-attentions over whole sequences and token by token, and the cache between the two."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_efficient.modules.relative_self_attention import RelativeSelfAttention, sinusoids
from fairseq_efficient.modules.rotary_self_attention import RotarySelfAttention, rotary_table, rotate
from fairseq_efficient.ops.relative_attention.naive import relative_attention as naive
from fairseq_efficient.state import LayerCache
from tests.util import assert_close

CHANNELS, HEADS, DIM = 12, 3, 6


class Layer:
    """One of the two modules in float64 behind one interface."""

    def __init__(self, kind: str, dropout: float = 0.0, **flags: Any):
        make = RelativeSelfAttention if kind == "relative" else RotarySelfAttention
        self.module = make(CHANNELS, HEADS, DIM, dropout, **flags).double()
        biases = [torch.randn(HEADS, DIM, dtype=torch.double).requires_grad_() for _ in range(2)]
        self.biases = biases if kind == "relative" else []
        self.table = sinusoids(200, CHANNELS, dtype=torch.double) if kind == "relative" else rotary_table(200, DIM)

    def full(self, x: Tensor, padding_mask: Tensor | None = None, **flags: Any) -> Tensor:
        return self.module(x, self.table, *self.biases, padding_mask=padding_mask, **flags)

    def fill(self, x: Tensor, cache: LayerCache, lengths: Tensor | None = None) -> Tensor:
        return self.module.fill(x, self.table, *self.biases, cache=cache, lengths=lengths)

    @torch.no_grad()
    def step(self, x: Tensor, cache: LayerCache, rows: Tensor | None = None) -> Tensor:
        return self.module.step(x, cache, *self.biases, rows=rows)


KINDS = pytest.mark.parametrize("kind", ["relative", "rotary"])


def tokens(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, CHANNELS, dtype=torch.double)


@KINDS
@pytest.mark.parametrize("bias", [True, False])
def test_steps_are_the_full_forward(kind: str, bias: bool):
    """Through a doubling of the cache (64 slots at first) and of the table."""
    layer, x = Layer(kind, bias=bias), tokens(2, 150)
    full, cache = layer.full(x), LayerCache()
    for t in range(150):
        assert_close(layer.step(x[:, t], cache), full[:, t].detach(), 1e-10, 0)
    assert cache.lengths == cache.longest == 150 and cache.buffer.size(3) == 256


@KINDS
def test_reordered_steps(kind: str):
    """Doubles, permutations and fewer rows; nothing is copied for the order that is there already."""
    layer, x, cache = Layer(kind), tokens(4, 30), LayerCache()
    orders = {3: [3, 2, 1, 0], 7: [0, 0, 2, 3], 11: [0, 1, 2, 3], 12: [2, 2], 20: [1, 0, 1], 25: [2]}
    seen = x[:, :0]
    for t in range(30):
        if t in orders:
            order, buffer = torch.tensor(orders[t]), cache.buffer
            same = orders[t] == list(range(buffer.size(1)))
            cache.reorder(order)
            assert (cache.buffer is buffer) == same
            seen = seen[order]
        new = tokens(seen.size(0), 1)
        seen = torch.cat([seen, new], 1)
        assert_close(layer.step(new[:, 0], cache), layer.full(seen)[:, -1].detach(), 1e-10, 0)


@KINDS
def test_ragged_rows(kind: str):
    """Only some rows get a token in a step; rows are reordered, doubled and dropped in between."""
    layer, cache = Layer(kind), LayerCache.ragged(4)
    rows: list[Tensor] = [tokens(1, 0)[0] for _ in range(4)]
    generator = torch.Generator().manual_seed(3)
    for t in range(160):
        if t % 9 == 8:
            count = max(1, len(rows) + (-1 if t > 90 and len(rows) > 2 else 0))
            order = torch.randint(0, len(rows), (count,), generator=generator)
            cache.reorder(order)
            rows = [rows[i] for i in order]
        chosen = (torch.rand(len(rows), generator=generator) < 0.6).nonzero().flatten()
        everyone = t % 5 == 0
        if everyone:
            chosen = torch.arange(len(rows))
        if not chosen.numel():
            continue
        new = tokens(len(chosen), 1)[:, 0]
        out = layer.step(new, cache, None if everyone else chosen)
        for one, r in enumerate(chosen.tolist()):
            rows[r] = torch.cat([rows[r], new[one : one + 1]])
            assert_close(out[one], layer.full(rows[r].unsqueeze(0))[0, -1].detach(), 1e-10, 0)
        assert cache.lengths.tolist() == [len(row) for row in rows] and cache.longest == max(map(len, rows))
    assert cache.buffer.size(3) > 64 and len(set(map(len, rows))) > 1


@KINDS
@pytest.mark.parametrize("ragged", [False, True])
def test_fill_is_steps(kind: str, ragged: bool):
    layer, x = Layer(kind), tokens(3, 9)
    lengths = torch.tensor([9, 2, 5]) if ragged else None
    cache = LayerCache.ragged(3) if ragged else LayerCache()
    with torch.no_grad():
        out = layer.fill(x, cache, lengths)
    assert_close(out, layer.full(x).detach(), 1e-12)
    keep = [9, 2, 5] if ragged else [9] * 3
    more = tokens(3, 4)
    for t in range(4):
        step = layer.step(more[:, t], cache)
        for r in range(3):
            whole = torch.cat([x[r, : keep[r]], more[r, : t + 1]]).unsqueeze(0)
            assert_close(step[r], layer.full(whole)[0, -1].detach(), 1e-10, 0)
    with pytest.raises(ValueError, match="empty"):
        layer.fill(x, cache, lengths)
    with pytest.raises(ValueError, match="lengths"):
        layer.fill(x, LayerCache.ragged(3))


@KINDS
def test_padding(kind: str):
    """Pads on the right need no mask; a mask changes nothing for what is real; pads elsewhere are not seen."""
    layer, x = Layer(kind), tokens(2, 10)
    mask = torch.arange(10) >= torch.tensor([[10], [6]])
    other = x.masked_fill(mask.unsqueeze(-1), 1e3)
    real = ~mask
    assert_close(layer.full(other)[real], layer.full(x)[real], 1e-12)
    assert_close(layer.full(other, mask)[real], layer.full(x)[real], 1e-12)
    left = mask.flip(1)
    one, two = (layer.full(x.masked_fill(left.unsqueeze(-1), value), left) for value in (0.0, 1e3))
    assert_close(one[~left], two[~left], 1e-12)
    assert_close(one[1, 4:], layer.full(x[1:, 4:])[0], 1e-10)  # both kinds of positions are relative
    grads = torch.autograd.grad(two.square().sum(), list(layer.module.parameters()))
    assert all(g.isfinite().all() for g in grads) and two[1, :4].isfinite().all()


@KINDS
def test_nothing_later_is_seen(kind: str):
    layer, x = Layer(kind), tokens(2, 12).requires_grad_()
    for t in (0, 5, 11):
        (grad,) = torch.autograd.grad(layer.full(x)[:, t].sum(), x)
        assert (grad[:, t + 1 :] == 0).all() and (grad[:, : t + 1] != 0).any(-1).all()


@KINDS
def test_dropout_only_in_training(kind: str):
    layer, x = Layer(kind, dropout=0.5), tokens(2, 12)
    assert not torch.equal(layer.full(x), layer.full(x))
    layer.module.eval()
    assert torch.equal(layer.full(x), layer.full(x))


def test_relative_is_the_formula():
    """From the projections' rows on, with the reference of the operator."""
    layer, x = Layer("relative"), tokens(2, 9)
    module = layer.module
    q, k, v = (one.view(2, 9, HEADS, DIM).transpose(1, 2) for one in module.qkv_proj(x).split(HEADS * DIM, -1))
    r = module.r_proj(layer.table[:9].double()).view(9, HEADS, DIM).transpose(0, 1)
    out = naive(q, k, v, r, *layer.biases).transpose(1, 2).reshape(2, 9, HEADS * DIM)
    assert_close(layer.full(x), module.out_proj(out), 1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_memory_is_what_went_before(bias: bool):
    layer, x = Layer("relative", bias=bias), tokens(2, 17)
    full = layer.full(x)
    assert_close(layer.full(x[:, 6:], memory=x[:, :6]), full[:, 6:], 1e-10)
    mask = torch.arange(11).expand(2, 11) >= torch.tensor([[11], [5]])
    masked = layer.full(x[:, 6:], mask, memory=x[:, :6])
    assert_close(masked[~mask], full[:, 6:][~mask], 1e-10)


def test_window():
    layer, x, cache = Layer("relative", window=4), tokens(2, 9), LayerCache()
    full = layer.full(x)
    for t in range(9):
        assert_close(layer.step(x[:, t], cache), full[:, t].detach(), 1e-10, 0)
    for t in range(4, 9):
        assert_close(full[:, t], layer.full(x[:, t - 3 : t + 1])[:, -1], 1e-10)


def test_tables():
    table = sinusoids(50, 8)
    assert table.dtype == torch.float32 and table.shape == (50, 8)
    for x, i in [(0, 0), (7, 1), (49, 3)]:
        angle = x * 10000 ** (-2 * i / 8)
        assert table[x, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[x, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)
    cos, sin = rotary_table(50, 6)
    assert cos.shape == sin.shape == (50, 3)
    assert cos[49, 1].item() == pytest.approx(math.cos(49 * 10000 ** (-2 / 6)), abs=1e-6)
    for make in (sinusoids, rotary_table):
        with pytest.raises(ValueError, match="even"):
            make(3, 5)


def test_rotary_scores_depend_on_the_distance_alone():
    cos, sin = (one.double() for one in rotary_table(40, DIM))
    q, k = torch.randn(2, DIM, dtype=torch.double)
    scores = (rotate(q.expand(40, -1), cos, sin) @ rotate(k.expand(40, -1), cos, sin).t()).detach()
    for distance in (0, 3, 20):
        diagonal = scores.diagonal(-distance)
        assert_close(diagonal, diagonal[:1].expand_as(diagonal), 1e-6)
    complex_q, complex_k = (torch.complex(t[: DIM // 2], t[DIM // 2 :]) for t in (q, k))
    turn = torch.polar(torch.ones(DIM // 2).double(), 5 * 10000 ** (-torch.arange(0, DIM, 2).double() / DIM))
    assert_close(scores[9, 4], (complex_q * turn * complex_k.conj()).real.sum(), 1e-6)
    assert rotate(q.bfloat16(), cos[1], sin[1]).dtype == torch.bfloat16


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind: str, dtype: torch.dtype):
    """Keys are cached as the model computes them; steps stay close to the full forward."""
    layer, x, cache = Layer(kind), tokens(2, 20).to(dtype), LayerCache()
    layer.module.to(dtype)
    full = layer.full(x)
    steps = torch.stack([layer.step(x[:, t], cache) for t in range(20)], 1)
    assert full.dtype == steps.dtype == cache.buffer.dtype == dtype
    assert_close(steps, full.detach(), 0.05 if dtype == torch.bfloat16 else 0.01, 0)


@KINDS
def test_what_a_cache_refuses(kind: str):
    layer, keys = Layer(kind), torch.zeros(2, HEADS, 1, DIM)
    with pytest.raises(ValueError, match="together"):
        layer.step(tokens(2, 1)[:, 0], LayerCache(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="append_rows"):
        LayerCache.ragged(2).append(keys, keys)
    with pytest.raises(ValueError, match="ragged"):
        LayerCache().append_rows(None, keys, keys)


@KINDS
def test_no_uninitialised_memory_is_read(kind: str, poisoned_memory: None):
    test_ragged_rows(kind)
    test_reordered_steps(kind)


def test_a_cache_before_its_first_keys_and_after():
    cache, shared = LayerCache.ragged(3), LayerCache()
    cache.reorder(torch.tensor([2, 0]))
    shared.reorder(torch.tensor([1, 1, 0]))
    assert cache.lengths.tolist() == [0, 0] and shared.lengths == 0 and cache.size_bytes() == 0
    keys = torch.ones(1, HEADS, 1, DIM)
    for _ in range(2):
        cache.append_rows(torch.tensor([1]), keys, keys)
    cache.reorder(torch.tensor([1, 1, 0]))
    k, v, lengths = cache.select_rows()
    assert lengths.tolist() == [2, 2, 0] and k.shape == v.shape == (3, HEADS, 2, DIM)
    assert k.data_ptr() == cache.buffer.data_ptr()
    assert [t.shape[0] for t in cache.select_rows(torch.tensor([0, 2]))] == [2, 2, 2]
    cache.reorder(torch.tensor([2]))
    assert cache.longest == 0


def test_rotary_without_mask_or_dropout_is_one_flash_call():
    layer, x = Layer("rotary", dropout=0.1), tokens(2, 20)
    layer.module.eval()
    with torch.profiler.profile() as profile:
        layer.full(x)
    names = [event.key for event in profile.key_averages()]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names and "aten::_softmax" not in names
