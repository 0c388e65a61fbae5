"""Masks over tokens: equal to removal forward, a gradient for every mask backward, fast against the formulas."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_efficient.ops.token_mask import fast, masked_attention, masked_update, naive
from fairseq_efficient.ops.token_mask.common import MAX_EXPONENT
from tests.util import assert_close

RULES = ("renorm", "postmult")
LENGTHS = [[7, 5, 3], [1], [9, 1], [33, 64]]


def inputs(lengths: list[int], dtype: torch.dtype = torch.double, heads: int = 2) -> list[Tensor]:
    shape = (len(lengths), max(lengths), heads, 4)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]


def padding(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)


def masks(lengths: list[int], dtype: torch.dtype = torch.double) -> dict[str, Tensor]:
    shape = (len(lengths), max(lengths))
    hard = (torch.rand(shape) < 0.5).to(dtype).index_fill(1, torch.tensor([0]), 1.0)
    first = torch.zeros(shape, dtype=dtype).index_fill(1, torch.tensor([0]), 1.0)
    return {
        "hard": hard.requires_grad_(),
        "soft": (0.01 + 0.99 * torch.rand(shape, dtype=dtype)).requires_grad_(),
        "all": torch.ones(shape, dtype=dtype, requires_grad=True),
        "first": first.requires_grad_(),
    }


def results(op: Any, qkv: list[Tensor], keep: Tensor, pads: Tensor | None, rule: str) -> list[Tensor]:
    out = op(*qkv, keep, pads, 0.0, rule)
    real = out if pads is None else out[~pads]
    return [out, *torch.autograd.grad((real * real.detach().cos()).sum(), [*qkv, keep])]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", ["hard", "soft", "all", "first"])
def test_fast_is_naive(rule: str, lengths: list[int], kind: str, monkeypatch: pytest.MonkeyPatch):
    """Outputs and gradients of q, k, v and the mask, with and without pads, in one piece and in many."""
    for pads, pieces in itertools.product((padding(lengths), None), (2**20, 1)):
        monkeypatch.setattr(fast, "_AT_ONCE", {"cpu": pieces})
        qkv, keep = inputs(lengths), masks(lengths)[kind]
        expected = results(naive.masked_attention, qkv, keep, pads, rule)
        for ours, theirs in zip(results(masked_attention, qkv, keep, pads, rule), expected, strict=True):
            assert_close(ours, theirs, 1e-10, 1e-10)


@pytest.mark.parametrize("op", [masked_attention, naive.masked_attention], ids=["fast", "naive"])
def test_a_hard_mask_is_removal(op: Any):
    """Each row equals attention over its kept keys alone; pads count for nothing, whatever their mask."""
    lengths = [9, 4, 6]
    qkv, keep = inputs(lengths), masks(lengths)["hard"]
    out = op(*qkv, keep, padding(lengths))
    for row, length in enumerate(lengths):
        kept = keep[row, :length].bool()
        q, k, v = (x[row, :length] for x in qkv)
        probs = torch.einsum("thd,shd->hts", q, k[kept]).div(2.0).softmax(-1)
        assert_close(out[row, :length], torch.einsum("hts,shd->thd", probs, v[kept]), 1e-12)


def test_postmult_is_not():
    lengths = [6]
    qkv, keep = inputs(lengths), masks(lengths)["hard"]
    keep = keep.detach().index_fill(1, torch.tensor([2]), 0.0)
    renorm, postmult = (masked_attention(*qkv, keep, None, 0.0, rule) for rule in RULES)
    assert (renorm - postmult).abs().max() > 1e-2


@pytest.mark.parametrize("rule", RULES)
def test_soft_gradients_are_finite_differences(rule: str):
    lengths = [5, 3]
    qkv, keep = inputs(lengths), masks(lengths)["soft"]
    assert torch.autograd.gradcheck(lambda *x: masked_attention(*x, padding(lengths), 0.0, rule), (*qkv, keep))


def test_a_skipped_key_is_called_back():
    """da/dm of a key of mask 0: what the output would gain; also of one that scores higher than all that are kept."""
    qkv, keep = inputs([4]), torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.double, requires_grad=True)
    with torch.no_grad():
        qkv[1][0, 1] = 3 * qkv[0][0, 2]  # scores high for query 2
    out = masked_attention(*qkv, keep)
    grad = torch.autograd.grad(out.sum(), keep)[0]
    step = 1e-6
    for j in (1, 3):
        moved = keep.detach().clone()
        moved[0, j] += step
        slope = (masked_attention(*qkv, moved).sum() - out.sum()).detach() / step
        assert abs(float(slope / grad[0, j]) - 1) < 1e-3


def test_an_exponent_that_would_overflow_is_cut():
    qkv = inputs([3], torch.float32)
    with torch.no_grad():
        qkv[0].fill_(50.0)
        qkv[1][0, 1] = 50.0  # excluded, some 5,000 above the others
        qkv[1][0, 0] = qkv[1][0, 2] = -1.0
    keep = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    out = masked_attention(*qkv, keep)
    grads = torch.autograd.grad(out.sum(), [*qkv, keep])
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    change = (qkv[2][0, 1] - out[0, 0]).sum() * torch.tensor(MAX_EXPONENT).exp() / 2  # two keys of one score
    assert_close(grads[-1][0, 1], (3 * change).detach(), 1.0, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_finite(dtype: torch.dtype):
    lengths = [30, 12]
    qkv = [(1.5 * x.detach()).to(dtype).requires_grad_() for x in inputs(lengths, torch.float32)]
    keep = masks(lengths, torch.float32)["hard"]
    wide = [x.detach().float().requires_grad_() for x in qkv]
    pads = padding(lengths)
    ours = results(masked_attention, qkv, keep, pads, "renorm")
    expected = results(naive.masked_attention, wide, keep, pads, "renorm")
    assert ours[0].dtype == dtype and ours[-1].dtype == torch.float32
    for one, other in zip(ours, expected, strict=True):
        assert one.isfinite().all()
        close = (one.float() - other).norm() / other.norm()
        assert close < (3e-2 if dtype == torch.bfloat16 else 5e-3), close


def test_a_sentence_without_keys_gives_zeros():
    lengths = [4, 3]
    qkv, keep = inputs(lengths), torch.ones(2, 4, dtype=torch.double)
    keep[0] = 0.0
    for want in (True, False):
        out = masked_attention(*qkv, keep.clone().requires_grad_(want), padding(lengths))
        assert (out[0] == 0).all() and (out[1] != 0).any()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), qkv))


def test_dropout_drops_keeps_the_mean_and_agrees_with_its_own_backward():
    qkv, keep = inputs([12], heads=1), masks([12])["hard"]
    with torch.no_grad():
        ones = [qkv[0], qkv[1], torch.ones_like(qkv[2])]
    draws = torch.stack([masked_attention(*ones, keep, dropout_p=0.5) for _ in range(400)])
    assert draws.std(0).min() > 0.05 and abs(draws.mean() - 1) < 0.05

    def drawn(*x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return masked_attention(*x, None, 0.4)

    soft = masks([12])["soft"]
    assert torch.autograd.gradcheck(drawn, (*qkv, soft))


@pytest.mark.parametrize("op", [masked_attention, naive.masked_attention], ids=["fast", "naive"])
def test_an_unknown_rule_is_refused(op: Any):
    with pytest.raises(ValueError, match="rule 'mean' is not one of renorm, postmult"):
        op(*inputs([2]), torch.ones(1, 2), None, 0.0, "mean")


def test_no_score_matrix_is_kept_for_the_backward():
    qkv, keep = inputs([64, 64]), masks([64, 64])["hard"]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        masked_attention(*qkv, keep, padding([64, 64]))
    assert max(saved) == qkv[0].numel() < 2 * 2 * 64 * 64


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft", "all", "first"])
def test_update_is_naive(kind: str):
    keep = masks([6, 5])[kind]
    new, old = (torch.randn(2, 6, 3, dtype=torch.double).requires_grad_() for _ in range(2))
    found = []
    for op in (masked_update, naive.masked_update):
        out = op(new, old, keep)
        found.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), [new, old, keep])))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, 1e-12, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_update_chooses_exactly(dtype: torch.dtype):
    new, old = (torch.randn(50, 7).to(dtype) for _ in range(2))
    keep = (torch.rand(50) < 0.5).float()
    expected = torch.where(keep.bool().unsqueeze(1), new, old)
    for want in (False, True):
        assert torch.equal(masked_update(new.requires_grad_(want), old, keep), expected)


def test_the_gradient_of_the_mask_is_summed_in_fp32():
    new, old = torch.full((1, 4096), 20.0).half().requires_grad_(), torch.zeros(1, 4096).half()
    keep = torch.ones(1, requires_grad=True)
    out = masked_update(new, old, keep)
    (grad,) = torch.autograd.grad(out, keep, torch.ones_like(out))
    assert grad.dtype == torch.float32 and float(grad) == 81920.0  # beyond what fp16 holds


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for lengths, dropout in itertools.product(LENGTHS, (0.0, 0.3)):
        qkv, keep = inputs(lengths), masks(lengths)["hard"]
        out = masked_attention(*qkv, keep, padding(lengths), dropout)
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), [*qkv, keep]))
