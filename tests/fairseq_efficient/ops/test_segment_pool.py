"""Segment pooling and its way back: fast against naive, the original's recording, and what padding promises."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fairseq_efficient.ops.segment_pool import SegmentPooled, segment_ids, segment_layout, segment_pool, upsample
from fairseq_efficient.ops.segment_pool import fast as fast_module
from fairseq_efficient.ops.segment_pool import naive as naive_module
from tests.util import ROOT, assert_close

BOTH = pytest.mark.parametrize("op", [segment_pool, naive_module.segment_pool], ids=["fast", "naive"])
ESTIMATOR = pytest.mark.parametrize("estimator", ["interior", "both"])
MASKS = ("none", "right", "left", "scattered", "empty_row")
RATES = (0.0, 0.1, 0.5, 1.0)


def mask_of(kind: str, batch: int, length: int) -> Tensor | None:
    if kind == "none":
        return None
    lengths = torch.randint(1, length + 1, (batch, 1))
    mask = torch.arange(length) >= lengths
    if kind == "left":
        mask = mask.flip(1)
    elif kind in ("scattered", "empty_row"):
        mask = torch.rand(batch, length) < 0.4
    if kind == "empty_row":
        mask[-1] = True
    return mask


def make(batch: int, length: int, rate: float, kind: str = "none", channels: int = 3) -> tuple[Tensor, Tensor, Any]:
    """Hidden states, boundaries at ``rate`` and a mask; no boundary falls on a pad."""
    mask = mask_of(kind, batch, length)
    boundaries = torch.rand(batch, length) < rate
    return torch.randn(batch, length, channels).double(), boundaries if mask is None else boundaries & ~mask, mask


def with_gradients(module: Any, hidden: Tensor, boundaries: Tensor, mask: Tensor | None, **flags: Any) -> list[Tensor]:
    """All that pooling, something nonlinear and upsampling return, and the gradients of all that has one."""
    hidden, null = hidden.clone().requires_grad_(), hidden[0, 0].clone().requires_grad_()
    sources = [hidden, null]
    if boundaries.is_floating_point():
        boundaries = boundaries.clone().requires_grad_()
        sources.append(boundaries)
    pooled = module.segment_pool(hidden, boundaries, mask, null=null, **flags)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(pooled.values.shape, generator=generator, dtype=torch.double).to(hidden.dtype)
    middle = pooled.values.sin() * weight
    out = module.upsample(middle, segment_ids(boundaries, mask)[1])
    rate = torch.randn(out.shape, generator=generator, dtype=torch.double).to(hidden.dtype)
    loss = (out * rate).sum() + (pooled.values * weight.flip(0)).sum() + sum((0 * source).sum() for source in sources)
    return [*pooled, out.detach(), *torch.autograd.grad(loss, sources)]


def assert_parity(case: tuple[Tensor, Tensor, Tensor | None], tolerance: float = 1e-10, **flags: Any) -> None:
    ours, reference = (with_gradients(module, *case, **flags) for module in (fast_module, naive_module))
    for mine, theirs in zip(ours, reference, strict=True):
        assert_close(mine, theirs, tolerance, tolerance)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_fast_is_naive(kind: str, rate: float, pool: str):
    """Outputs and gradients, to 1e-10 in float64, for random, all, no and single boundaries, one row and many."""
    for batch, length in [(1, 1), (1, 9), (3, 1), (3, 17), (4, 40)]:
        assert_parity(make(batch, length, rate, kind), kind=pool)


@ESTIMATOR
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rate", RATES)
def test_straight_through_gradients(estimator: str, kind: str, rate: float):
    for batch, length in [(1, 1), (1, 9), (3, 17), (4, 40)]:
        hidden, boundaries, mask = make(batch, length, rate, kind)
        assert_parity((hidden, boundaries.double(), mask), estimator=estimator)


@ESTIMATOR
def test_float32(estimator: str):
    hidden, boundaries, mask = make(3, 300, 0.2, "right")
    assert_parity((hidden.float(), boundaries.float(), mask), 1e-5, estimator=estimator)
    assert_parity((hidden.float(), boundaries, mask), 1e-5)


def test_the_gradient_of_boundaries_does_not_lose_precision_with_length():
    """A segment far down a row of large gradients gets what it gets alone."""
    length = 20000
    hidden = torch.randn(1, length, 4)
    boundaries = (torch.rand(1, length) < 0.2).float()
    boundaries[0, -9], boundaries[0, -1] = 1.0, 1.0
    boundaries[0, -8:-1] = 0.0
    grads = []
    for start in (0, length - 8):
        soft = boundaries[:, start:].clone().requires_grad_()
        pooled = segment_pool(1e3 * hidden[:, start:], soft)
        grads.append(torch.autograd.grad(pooled.values.square().sum(), soft)[0][:, -8:])
    assert_close(grads[0] / grads[1].abs().max(), grads[1] / grads[1].abs().max(), 1e-6, 0)


def test_interior_estimator_is_the_closed_form():
    """Written out once more, with a loop over the members; zero at boundaries and in the tail."""
    hidden, boundaries, _ = make(3, 30, 0.2)
    soft = boundaries.double().requires_grad_()
    pooled = segment_pool(hidden, soft)
    g = torch.randn_like(pooled.values)
    (found,) = torch.autograd.grad(pooled.values, soft, g)
    expected = torch.zeros_like(found)
    for r in range(3):
        start = 0
        for j, end in enumerate(boundaries[r].nonzero().flatten().tolist()):
            n = end + 1 - start
            for i in range(1, n):
                later = (hidden[r, start + i : end + 1] @ g[r, j + 1]).sum() / n
                expected[r, start + i - 1] = later - (n - i) / n * g[r, j + 1] @ pooled.values[r, j + 1]
            start = end + 1
        assert (found[r, start:] == 0).all()
    assert_close(found, expected, 1e-12)
    assert (found[boundaries] == 0).all()


def test_the_other_estimator_is_the_first_order_effect_of_merging():
    """At a boundary between closed segments: the change of the loss when both means become their common mean."""
    hidden = torch.randn(1, 6, 4, dtype=torch.double)
    soft = torch.tensor([[0, 1, 0, 0, 1, 0]]).double().requires_grad_()
    pooled = segment_pool(hidden, soft, estimator="both")
    g = torch.randn_like(pooled.values)
    (found,) = torch.autograd.grad(pooled.values, soft, g)
    one, two, merged = hidden[0, :2].mean(0), hidden[0, 2:5].mean(0), hidden[0, :5].mean(0)
    assert_close(found[0, 1], g[0, 1] @ (one - merged) + g[0, 2] @ (two - merged), 1e-12)
    assert found[0, 4] == 0 and found[0, 5] == 0
    hard = segment_pool(hidden, soft.detach() > 0.5)
    assert_close(pooled.values.detach(), hard.values, 0, 0)


@pytest.mark.parametrize("case", range(4))
def test_recording_of_the_original(case: int):
    one = torch.load(ROOT / "tests" / "fixtures" / "shortening_1.pt", weights_only=True)["cases"][case]
    boundaries = one["boundaries"] > 0.5
    hidden, recorded = one["hidden"].transpose(0, 1), one["shortened"].transpose(0, 1)
    _, ids, counts = segment_ids(boundaries)
    for module in (fast_module, naive_module):
        pooled = module.segment_pool(hidden, boundaries, null=one["null_group"].flatten())
        assert pooled.values.shape == recorded.shape and torch.equal(pooled.lengths, counts + 1)
        used = torch.arange(recorded.size(1)) <= counts.unsqueeze(1)  # the original leaves the tail's mean behind
        assert_close(pooled.values[used], recorded[used])
        assert (pooled.values[~used] == 0).all()
        assert_close(module.upsample(recorded, ids).transpose(0, 1), one["upsampled"])


def test_ids():
    boundaries = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]]).bool()
    exclusive, inclusive, counts = segment_ids(boundaries)
    assert exclusive.tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]]
    assert inclusive.tolist() == [[0, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 3]]
    assert counts.tolist() == [2, 3] and exclusive.dtype == inclusive.dtype == counts.dtype == torch.int64
    mask = torch.tensor([[False] * 4 + [True] * 2, [True] + [False] * 5])
    assert [ids.tolist() for ids in segment_ids(boundaries.float(), mask)] == [
        [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]],
        [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 2]],
        [1, 2],
    ]


@BOTH
def test_what_is_returned(op: Any):
    hidden = torch.arange(12.0).view(2, 6, 1)
    boundaries = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    pooled = op(hidden, boundaries)
    assert isinstance(pooled, SegmentPooled)
    assert pooled.values[..., 0].tolist() == [[0, 0.5, 3], [0, 6, 0]]
    assert pooled.counts.tolist() == [[0, 2, 3], [0, 1, 0]] and pooled.lengths.tolist() == [3, 2]
    wider = op(hidden, boundaries, kind="last", groups=3, null=torch.tensor([7.0]))
    assert wider.values[..., 0].tolist() == [[7, 1, 4, 0], [7, 6, 0, 0]]
    assert wider.counts.tolist() == [[0, 2, 3, 0], [0, 1, 0, 0]] and wider.lengths.tolist() == [3, 2]


@BOTH
@pytest.mark.parametrize("kind", MASKS)
def test_a_row_is_what_it_is_alone_and_without_pads(op: Any, kind: str):
    hidden, boundaries, mask = make(4, 23, 0.3, kind)
    pooled = op(hidden, boundaries, mask)
    for r in range(4):
        real = slice(None) if mask is None else ~mask[r]
        if not boundaries[r, real].numel():
            continue
        alone = op(hidden[r : r + 1, real], boundaries[r : r + 1, real])
        assert_close(pooled.values[r, : pooled.lengths[r]], alone.values[0], 1e-14)
        assert torch.equal(pooled.counts[r, : pooled.lengths[r]], alone.counts[0])
        assert (pooled.values[r, pooled.lengths[r] :] == 0).all()


@pytest.mark.parametrize("kind", MASKS[1:])
def test_what_pads_hold_changes_nothing(kind: str):
    hidden, boundaries, mask = make(3, 20, 0.3, kind)
    one = segment_pool(hidden, boundaries, mask)
    two = segment_pool(hidden.masked_fill(mask.unsqueeze(-1), 1e9), boundaries | mask, mask)
    assert torch.equal(one.values, two.values) and torch.equal(one.counts, two.counts)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("groups", [None, 19])
def test_layouts_agree(kind: str, groups: int | None):
    _, boundaries, mask = make(3, 20, 0.3, kind)
    fast, naive = (module.segment_layout(boundaries, mask, groups) for module in (fast_module, naive_module))
    for name, one, other in zip(fast._fields, fast, naive, strict=True):
        if one is not None:
            assert torch.equal(one.expand_as(other), other), name


def test_room_for_more_columns_changes_nothing():
    hidden, boundaries, _ = make(3, 20, 0.3)
    soft = boundaries.double()
    most = int(boundaries.sum(1).max())
    assert_parity((hidden, soft, None), groups=most + 4, estimator="both")
    one, two = segment_pool(hidden, boundaries), segment_pool(hidden, boundaries, groups=most + 4)
    assert torch.equal(one.values, two.values[:, : most + 1]) and (two.values[:, most + 1 :] == 0).all()
    with pytest.raises(RuntimeError, match="closed segments"):
        segment_pool(hidden, boundaries, groups=most - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype):
    """The mean of 4,096 tokens, and the gradient of a column that as many read, are right to one rounding."""
    hidden = (1 + torch.rand(1, 4096, 2)).to(dtype).requires_grad_()
    boundaries = torch.zeros(1, 4096, dtype=torch.bool)
    boundaries[0, -1] = True
    pooled = segment_pool(hidden, boundaries)
    wide = hidden.detach().double().mean(1)
    assert pooled.values.dtype == dtype
    assert_close(pooled.values[:, 1].double(), wide, 0, torch.finfo(dtype).eps)
    values = torch.zeros(1, 1, 2, dtype=dtype, requires_grad=True)
    out = upsample(values, torch.zeros(1, 4096, dtype=torch.int64))
    (grad,) = torch.autograd.grad(out, values, hidden.detach())
    assert_close(grad[0].double(), 4096 * wide, 0, torch.finfo(dtype).eps)
    soft = boundaries.to(dtype).requires_grad_()
    grads = torch.autograd.grad(segment_pool(hidden, soft, estimator="both").values.float().sum(), (hidden, soft))
    assert [g.dtype for g in grads] == [dtype, dtype] and all(g.isfinite().all() for g in grads)


@BOTH
def test_impossible_arguments_are_refused(op: Any):
    hidden, boundaries, mask = make(2, 6, 0.5, "right")
    soft = boundaries.double().requires_grad_()
    for match, args, flags in [
        ("kind", (hidden, boundaries), {"kind": "max"}),
        ("estimator", (hidden, boundaries), {"estimator": "exact"}),
        ("straight-through", (hidden, soft), {"kind": "last"}),
        ("boundaries", (hidden, boundaries[:, :5]), {}),
        ("padding_mask", (hidden, boundaries, mask[:1]), {}),
        ("groups", (hidden, boundaries), {"groups": -1}),
        ("null", (hidden, boundaries), {"null": torch.zeros(4)}),
    ]:
        with pytest.raises(ValueError, match=match):
            op(*args, **flags)
    for ids in ([[0, 1, 2]], [[-1, 0, 0]]):
        with pytest.raises((IndexError, RuntimeError), match=r"ids|range"):
            upsample(hidden[:1, :2], torch.tensor(ids))
        with pytest.raises(RuntimeError, match="ids must lie in"):
            upsample(hidden[:2, :2], torch.tensor([*ids, [0, 0, 0]]))
    falling = upsample(hidden[:1, :2].clone().requires_grad_(), torch.tensor([[0, 1, 0]]))
    with pytest.raises(RuntimeError, match="ids must not decrease"):
        falling.sum().backward()
    with pytest.raises(ValueError, match="layout"):
        segment_pool(hidden, boundaries, layout=segment_layout(boundaries[:, :5]))
    with pytest.raises(ValueError, match="ids"):
        upsample(hidden, torch.zeros(3, 4, dtype=torch.int64))


def test_any_memory_layout():
    hidden, boundaries, mask = make(3, 20, 0.3, "left", channels=4)
    for order in itertools.permutations(range(3)):
        back = [order.index(i) for i in range(3)]
        assert_parity((hidden.permute(order).contiguous().permute(back), boundaries.t().contiguous().t(), mask))


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for kind, rate in itertools.product(MASKS, RATES):
        hidden, boundaries, mask = make(3, 19, rate, kind)
        assert_parity((hidden, boundaries.double(), mask), estimator="both")


@pytest.mark.parametrize("padded", [False, True])
@ESTIMATOR
def test_the_host_never_waits_for_a_value(padded: bool, estimator: str):
    """If it is told how many groups to make room for."""
    with FakeTensorMode():
        hidden = torch.randn(2, 37, 4, requires_grad=True)
        soft = torch.zeros(2, 37).requires_grad_()
        mask = torch.zeros(2, 37, dtype=torch.bool) if padded else None
        pooled = segment_pool(hidden, soft, mask, groups=9, estimator=estimator)
        out = upsample(pooled.values, segment_ids(soft, mask)[1])
        out.sum().backward()
        assert out.shape == hidden.grad.shape == hidden.shape and soft.grad.shape == soft.shape
        segment_pool(hidden, soft.detach(), mask, groups=9, kind="last").values.sum().backward()
