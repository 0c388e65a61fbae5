"""Auxiliary losses against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from fairseq_efficient.losses import binomial_nll, boundary_bce, entropy_spikes, ratio_loss
from tests.util import assert_close


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_binomial_nll_is_minus_log_pmf(rate: float):
    trials = torch.tensor([1, 7, 7, 40, 40, 2048])
    ones = torch.tensor([1.0, 0, 7, 8, 40, 410], dtype=torch.float64)
    expected = [
        -math.log(math.comb(n, k)) - k * math.log(rate) - (n - k) * math.log1p(-rate)
        for n, k in zip(trials.tolist(), map(int, ones.tolist()), strict=True)
    ]
    assert_close(binomial_nll(ones, trials, rate), torch.tensor(expected, dtype=torch.float64), 1e-9, 1e-9)


def test_binomial_nll_gradient_is_the_difference_of_digammas():
    ones = torch.tensor([3.0, 0.0, 12.0], dtype=torch.float64, requires_grad=True)
    binomial_nll(ones, torch.tensor([10, 10, 12]), 0.2).sum().backward()
    n, t = ones.detach(), torch.tensor([10.0, 10, 12], dtype=torch.float64)
    expected = torch.digamma(n + 1) - torch.digamma(t - n + 1) - math.log(0.2 / 0.8)
    assert ones.grad is not None
    assert_close(ones.grad, expected, 1e-10, 1e-10)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_ratio_loss_is_one_and_flat_at_its_rate(rate: float):
    hard = torch.zeros(1, 100)
    hard[:, : int(100 * rate)] = 1
    probability = torch.full((1, 100), rate, requires_grad=True)
    loss = ratio_loss(hard, probability, None, rate)
    assert_close(loss, torch.ones(1))
    loss.sum().backward()
    assert probability.grad is not None
    assert_close(probability.grad, torch.zeros(1, 100), 1e-6, 0)
    for share in (0.5 * rate, 1.5 * rate):  # too few: raise p; too many: lower it
        hard = (torch.arange(100) < 100 * share).float()[None]
        p = torch.full((1, 100), rate, requires_grad=True)
        ratio_loss(hard, p, None, rate).sum().backward()
        assert p.grad is not None and bool(((p.grad < 0) == (share < rate)).all())


def test_ratio_loss_does_not_see_pads():
    hard, p = torch.bernoulli(torch.full((2, 9), 0.3)), torch.rand(2, 9)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    padded = ratio_loss(hard, p, mask, 0.2)
    assert_close(padded[1:], ratio_loss(hard[1:, :6], p[1:, :6], None, 0.2))
    assert_close(padded[:1], ratio_loss(hard[:1], p[:1], None, 0.2))


def test_boundary_bce_and_its_compatible_form():
    logits, targets = torch.randn(2, 5), torch.rand(2, 5) > 0.5
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    p = logits.sigmoid()
    once = -torch.where(targets, p.log(), (1 - p).log())
    twice = torch.where(targets, torch.nn.functional.softplus(-p), torch.nn.functional.softplus(p))
    assert_close(boundary_bce(logits, targets, mask), once[~mask].sum())
    assert_close(boundary_bce(logits, targets, mask, twice=True), twice[~mask].sum())
    assert float(boundary_bce(torch.tensor([[100.0]]), torch.tensor([[True]]), None, twice=True)) > 0.31  # its floor


def brute_force_spikes(entropy: Tensor, left: int) -> Tensor:
    rows, length = entropy.shape
    found = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        for t in range(length):
            found[row, t] = all(entropy[row, t] > entropy[row, t - i] for i in range(1, left + 1) if t - i >= 0)
    return found


@pytest.mark.parametrize("left", [1, 2, 3, 4, 50])
def test_p8_entropy_spikes_equal_brute_force(left: int):
    logits = 3 * torch.randn(3, 30, 7, dtype=torch.float64)
    logits[0, 5:8] = logits[0, 4]  # ties are no spikes
    p = logits.softmax(-1)
    found = entropy_spikes(logits, left)
    assert torch.equal(found, brute_force_spikes(-(p * p.log()).sum(-1), left))
    assert found[:, 0].all() and not found[0, 5:8].any()
    assert torch.equal(entropy_spikes(logits[:, :1], left), torch.ones(3, 1, dtype=torch.bool))
