"""Chunked self-attention: SDPA over chunks against a full score matrix with a mask."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fairseq_efficient.ops.chunk_attention import chunk_attention
from fairseq_efficient.ops.chunk_attention.naive import chunk_attention as naive
from tests.util import assert_close

LENGTHS = [1, 63, 64, 100]
# (chunk_size, overlap, shift)
CUTS = [(16, 0, 0), (16, 5, 0), (16, 0, 7), (16, 16, 15), (1, 0, 0), (1, 1, 0), (200, 0, 0), (200, 9, 150), (64, 1, 36)]


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.double) -> list[Tensor]:
    return [torch.randn(batch, length, 2, 4, dtype=dtype).requires_grad_() for _ in range(3)]


def masks(length: int) -> dict[str, Tensor | None]:
    lengths = torch.tensor([[length], [max(1, length // 3)]])
    right = torch.arange(length) >= lengths
    return {
        "none": None,
        "right": right,
        "left": right.flip(1),
        "scattered": torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.5,
        "empty_row": torch.tensor([[True], [False]]).expand(2, length),
    }


def assert_parity(qkv: list[Tensor], chunk: int, mask: Tensor | None, overlap: int, shift: int) -> None:
    results = []
    for op in (chunk_attention, naive):
        out = op(*qkv, chunk, mask, overlap, shift)
        results.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), qkv)))
    for ours, reference in zip(*results, strict=True):
        assert_close(ours, reference, 1e-10, 1e-10)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["none", "right", "left", "scattered", "empty_row"])
def test_fast_is_naive(length: int, kind: str):
    """Outputs and gradients, to 1e-10 in float64; with one chunk over all this is full attention."""
    for chunk, overlap, shift in CUTS:
        assert_parity(inputs(length), chunk, masks(length)[kind], overlap, shift)


def test_naive_is_what_the_docstring_says():
    """Which keys a query sees, by moving one value at a time (both implementations, no mask)."""
    for op, (chunk, overlap, shift) in itertools.product(
        (chunk_attention, naive), [(4, 0, 0), (4, 2, 0), (4, 0, 3), (4, 1, 2)]
    ):
        q, k, v = inputs(11, batch=1)
        rows = op(q, k, v, chunk, None, overlap, shift)[0, :, 0, 0]
        seen = torch.stack([torch.autograd.grad(one, v, retain_graph=True)[0][0, :, 0, 0] != 0 for one in rows])
        for t in range(11):
            start = (t + shift) // chunk * chunk - shift
            expected = range(max(0, start - overlap), min(11, start + chunk + overlap))
            assert seen[t].nonzero().flatten().tolist() == list(expected), (op, t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_chunk_of_pads_gives_zeros(dtype: torch.dtype):
    """Not NaN, in the output and in the gradients; half precision is close to float32."""
    mask = torch.arange(24).expand(2, 24) >= torch.tensor([[5], [24]])
    qkv = [t.detach().to(dtype).requires_grad_() for t in inputs(24, dtype=torch.float32)]
    out = chunk_attention(*qkv, 8, mask)
    assert out.dtype == dtype and (out[0, 8:] == 0).all() and out.isfinite().all() and (out[0, :8] != 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().square().sum(), qkv))
    wide = naive(*[t.detach().float() for t in qkv], 8, mask)
    assert_close(out.detach().float(), wide, 3e-2 if dtype == torch.bfloat16 else 4e-3, 0)


@pytest.mark.parametrize("op", [chunk_attention, naive], ids=["fast", "naive"])
@pytest.mark.parametrize(("chunk", "overlap", "shift"), CUTS)
def test_what_pads_hold_changes_nothing(op: Any, chunk: int, overlap: int, shift: int):
    mask = masks(40)["scattered"]
    qkv = [t.detach() for t in inputs(40)]
    other = [t.masked_fill(mask[:, :, None, None], 1e4) for t in qkv]
    one, two = op(*qkv, chunk, mask, overlap, shift), op(*other, chunk, mask, overlap, shift)
    assert torch.equal(one[~mask], two[~mask])


@pytest.mark.parametrize(("chunk", "overlap", "shift"), CUTS)
def test_more_pads_change_nothing(chunk: int, overlap: int, shift: int):
    qkv = [t.detach() for t in inputs(21)]
    mask = masks(21)["scattered"]
    longer = [torch.cat([t, torch.full_like(t, 9.0)], 1) for t in qkv]
    out = chunk_attention(*longer, chunk, torch.cat([mask, mask | True], 1), overlap, shift)[:, :21]
    assert_close(out[~mask], chunk_attention(*qkv, chunk, mask, overlap, shift)[~mask], 1e-12, 0)


@pytest.mark.parametrize(("chunk", "overlap", "shift"), [
    (8, 0, 0), (8, 3, 0), (50, 0, 0), (7, 0, 3), (7, 2, 0),
])  # fmt: skip
def test_any_memory_layout(chunk: int, overlap: int, shift: int):
    """Inputs may be views, of whatever strides."""
    for order in itertools.permutations(range(4)):
        back = [order.index(i) for i in range(4)]
        qkv = [t.detach().permute(order).contiguous().permute(back) for t in inputs(24)]
        assert_close(
            chunk_attention(*qkv, chunk, None, overlap, shift), naive(*qkv, chunk, None, overlap, shift), 1e-10
        )


def test_dropout_drops_and_keeps_the_mean():
    q, k, v = (t.detach() for t in inputs(32))
    ones = torch.ones_like(v)
    draws = torch.stack([chunk_attention(q, k, ones, 8, dropout_p=0.5) for _ in range(300)])
    assert draws.std(0).min() > 0.05 and abs(draws.mean() - 1) < 0.05
    assert torch.equal(chunk_attention(q, k, ones, 8), chunk_attention(q, k, ones, 8, dropout_p=0.0))


@pytest.mark.parametrize("cut", [(0, 0, 0), (-1, 0, 0), (4, 5, 0), (4, -1, 0), (4, 0, 4), (4, 0, -1)])
def test_impossible_chunks_are_refused(cut: tuple[int, int, int]):
    chunk, overlap, shift = cut
    with pytest.raises(ValueError, match="chunk_size"):
        chunk_attention(*inputs(5), chunk, None, overlap, shift)


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for (chunk, overlap, shift), mask in itertools.product(CUTS, masks(37).values()):
        assert_parity(inputs(37), chunk, mask, overlap, shift)


def test_no_score_matrix_over_the_whole_length(monkeypatch: pytest.MonkeyPatch):
    """SDPA gets one chunk (and its overlap) of keys for each query, whatever the length."""
    from fairseq_efficient.ops.chunk_attention import fast

    stock, seen = fast.scaled_dot_product_attention, []

    def attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        seen.append((q.size(0), q.size(2), k.size(2)))
        return stock(q, k, v, **kwargs)

    monkeypatch.setattr(fast, "scaled_dot_product_attention", attend)
    chunk_attention(*inputs(1000), 16, masks(1000)["right"], 3, 5)
    assert seen == [(2 * 63, 16, 22)]


def test_the_host_never_waits_for_a_value():
    with FakeTensorMode():
        for (chunk, overlap, shift), padded in itertools.product(CUTS, (False, True)):
            q = torch.randn(2, 37, 2, 4, requires_grad=True)
            mask = torch.zeros(2, 37, dtype=torch.bool) if padded else None
            out = chunk_attention(q, q, q, chunk, mask, overlap, shift)
            out.sum().backward()
            assert out.shape == q.shape == q.grad.shape
