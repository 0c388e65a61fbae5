"""Token packing: layouts against loops, every attention backend against explicit softmax, gradients through it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_efficient.ops.token_pack import (
    BackendError,
    TokenLayout,
    attention,
    compact_tokens,
    naive,
    pack_tokens,
    places_where,
    repad_tokens,
    varlen_attention,
)
from tests.util import assert_close

ON_CPU = ("auto", "loop", "bucket", "padded")
RAGGED = [[3], [1], [1, 1, 1], [4, 4, 4], [9, 1, 5, 2, 9, 3], [0, 3, 0, 2, 0], [2, 60, 33, 1], [5, 6, 5, 6, 7]]


def mask_of(lengths: list[int], side: str = "right", width: int = 0) -> Tensor:
    width = max(width, *lengths) if lengths else width
    steps = torch.arange(width)
    mask = steps >= torch.tensor(lengths).unsqueeze(1)
    return mask if side == "right" else mask.flip(1)


def same_layout(one: TokenLayout, other: TokenLayout) -> None:
    assert torch.equal(one.index, other.index) and torch.equal(one.cu_seqlens, other.cu_seqlens)
    assert one.index.dtype == torch.int64 and one.cu_seqlens.dtype == torch.int32
    assert (one.max_len, one.min_len) == (other.max_len, other.min_len)


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_layouts_are_those_of_loops(lengths: list[int], side: str):
    mask = mask_of(lengths, side, width=7)
    layout = pack_tokens(mask)
    same_layout(layout, naive.pack_tokens(mask))
    assert layout.cu_seqlens.diff().tolist() == lengths
    for share in (0.0, 0.4, 1.0):
        keep = torch.rand(layout.index.numel()) < share
        (ours, rows), (theirs, places) = compact_tokens(layout, keep), naive.compact_tokens(layout, keep)
        same_layout(ours, theirs)
        assert torch.equal(rows, places) and torch.equal(layout.index[rows], ours.index)


def test_scattered_pads_pack_too():
    mask = torch.rand(6, 11) < 0.4
    same_layout(pack_tokens(mask), naive.pack_tokens(mask))


def test_a_batch_without_tokens_or_rows():
    for mask in (torch.ones(3, 4, dtype=torch.bool), torch.ones(0, 4, dtype=torch.bool), torch.ones(2, 0).bool()):
        layout = pack_tokens(mask)
        same_layout(layout, naive.pack_tokens(mask))
        values = torch.zeros(0, 2, 3)
        assert varlen_attention(values, values, values, layout.cu_seqlens, layout.max_len).shape == (0, 2, 3)
        assert repad_tokens(values, layout.index, *mask.shape).shape == (*mask.shape, 2, 3)
    same_layout(
        compact_tokens(layout, torch.zeros(0, dtype=torch.bool))[0],
        naive.compact_tokens(layout, torch.zeros(0, dtype=torch.bool))[0],
    )


@given(st.lists(st.booleans(), max_size=40))
def test_places_of_a_known_number(flags: list[bool]):
    mask = torch.tensor(flags, dtype=torch.bool)
    found = places_where(mask, sum(flags))
    assert torch.equal(found, naive.places_where(mask, sum(flags))) and found.dtype == torch.int64


class _Asked(TorchDispatchMode):
    """Counts what makes a host wait for its device: operators whose result it must know, and values it fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("nonzero", "_local_scalar_dense", "masked_select", "unique_dim", "is_nonzero", "equal"):
            self.waits.append(name)
        if name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1]):
            self.waits.append("index by a mask")
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_once_to_pack_and_once_to_compact(monkeypatch: pytest.MonkeyPatch):
    mask = mask_of([9, 1, 5, 2])
    fetch, fetched = Tensor.tolist, []
    monkeypatch.setattr(Tensor, "tolist", lambda self: (fetched.append(tuple(self.shape)), fetch(self))[1])
    with _Asked() as asked:
        layout = pack_tokens(mask)
        assert fetched == [(3,)] and asked.waits == []
        keep = torch.arange(17) % 3 == 0
        compact_tokens(layout, keep)
        repad_tokens(torch.randn(17, 2), layout.index, 4, 9)
        assert fetched == [(3,)] * 2 and asked.waits == []
        mask.nonzero()
    assert asked.waits == ["nonzero"]


