"""The pooling operator: fast against naive, and what the paper and padding promise of both."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_efficient.ops.topk_halving import num_rounds, topk_halving
from fairseq_efficient.ops.topk_halving.naive import topk_halving as naive
from tests.util import assert_close

BOTH = pytest.mark.parametrize("op", [topk_halving, naive], ids=["fast", "naive"])
FLIP = pytest.mark.parametrize("flip_right", [True, False], ids=["flip", "straight"])
SORT = pytest.mark.parametrize("sort_back", [True, False], ids=["sorted", "by_score"])
ORDERS = [{"flip_right": flip, "sort_back": back} for flip, back in itertools.product([True, False], repeat=2)]
MASKS = ("none", "left", "right", "scattered", "empty_row")


class Case(NamedTuple):
    values: Tensor
    scores: Tensor
    mask: Tensor | None


def make(kind: str, batch: int, n: int, seed: int, channels: int = 3, spread: float = 1.0) -> Case:
    """Values, scores (sigmoid + 1e-5) and a mask; pads carry values and scores too, of the same size."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, n, channels, generator=draw, dtype=torch.double)
    scores = (spread * torch.randn(batch, n, generator=draw, dtype=torch.double)).sigmoid() + 1e-5
    if kind == "none":
        return Case(values, scores, None)
    lengths = torch.randint(1, n + 1, (batch, 1), generator=draw)
    mask = torch.arange(n) >= lengths
    if kind == "left":
        mask = mask.flip(1)
    elif kind in ("scattered", "empty_row"):
        mask = torch.rand(batch, n, generator=draw) < torch.rand(batch, 1, generator=draw)
    if kind == "empty_row":
        mask[0] = True
    return Case(values, scores, mask)


def with_gradients(op: Callable[..., Any], case: Case, k: int, **flags: Any) -> list[Tensor | None]:
    """Everything ``op`` returns, then the gradients of values and scores under a fixed random cotangent."""
    values, scores = case.values.clone().requires_grad_(), case.scores.clone().requires_grad_()
    pooled = op(values, scores, k, case.mask, **flags)
    draw = torch.Generator().manual_seed(1)
    real = 1.0 if pooled.padding_mask is None else (~pooled.padding_mask).double()
    loss = (pooled.values.sum(-1) * real * torch.randn(pooled.scores.shape, generator=draw, dtype=torch.double)).sum()
    loss = loss + (pooled.values[..., 0].square() * real).sum() + (pooled.scores * real).sum()
    grads = torch.autograd.grad(loss + 0 * (values.sum() + scores.sum()), (values, scores))
    return [*pooled, *grads]


def assert_parity(case: Case, k: int, **flags: Any) -> None:
    """Fast and naive return the same, kept positions and mask exactly, and have the same gradients."""
    ours, reference = with_gradients(topk_halving, case, k, **flags), with_gradients(naive, case, k, **flags)
    assert torch.equal(ours[3], reference[3]), (case.scores.shape, k, flags)
    assert ours[2] is reference[2] is None or torch.equal(ours[2], reference[2])
    for mine, theirs in zip(ours, reference, strict=True):
        if mine is not None:
            assert_close(mine, theirs, 1e-10, 1e-10)


def weights_of(case: Case, k: int, **flags: Any) -> Tensor:
    """(B, k, n): how much of each input is in each slot."""
    batch, n = case.scores.shape
    return topk_halving(torch.eye(n, dtype=torch.double).expand(batch, n, n), case.scores, k, case.mask, **flags).values


@pytest.mark.parametrize("kind", MASKS)
@FLIP
@SORT
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_p3_fast_is_naive(kind: str, flip_right: bool, sort_back: bool, hard: bool):
    """Outputs, kept positions and gradients, to 1e-10 in float64."""
    sizes = [(1, 2, 1), (3, 9, 4), (2, 16, 4), (4, 23, 7), (2, 40, 3), (3, 33, 32), (2, 31, 1)]
    for seed, (batch, n, k) in enumerate(sizes):
        case = make(kind, batch, n, seed)
        base = (1.5, 7.0, 20.0, 300.0)[seed % 4]
        assert_parity(case, k, flip_right=flip_right, sort_back=sort_back, hard=hard, base=base)


@pytest.mark.parametrize("kind", ["none", "scattered"])
@SORT
def test_ties_are_broken_by_position_as_in_naive(kind: str, sort_back: bool):
    for seed in range(40):
        case = make(kind, 2, 8 + seed % 17, seed)
        case = case._replace(scores=(case.scores * 3).round() / 3)
        assert_parity(case, 3, sort_back=sort_back)


