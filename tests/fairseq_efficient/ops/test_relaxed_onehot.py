"""Gumbel-softmax: exact choices, exact frequencies, the gradient of the relaxation."""

import itertools

import pytest
import torch
from torch import Tensor

from fairseq_efficient.ops.relaxed_onehot import fast, gumbel_like, naive, relaxed_onehot
from tests.util import assert_close

both = pytest.mark.parametrize("op", [fast, naive], ids=["fast", "naive"])
KINDS = [2, 3, 7]


def noisy(shape: tuple[int, ...], dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    logits = (2 * torch.randn(shape, dtype=dtype)).requires_grad_()
    return logits, gumbel_like(logits)


@pytest.mark.parametrize("k", KINDS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_fast_is_naive(k: int, shape: tuple[int, ...]):
    """Outputs and gradients, with and without noise, hard and soft, at three temperatures."""
    for hard, tau, with_noise in itertools.product((True, False), (0.3, 1.0, 4.0), (True, False)):
        logits, noise = noisy((*shape, k))
        results = []
        for op in (fast, naive):
            out = op.relaxed_onehot(logits, tau, hard, noise if with_noise else None)
            weight = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
            results.append((out, torch.autograd.grad((out * weight).sum(), logits)[0]))
        assert_close(results[0][0], results[1][0], 1e-12, 1e-12)
        assert_close(results[0][1], results[1][1], 1e-12, 1e-12)
        assert results[0][1].abs().sum() > 0


@both
@pytest.mark.parametrize("k", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_hard_is_exactly_one_hot_in_fp32(op, k: int, dtype: torch.dtype):
    logits = (3 * torch.randn(200, k)).to(dtype).requires_grad_()
    out = op.relaxed_onehot(logits, noise=op.gumbel_like(logits))
    assert out.dtype == torch.float32 and set(out.detach().unique().tolist()) == {0.0, 1.0}
    assert_close(out.sum(-1), torch.ones(200), 0, 0)
    grad = torch.autograd.grad(out[:, 0].sum(), logits)[0]
    assert grad.dtype == dtype and grad.isfinite().all()


def test_soft_gradients_are_finite_differences():
    logits, noise = noisy((4, 3))
    for tau in (0.5, 2.0):
        assert torch.autograd.gradcheck(lambda x, tau=tau: fast.relaxed_onehot(x, tau, False, noise), (logits,))


def test_the_straight_through_gradient_of_two_logits():
    """d keep / d (z1 - z0) = y (1 - y) / tau, with opposite signs."""
    logits, noise = noisy((1000, 2))
    for tau in (0.7, 1.0):
        keep = relaxed_onehot(logits, tau, True, noise)[..., 1]
        grad = torch.autograd.grad(keep.sum(), logits)[0]
        y = (((logits + noise) / tau).softmax(-1))[..., 1]
        assert_close(grad[:, 1], (y * (1 - y) / tau).detach(), 1e-12)
        assert_close(grad[:, 0], -grad[:, 1], 1e-12)


@both
@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("logits", [(0.0, 0.0), (0.0, 2.0), (3.0, -1.0), (0.5, 0.0, -0.5), (5.0, -5.0)])
def test_frequencies_are_the_softmax_at_any_temperature(op, tau: float, logits: tuple[float, ...]):
    draws = 200_000
    rows = torch.tensor(logits).expand(draws, -1)
    found = op.relaxed_onehot(rows, tau, noise=op.gumbel_like(rows)).mean(0)
    expected = torch.tensor(logits).softmax(-1)
    sigma = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() <= 4 * sigma + 1e-9).all(), (found, expected)


def test_both_draw_the_same_distribution():
    """Moments of Gumbel(0, 1): mean 0.5772, variance pi^2 / 6; neighbours are independent."""
    for op in (fast, naive):
        noise = op.gumbel_like(torch.zeros(400_000, 2))
        assert noise.isfinite().all() and noise.dtype == torch.float32
        assert abs(float(noise.mean()) - 0.5772) < 0.01 and abs(float(noise.var()) - 1.6449) < 0.02
        assert abs(float(torch.corrcoef(noise.t())[0, 1])) < 0.01


def test_noise_comes_from_the_global_generator_and_evaluation_draws_none():
    logits = torch.randn(50, 3)
    torch.manual_seed(3)
    one = gumbel_like(logits)
    other = gumbel_like(logits)
    torch.manual_seed(3)
    assert torch.equal(gumbel_like(logits), one) and not torch.equal(one, other)
    before = torch.get_rng_state()
    relaxed_onehot(logits)
    assert torch.equal(torch.get_rng_state(), before)


@both
def test_without_noise_the_largest_wins_and_the_first_of_equals(op):
    logits = torch.tensor([[1.0, 2.0, 0.0], [4.0, 4.0, 1.0], [0.0, 5.0, 5.0]])
    assert op.relaxed_onehot(logits).argmax(-1).tolist() == [1, 0, 1]
    assert op.relaxed_onehot(torch.zeros(2, 2)).tolist() == [[1, 0], [1, 0]]


@both
def test_huge_logits_and_rare_draws_stay_finite(op, monkeypatch: pytest.MonkeyPatch):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], requires_grad=True)
    for hard in (True, False):
        out = op.relaxed_onehot(logits, 1.0, hard, op.gumbel_like(logits))
        assert out.isfinite().all() and torch.autograd.grad(out[:, 0].sum(), logits)[0].isfinite().all()
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.zero_())
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.zeros(*shape, **kind))
    assert op.gumbel_like(torch.zeros(3)).isfinite().all()


@both
@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(op, tau: float):
    with pytest.raises(ValueError, match="temperature"):
        op.relaxed_onehot(torch.zeros(1, 2), tau)