@pytest.mark.parametrize("lengths", RAGGED)
def test_repadding_undoes_packing(lengths: list[int]):
    mask = mask_of(lengths, width=8)
    layout = pack_tokens(mask)
    full = torch.randn(*mask.shape, 3, dtype=torch.double).requires_grad_()
    for op in (repad_tokens, naive.repad_tokens):
        back = op(full.flatten(0, 1)[layout.index], layout.index, *mask.shape)
        assert_close(back, full.detach().masked_fill(mask.unsqueeze(-1), 0.0), 0, 0)
        (grad,) = torch.autograd.grad((back * back.detach().cos()).sum(), full)
        assert_close(grad, (full.detach().cos() * ~mask.unsqueeze(-1)), 1e-12)


def attend(op: Any, qkv: list[Tensor], bounds: tuple[Any, ...], **more: Any) -> list[Tensor]:
    """Output, and gradients of q, k, v."""
    out = op(*qkv, *bounds, **more)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), qkv)]


def bounds_of(lengths: list[int]) -> tuple[Tensor, int]:
    return torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("lengths", RAGGED)
def test_every_backend_is_attention_within_sentences(lengths: list[int], backend: str):
    qkv = [torch.randn(sum(lengths), 2, 4, dtype=torch.double).requires_grad_() for _ in range(3)]
    bounds = bounds_of(lengths)
    expected = attend(naive.varlen_attention, qkv, bounds)
    for ours, theirs in zip(attend(varlen_attention, qkv, bounds, backend=backend), expected, strict=True):
        assert_close(ours, theirs, 1e-10, 1e-10)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize(
    ("queries", "keys"),
    [([1, 1, 1], [5, 3, 1]), ([4, 0, 2], [2, 7, 2]), ([3, 3], [6, 6]), ([1, 9, 4, 4], [8, 8, 8, 8]), ([0, 2], [0, 3]),
     ([4, 4, 4], [2, 5, 3]), ([5, 2, 6], [3, 3, 3])],
)  # fmt: skip
def test_queries_may_have_keys_of_their_own(queries: list[int], keys: list[int], backend: str):
    q = torch.randn(sum(queries), 3, 4, dtype=torch.double).requires_grad_()
    k, v = (torch.randn(sum(keys), 3, 4, dtype=torch.double).requires_grad_() for _ in range(2))
    bounds = (*bounds_of(queries), *bounds_of(keys))
    expected = attend(naive.varlen_attention, [q, k, v], bounds)
    for ours, theirs in zip(attend(varlen_attention, [q, k, v], bounds, backend=backend), expected, strict=True):
        assert_close(ours, theirs, 1e-10, 1e-10)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_any_lengths(lengths: list[int], seed: int):
    torch.manual_seed(seed)
    if not sum(lengths):
        return
    qkv = [torch.randn(sum(lengths), 1, 8) for _ in range(3)]
    expected = naive.varlen_attention(*qkv, *bounds_of(lengths))
    for backend in ON_CPU:
        assert_close(varlen_attention(*qkv, *bounds_of(lengths), backend=backend), expected)