@pytest.mark.parametrize("kind", ["none", "scattered"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_scores_need_not_lie_between_0_and_1(kind: str, hard: bool):
    """A negative score still beats padding."""
    for seed in range(5):
        case = make(kind, 3, 21, seed)
        assert_parity(case._replace(scores=6 * case.scores - 5), 4, hard=hard, base=3.0)


@BOTH
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("k", [5, 6, 100])
def test_p1_nothing_to_drop_changes_nothing(op: Callable[..., Any], hard: bool, k: int):
    values, scores, mask = make("left", 3, 5, 0)
    for order in ORDERS:
        pooled = op(values, scores, k, mask, hard=hard, **order)
        assert torch.equal(pooled.values, values) and torch.equal(pooled.scores, scores)
        assert torch.equal(pooled.padding_mask, mask) and op(values, scores, k, None).padding_mask is None


@FLIP
@SORT
@pytest.mark.parametrize("kind", ["none", "scattered"])
def test_p2_inputs_are_partitioned(kind: str, flip_right: bool, sort_back: bool):
    for seed, (n, k) in enumerate([(16, 4), (24, 3), (9, 4), (30, 7), (5, 2)]):
        case = make(kind, 3, n, seed)
        weights = weights_of(case, k, flip_right=flip_right, sort_back=sort_back, base=1.2)
        assert (weights >= 0).all()
        joined = (weights > 0).sum(1)
        real = torch.ones(3, n, dtype=torch.long) if case.mask is None else (~case.mask).long()
        assert torch.equal(joined, real), "each real input is in exactly one slot, and no pad is in any"
        kept = real.sum(1).clamp(max=k)
        expected = (torch.arange(k) < kept.unsqueeze(1)).double()
        assert_close(weights.sum(2), expected, 1e-12, 0)
        if kind == "none" and n == k * 2 ** num_rounds(n, k):
            assert ((weights > 0).sum(2) == n // k).all()


@FLIP
@SORT
@pytest.mark.parametrize("dtype", [torch.double, torch.float16])
def test_p4_equal_scores_give_means(flip_right: bool, sort_back: bool, dtype: torch.dtype):
    case = Case(torch.zeros(2, 24, 1), torch.full((2, 24), 0.7, dtype=dtype), None)
    weights = weights_of(case, 3, flip_right=flip_right, sort_back=sort_back)
    assert set(weights.unique().tolist()) == {0.0, 1 / 8} and ((weights > 0).sum(2) == 8).all()


@BOTH
@FLIP
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", ["none", "scattered"])
def test_p5_sort_back_keeps_the_order_of_the_text(op: Callable[..., Any], flip_right: bool, hard: bool, kind: str):
    for seed in range(5):
        case = make(kind, 2, 21, seed)
        pooled = op(*case[:2], 4, case.mask, flip_right=flip_right, sort_back=True, hard=hard)
        for row, gone in zip(pooled.index, pooled.index < 0, strict=True):
            assert (row[~gone].diff() > 0).all() and not (gone[:-1] & ~gone[1:]).any()


@BOTH
def test_p5_otherwise_hard_slots_are_in_order_of_score(op: Callable[..., Any]):
    for seed in range(5):
        case = make("none", 3, 21, seed)
        assert (op(*case[:2], 6, hard=True).scores.diff(dim=1) <= 0).all()


@FLIP
@SORT
def test_p6_one_round_keeps_the_top_half(flip_right: bool, sort_back: bool):
    for seed, n in enumerate((8, 30, 62)):
        case = make("none", 4, n, seed)
        weights = weights_of(case, n // 2, flip_right=flip_right, sort_back=sort_back)
        expected = case.scores.topk(n // 2).indices.sort().values
        assert torch.equal(weights.argmax(2).sort().values, expected)


@pytest.mark.parametrize(
    ("n", "k", "cosine", "overlap"),
    [(8192, 16, 0.56, 0), (8192, 128, 0.92, 0.99), (8192, 512, 0.97, 0.99), (8192, 2048, 0.987, 0.99),
     (2048, 512, 0.986, 0.99), (512, 128, 0.986, 0.99)],
)  # fmt: skip
def test_p6_quality_is_the_authors(n: int, k: int, cosine: float, overlap: float):
    """Uniform scores, base 20: mean cosine of the true top-k vectors with their nearest output (authors' table)."""
    batch = max(2, 8192 * 4 // n)
    values, scores = normalize(torch.randn(batch, n, 16), dim=-1), torch.rand(batch, n)
    top = scores.topk(k).indices
    wanted = values.gather(1, top.unsqueeze(-1).expand(-1, -1, 16))
    pooled = topk_halving(values, scores, k)
    nearest = torch.bmm(wanted, normalize(pooled.values, dim=-1).transpose(1, 2)).amax(2)
    assert nearest.mean() >= cosine - 0.002  # the table is rounded, and a mean of a few draws
    shared = [torch.isin(mine, best).float().mean() for mine, best in zip(pooled.index, top, strict=True)]
    assert torch.stack(shared).mean() >= overlap


@BOTH
@pytest.mark.parametrize("dtype", [torch.double, torch.float32, torch.float16])
def test_p7_hard_is_topk(op: Callable[..., Any], dtype: torch.dtype):
    """Exact gather of the top-k; among equal scores (fp16 has many) the lower position wins."""
    for seed, kind in enumerate(("none", "scattered", "left", "right")):
        case = make(kind, 3, 40, seed)
        scores, values = case.scores.to(dtype), case.values.to(dtype)
        scores[:, ::3] = scores[:, :1]
        for back in (True, False):
            pooled = op(values, scores, 6, case.mask, sort_back=back, hard=True)
            for b in range(3):
                real = [i for i in range(40) if case.mask is None or not case.mask[b, i]]
                best = sorted(real, key=lambda i, b=b: (-scores[b, i].item(), i))[:6]
                best = sorted(best) if back or len(real) <= 6 else best
                assert pooled.index[b, : len(best)].tolist() == best
                assert torch.equal(pooled.values[b, : len(best)], values[b, best])
                assert (pooled.values[b, len(best) :] == 0).all() and (pooled.index[b, len(best) :] == -1).all()
        assert pooled.values.dtype == dtype


@FLIP
@SORT
def test_p8_a_large_base_is_hard(flip_right: bool, sort_back: bool):
    scores = torch.stack([torch.randperm(32).double() for _ in range(3)]) / 32 + 0.01
    case = Case(torch.randn(3, 32, 4, dtype=torch.double), scores, make("scattered", 3, 32, 2).mask)
    soft = topk_halving(*case[:2], 4, case.mask, base=1e30, flip_right=flip_right, sort_back=sort_back)
    hard = topk_halving(*case[:2], 4, case.mask, hard=True, flip_right=flip_right, sort_back=sort_back)
    assert torch.equal(soft.index, hard.index)
    assert_close(soft.values, hard.values, 1e-10, 1e-10)
    assert_close(soft.scores, hard.scores, 1e-10, 1e-10)


@BOTH
@pytest.mark.parametrize("base", [1, 0.5, 0, -3, float("nan")])
def test_p8_a_base_of_one_or_less_is_refused(op: Callable[..., Any], base: float):
    with pytest.raises(ValueError, match="base must be greater than 1"):
        op(torch.zeros(1, 4, 2), torch.ones(1, 4), 2, base=base)


@BOTH
def test_wrong_arguments_are_refused(op: Callable[..., Any]):
    values, scores = torch.zeros(2, 4, 3), torch.ones(2, 4)
    for bad in [
        (values, scores, 0),
        (values[0], scores, 2),
        (values, scores[:, :3], 2),
        (values, scores, 2, scores[:1] > 0),
    ]:
        with pytest.raises(ValueError):
            op(*bad)


@FLIP
@SORT
@pytest.mark.parametrize("kind", ["none", "scattered"])
def test_p9_gradcheck(flip_right: bool, sort_back: bool, kind: str):
    case = make(kind, 2, 7, 3, channels=2)
    for k, base in ((2, 3.0), (3, 20.0)):
        torch.autograd.gradcheck(
            lambda v, s, k=k, base=base: topk_halving(
                v, s, k, case.mask, base=base, flip_right=flip_right, sort_back=sort_back
            )[:2],
            (case.values.requires_grad_(), case.scores.requires_grad_()),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logits", ["ties", "saturated"])
def test_p9_gradients_are_finite(dtype: torch.dtype, logits: str):
    scale = torch.zeros(2, 16) if logits == "ties" else torch.tensor([-50.0, 50.0]).repeat(2, 8)
    z = scale.to(dtype).requires_grad_()
    values = torch.randn(2, 16, 3).to(dtype).requires_grad_()
    for flags in ORDERS:
        pooled = topk_halving(values, z.sigmoid() + 1e-5, 3, torch.arange(16).expand(2, 16) > 13, **flags)
        assert pooled.scores.dtype == torch.float32 and pooled.values.dtype == dtype
        assert pooled.values.isfinite().all()
        grads = torch.autograd.grad(pooled.values.float().square().sum() + pooled.scores.sum(), (values, z))
        assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_values(dtype: torch.dtype, tolerance: float):
    """Weights and order come from fp32 scores: only the values are rounded."""
    values, scores = torch.randn(2, 64, 8).to(dtype), torch.rand(2, 64)
    half, full = topk_halving(values, scores, 8), topk_halving(values.float(), scores, 8)
    assert half.values.dtype == dtype and torch.equal(half.scores, full.scores) and torch.equal(half.index, full.index)
    assert_close(half.values.float(), full.values, tolerance, tolerance)


def test_autocast_does_not_reach_the_operator():
    values, scores = torch.randn(2, 33, 8), torch.rand(2, 33)
    with torch.autocast("cpu", torch.bfloat16):
        inside = topk_halving(values, scores, 5)
    for mine, theirs in zip(inside, topk_halving(values, scores, 5), strict=True):
        assert mine is theirs or torch.equal(mine, theirs)


@FLIP
def test_p10_permuting_the_inputs(flip_right: bool):
    """By score: the output is the same; sorted back: the same slots, in the new order of their winners."""
    case = make("none", 1, 24, 5)
    where = torch.randperm(24)
    moved = Case(case.values[:, where], case.scores[:, where], None)
    one = topk_halving(*case[:2], 5, flip_right=flip_right)
    two = topk_halving(*moved[:2], 5, flip_right=flip_right)
    assert_close(one.values, two.values, 1e-12, 0)
    assert torch.equal(one.index[0], where[two.index[0]])
    one = topk_halving(*case[:2], 5, flip_right=flip_right, sort_back=True)
    two = topk_halving(*moved[:2], 5, flip_right=flip_right, sort_back=True)
    back = where[two.index[0]].argsort()
    assert torch.equal(one.index[0], where[two.index[0]][back])
    assert_close(one.values[0], two.values[0, back], 1e-12, 0)


ragged = st.builds(
    lambda rows, k, seed, order: (rows, k, seed, order),
    st.lists(st.lists(st.booleans(), min_size=26, max_size=26), min_size=1, max_size=4),
    st.integers(1, 26),
    st.integers(0, 10**6),
    st.sampled_from(ORDERS),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ragged)
def test_a_document_does_not_see_padding(drawn: tuple):
    """Each row equals its real inputs alone, whatever the pads hold, wherever they are."""
    rows, k, seed, order = drawn
    case = make("none", len(rows), 26, seed)._replace(mask=torch.tensor(rows))
    for hard in (False, True):
        together = topk_halving(*case[:2], k, case.mask, hard=hard, **order)
        if k >= 26:
            continue
        for b, gone in enumerate(rows):
            real = [i for i in range(26) if not gone[i]]
            kept = min(k, len(real))
            assert together.padding_mask[b].tolist() == [False] * kept + [True] * (k - kept)
            if real:
                alone = topk_halving(case.values[b : b + 1, real], case.scores[b : b + 1, real], k, hard=hard, **order)
                assert_close(together.values[b, :kept], alone.values[0], 1e-12, 0)
                assert_close(together.scores[b, :kept], alone.scores[0], 1e-12, 0)
                assert together.index[b, :kept].tolist() == [real[i] for i in alone.index[0]]


@pytest.mark.parametrize("op", [topk_halving, naive], ids=["fast", "naive"])
def test_what_pads_hold_changes_nothing(op: Callable[..., Any]):
    case = make("scattered", 3, 40, 0)
    gone = case.mask
    other = Case(case.values.masked_fill(gone.unsqueeze(-1), 1e30), case.scores.masked_fill(gone, 1.0), gone)
    for flags in [*ORDERS, {"hard": True}, {"hard": True, "sort_back": True}]:
        one, two = with_gradients(op, other, 6, **flags), with_gradients(op, case, 6, **flags)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, two, strict=True)), flags


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for kind in MASKS:
        for flags in [*ORDERS, {"hard": True}]:
            assert_parity(make(kind, 3, 23, 1), 5, **flags)


class _Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("hard", [False, True])
def test_no_loop_over_the_batch(hard: bool):
    counts = []
    for batch in (2, 32):  # one row alone takes a shortcut
        case = make("right", batch, 50, 0)
        with _Calls() as calls:
            with_gradients(topk_halving, case, 6, hard=hard)
        counts.append(calls.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("hard", [False, True])
def test_the_host_never_waits_for_a_value(hard: bool):
    """Under fake tensors (no data) anything like ``item()`` raises."""
    with FakeTensorMode():
        mask = torch.zeros(2, 37, dtype=torch.bool)
        values, scores = torch.randn(2, 37, 3, requires_grad=True), torch.rand(2, 37, requires_grad=True)
        for one, order in itertools.product((None, mask), ORDERS):
            pooled = topk_halving(values, scores, 5, one, hard=hard, **order)
            pooled.values.sum().backward()
            assert pooled.values.shape == (2, 5, 3) and values.grad is not None
