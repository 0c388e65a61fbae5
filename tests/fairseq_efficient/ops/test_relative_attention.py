"""Relative attention: tiles and shifted memory against a table looked up for every pair."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_efficient.ops.relative_attention import fast as fast_module
from fairseq_efficient.ops.relative_attention import naive as naive_module
from fairseq_efficient.ops.relative_attention import relative_attention, relative_attention_step
from tests.util import assert_close

OPS = pytest.mark.parametrize("op", [relative_attention, naive_module.relative_attention], ids=["fast", "naive"])
STEPS = pytest.mark.parametrize(
    "step", [relative_attention_step, naive_module.relative_attention_step], ids=["fast", "naive"]
)
# queries, keys
SIZES = [(1, 1), (1, 6), (5, 5), (7, 9), (16, 16), (37, 37), (33, 50)]
MASKS = ("none", "right", "left", "scattered", "empty_row")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are short: 8 queries a tile make them cross as many borders as a long text would."""
    monkeypatch.setattr(fast_module, "_QUERIES", 8)


def inputs(
    queries: int, keys: int, batch: int = 2, heads: int = 3, dim: int = 4, dtype: torch.dtype = torch.double
) -> list[Tensor]:
    """q, k, v, r, content_bias, position_bias"""
    shapes = [(batch, heads, queries, dim), *[(batch, heads, keys, dim)] * 2, (heads, keys, dim), *[(heads, dim)] * 2]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def mask_of(kind: str, batch: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    mask = torch.arange(keys) >= torch.tensor([[keys], [max(1, keys // 3)]] * batch)[:batch]
    if kind == "left":
        mask = mask.flip(1)
    if kind == "scattered":
        mask = torch.rand(batch, keys) < 0.5
    if kind == "empty_row":
        mask = torch.tensor([[True], [False]] * batch)[:batch].expand(batch, keys)
    return mask


def with_gradients(op: Any, tensors: list[Tensor], **flags: Any) -> list[Tensor]:
    out = op(*tensors, **flags)
    return [out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), tensors)]


def assert_parity(tensors: list[Tensor], tolerance: float = 1e-10, **flags: Any) -> None:
    ours, reference = (
        with_gradients(op, tensors, **flags) for op in (relative_attention, naive_module.relative_attention)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        assert_close(mine, theirs, tolerance, tolerance)
    kept = with_gradients(relative_attention, tensors, **flags, keep=1 << 30)
    for mine, other in zip(kept, ours, strict=True):
        assert_close(mine, other, 1e-14, 1e-14)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_kept_probabilities_can_be_used_twice(dropout_p: float):
    """Gradients of a graph that is kept, with and without dropout, are those without them; a limit is a limit."""
    tensors = inputs(20, 31)
    found = []
    for keep in (0, 2 * 3 * 20 * 31, 100):
        torch.manual_seed(4)
        out = relative_attention(*tensors, dropout_p=dropout_p, keep=keep)
        grads = [torch.autograd.grad(out.square().sum(), tensors, retain_graph=True) for _ in range(2)]
        found += [[out.detach(), *one] for one in grads]
    for other in found[1:]:
        assert_close(other, found[0], 1e-14, 1e-14)


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_fast_is_naive(queries: int, keys: int, kind: str, window: int | None):
    """Outputs and gradients of all six inputs, to 1e-10 in float64."""
    assert_parity(inputs(queries, keys), key_padding_mask=mask_of(kind, 2, keys), window=window)


@pytest.mark.parametrize("pairs", [1, 2, 4, 8, 24])
def test_fast_is_naive_however_it_is_cut(pairs: int, monkeypatch: pytest.MonkeyPatch):
    """Tiles of one head, some heads, a row, some rows or all; 17 queries are tiles of 9 and 8."""
    monkeypatch.setattr(fast_module, "_TILE", {"cpu": pairs * 9 * 21})
    tensors = inputs(17, 20, batch=6, heads=4)
    shapes = {tile.shape[0] for tile in fast_module._Plan(tensors[0], 20, None, 0.0, None, 1.0).tiles()}
    assert shapes == {pairs}
    for kind, window in itertools.product(MASKS, (None, 6)):
        assert_parity(tensors, key_padding_mask=mask_of(kind, 6, 20), window=window, scale=0.3)


def test_float32_and_the_tiles_in_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for window in (None, 70):
        assert_parity(inputs(300, 333, dtype=torch.float32), 2e-5, window=window)


@OPS
def test_explicit_loop(op: Any):
    """The formula, written with one query and one key at a time (par_search property 1)."""
    q, k, v, r, u, w = (t.detach() for t in inputs(3, 5, batch=1, heads=1, dim=2))
    out = op(q, k, v, r, u, w, window=4)
    for i in range(3):
        place = 2 + i
        keys = range(max(0, place - 3), place + 1)
        scores = [
            ((q[0, 0, i] + u[0]) @ k[0, 0, j] + (q[0, 0, i] + w[0]) @ r[0, place - j]).item() / 2**0.5 for j in keys
        ]
        expected = sum(p * v[0, 0, j] for p, j in zip(torch.tensor(scores).double().softmax(0), keys, strict=True))
        assert_close(out[0, 0, i], expected, 1e-6)


@OPS
def test_no_query_sees_what_comes_later(op: Any):
    q, k, v, r, u, w = (t.detach() for t in inputs(20, 25))
    out = op(q, k, v, r, u, w)
    for t in (0, 7, 8, 19):
        k2, v2, q2 = k.clone(), v.clone(), q.clone()
        k2[:, :, 5 + t + 1 :], v2[:, :, 5 + t + 1 :], q2[:, :, t + 1 :] = 1e4, 1e4, -1e4
        assert torch.equal(op(q2, k2, v2, r, u, w)[:, :, : t + 1], out[:, :, : t + 1])


@OPS
def test_what_pads_hold_changes_nothing(op: Any):
    q, k, v, r, u, w = (t.detach() for t in inputs(20, 25))
    mask = mask_of("scattered", 2, 25)
    k2, v2 = (t.masked_fill(mask[:, None, :, None], 1e4) for t in (k, v))
    assert torch.equal(op(q, k, v, r, u, w, key_padding_mask=mask), op(q, k2, v2, r, u, w, key_padding_mask=mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_finite(dtype: torch.dtype):
    tensors = [t.detach().to(dtype).requires_grad_() for t in inputs(40, 45, dtype=torch.float32)]
    mask = mask_of("empty_row", 2, 45)
    results = with_gradients(relative_attention, tensors, key_padding_mask=mask)
    wide = [t.detach().float().requires_grad_() for t in tensors]
    reference = with_gradients(naive_module.relative_attention, wide, key_padding_mask=mask)
    for mine, theirs in zip(results, reference, strict=True):
        assert mine.dtype == dtype and mine.isfinite().all()
        assert_close(mine.float(), theirs, (0.1 if dtype == torch.bfloat16 else 0.015) * theirs.abs().max().item(), 0)
    assert (results[0][0] == 0).all()


def test_autocast_keeps_the_dtype_of_the_queries():
    q, k, v, r, u, w = inputs(10, 12, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = relative_attention(*(t.bfloat16() for t in (q, k, v, r)), u, w)
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16 and u.grad.dtype == torch.float32
        assert relative_attention(q, k, v, r, u, w).dtype == torch.float32
        step = relative_attention_step(q[:, :, -1:], k, v, r, u, w, 12)
    assert_close(step, relative_attention(q, k, v, r, u, w)[:, :, -1:], 1e-5)


def test_dropout_drops_and_keeps_the_mean():
    q, k, _, r, u, w = (t.detach() for t in inputs(16, 16))
    ones = torch.ones_like(k)
    draws = torch.stack([relative_attention(q, k, ones, r, u, w, dropout_p=0.5) for _ in range(400)])
    assert draws.std(0).min() > 0.05 and abs(draws.mean() - 1) < 0.05


@pytest.mark.parametrize("pairs", [1, 3, 6])
def test_dropout_backward_uses_the_mask_of_the_forward(pairs: int, monkeypatch: pytest.MonkeyPatch):
    """The weights are read off with unit vectors as values; the gradients are those of plain attention so masked."""
    monkeypatch.setattr(fast_module, "_TILE", {"cpu": pairs * 8 * 25})
    length = 24
    q, k, v, r, u, w = inputs(length, length, dim=length)
    eye = torch.eye(length).double().expand(2, 3, -1, -1)
    torch.manual_seed(5)
    weights = relative_attention(q, k, eye, r, u, w, dropout_p=0.4).detach()
    clean = relative_attention(q, k, eye, r, u, w)
    kept = (weights != 0).double()
    assert_close(weights, (clean * kept / 0.6).detach(), 1e-12)
    assert 0.5 < kept[clean > 0].mean() < 0.7
    torch.manual_seed(5)
    out = relative_attention(q, k, v, r, u, w, dropout_p=0.4)
    state = torch.get_rng_state()
    cotangent = torch.randn_like(out)
    torch.set_rng_state(state)
    ours = torch.autograd.grad(out, (q, k, v, r, u, w), cotangent)
    assert torch.equal(torch.get_rng_state(), state), "the backward must not move the global generator"
    probs = naive_module.relative_attention(q, k, eye, r, u, w) * kept / 0.6
    reference = torch.autograd.grad(probs @ v, (q, k, v, r, u, w), cotangent)
    for mine, theirs in zip(ours, reference, strict=True):
        assert_close(mine, theirs, 1e-10, 1e-10)


@STEPS
@pytest.mark.parametrize("window", [None, 1, 4])
def test_step_is_the_last_row_of_the_whole(step: Any, window: int | None):
    """Rows of different lengths; what lies beyond a row's length is not seen."""
    q, k, v, r, u, w = (t.detach() for t in inputs(9, 9, batch=4))
    lengths = torch.tensor([9, 1, 4, 6])
    last = q.gather(2, (lengths - 1).view(4, 1, 1, 1).expand(-1, 3, 1, 4))
    full = relative_attention(q, k, v, r, u, w, window=window)
    expected = full.gather(2, (lengths - 1).view(4, 1, 1, 1).expand(-1, 3, 1, 4))
    beyond = (torch.arange(9) >= lengths.unsqueeze(1))[:, None, :, None]
    k2, v2 = k.masked_fill(beyond, 1e4), v.masked_fill(beyond, 1e4)
    assert_close(step(last, k2, v2, r, u, w, lengths, window=window), expected, 1e-12)
    expected = full[:, :, 5:6]
    assert_close(step(q[:, :, 5:6], k, v, r, u, w, 6, window=window), expected, 1e-12)


@OPS
def test_impossible_arguments_are_refused(op: Any):
    tensors = [t.detach() for t in inputs(5, 7)]
    for match, place, other in [
        ("as many keys", 0, torch.zeros(2, 3, 8, 4)),
        ("q ", 1, torch.zeros(2, 3, 7, 5)),
        ("q ", 2, torch.zeros(2, 3, 6, 4)),
        ("distances", 3, torch.zeros(3, 6, 4)),
        ("biases", 4, torch.zeros(4, 3)),
        ("biases", 5, torch.zeros(3, 5)),
    ]:
        with pytest.raises(ValueError, match=match):
            op(*tensors[:place], other, *tensors[place + 1 :])
    for match, flags in [
        ("key_padding_mask", {"key_padding_mask": torch.zeros(2, 5).bool()}),
        ("window", {"window": 0}),
        ("dropout_p", {"dropout_p": 1.0}),
    ]:
        with pytest.raises(ValueError, match=match):
            op(*tensors, **flags)


def test_a_longer_table_changes_nothing():
    q, k, v, r, u, w = (t.detach() for t in inputs(5, 7))
    longer = torch.cat([r, torch.full_like(r, 9.0)], 1)
    assert torch.equal(relative_attention(q, k, v, longer, u, w), relative_attention(q, k, v, r, u, w))


def test_any_memory_layout():
    for order in itertools.permutations(range(4)):
        back = [order.index(i) for i in range(4)]
        q, k, v, r, u, w = inputs(11, 13)
        q, k, v = (t.detach().permute(order).contiguous().permute(back).requires_grad_() for t in (q, k, v))
        assert_parity([q, k, v, r, u, w])


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for (queries, keys), kind, window in itertools.product(SIZES, MASKS, (None, 5)):
        assert_parity(inputs(queries, keys), key_padding_mask=mask_of(kind, 2, keys), window=window)


def test_the_host_never_waits_for_a_value():
    with FakeTensorMode():
        for padded, window in itertools.product((False, True), (None, 5)):
            tensors = [torch.randn(t.shape, requires_grad=True) for t in inputs(20, 25)]
            mask = torch.zeros(2, 25, dtype=torch.bool) if padded else None
            out = relative_attention(*tensors, key_padding_mask=mask, window=window)
            out.sum().backward()
            assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]
            lengths = torch.ones(2, dtype=torch.int64)
            relative_attention_step(tensors[0][:, :, :1], *tensors[1:], lengths, window=window)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return out


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_no_matrix_over_the_whole_length(dropout_p: float, monkeypatch: pytest.MonkeyPatch):
    """Neither between forward and backward nor within them; with a window the time is linear too."""
    monkeypatch.setattr(fast_module, "_TILE", {"cpu": 8 * 513})
    tensors, saved = inputs(512, 512), []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x)
    with hooks, _Largest() as largest:
        out = relative_attention(*tensors, dropout_p=dropout_p)
        out.sum().backward()
    size = 2 * 3 * 512 * 4
    assert max(saved) <= size and largest.numel <= max(2 * size, 8 * 513)
    plan = fast_module._Plan(tensors[0], 512, None, 0.0, 16, 1.0)
    assert max(tile.shape[2] for tile in plan.tiles()) == 16 + 7