def test_a_bound_may_be_too_large_and_the_device_is_not_asked():
    """The form for CUDA without half precision: lengths are never read on the host."""
    lengths = [5, 0, 1, 3]
    qkv = [torch.randn(9, 2, 4, dtype=torch.double) for _ in range(3)]
    cu, _ = bounds_of(lengths)
    expected = naive.varlen_attention(*qkv, cu, 5)
    assert_close(attention.padded_to_bound(*qkv, cu, cu, 9, 9), expected, 1e-12)
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (*qkv, cu)]
        assert attention.padded_to_bound(*fake[:3], fake[3], fake[3], 9, 9).shape == (9, 2, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_close(dtype: torch.dtype):
    lengths = [5, 17, 2]
    qkv = [torch.randn(24, 2, 8).to(dtype) for _ in range(3)]
    expected = naive.varlen_attention(*[x.float() for x in qkv], *bounds_of(lengths))
    for backend in ON_CPU:
        out = varlen_attention(*qkv, *bounds_of(lengths), backend=backend)
        assert out.dtype == dtype
        assert_close(out.float(), expected, {torch.float32: 1e-5}.get(dtype, 2e-2), 0)


def test_equal_lengths_are_one_call_and_copied_nowhere(monkeypatch: pytest.MonkeyPatch):
    stock, seen = attention.scaled_dot_product_attention, []

    def call(q: Tensor, *more: Any, **options: Any) -> Tensor:
        seen.append((q.shape[0], q.untyped_storage().data_ptr(), options.get("attn_mask")))
        return stock(q, *more, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", call)
    q = torch.randn(12, 2, 4)
    varlen_attention(q, q, q, *bounds_of([4, 4, 4]))
    assert seen == [(3, q.untyped_storage().data_ptr(), None)]
    seen.clear()
    varlen_attention(q, q, q, *bounds_of([5, 4, 3]))
    assert seen == [(1, q.untyped_storage().data_ptr(), None)] * 3  # views again
    seen.clear()
    varlen_attention(q, q, q, *bounds_of([1, 6, 5]), backend="bucket")
    assert sorted(batch for batch, _, _ in seen) == [1, 2]


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for lengths in RAGGED:
        mask = mask_of(lengths, width=9)
        layout = pack_tokens(mask)
        qkv = [torch.randn(sum(lengths), 2, 4) for _ in range(3)]
        for backend in ON_CPU:
            out = varlen_attention(*qkv, layout.cu_seqlens, layout.max_len, backend=backend)
            assert out.isfinite().all() and repad_tokens(out, layout.index, *mask.shape).isfinite().all()


def test_what_cannot_run_is_refused():
    q = torch.randn(3, 1, 4)
    cu, longest = bounds_of([3])
    with pytest.raises(ValueError, match="backend 'fast' is not one of auto, loop, bucket, padded, varlen"):
        varlen_attention(q, q, q, cu, longest, backend="fast")
    with pytest.raises(BackendError, match=r"needs a GPU \(Ampere or newer\), half precision, and heads of 8"):
        varlen_attention(q, q, q, cu, longest, backend="varlen")
    with pytest.raises(ValueError, match="cu_keys needs max_keys"):
        varlen_attention(q, q, q, cu, longest, cu)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "runs"),
    [(torch.bfloat16, 32, (8, 0), True), (torch.float16, 256, (9, 0), True), (torch.float32, 32, (9, 0), False),
     (torch.float16, 32, (7, 5), False), (torch.float16, 4, (8, 6), False), (torch.float16, 264, (9, 0), False)],
)  # fmt: skip
def test_the_flash_kernel_is_asked_where_it_runs(
    dtype: torch.dtype, width: int, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
):
    """Elsewhere on CUDA ``auto`` takes the padded form."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = SimpleNamespace(device=torch.device("cuda:0"), dtype=dtype, size=lambda place: width)
    assert attention.varlen_runs(q) == runs  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "varlen", "padded", "bucket", "loop"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_cuda(backend: str, dtype: torch.dtype):
    if backend == "varlen" and dtype == torch.float32:
        pytest.skip("half precision only")
    lengths = [5, 170, 2, 64]
    qkv = [torch.randn(sum(lengths), 4, 32, device="cuda").to(dtype) for _ in range(3)]
    cu, longest = bounds_of(lengths)
    expected = naive.varlen_attention(*[x.float() for x in qkv], cu, longest)
    out = varlen_attention(*qkv, cu.cuda(), longest, backend=backend)
    assert_close(out.float(), expected, 1e-4 if dtype == torch.float32 else 2e-2, 0)
