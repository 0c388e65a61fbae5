"""The optimizer: two groups that take turns, LAMB, state."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq_efficient.errors import UserError
from par_search.config import SearchOptimizerConfig
from par_search.lamb import Lamb
from par_search.optimizer import SearchOptimizer, find_search_optimizer
from par_search.phases import ARCHITECTURE, WEIGHTS
from par_search.supernet import ARCHITECTURE as MARK
from tests.util import assert_close


def setup(**flags: Any) -> tuple[SearchOptimizer, list[nn.Parameter]]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 3))]
    params[2].param_group = MARK
    cfg = SearchOptimizerConfig(**{"lr": [0.1], "weight_decay": 0.01, **flags})
    return SearchOptimizer(cfg, params), params


def update(
    optimizer: SearchOptimizer, params: list[nn.Parameter], phase: str | None, clip: float = 0.0
) -> torch.Tensor:
    optimizer.set_phase(phase)
    for one in params:
        one.grad = torch.sin(one.detach() * 3 + 1)
    norm = optimizer.clip_grad_norm(clip)
    optimizer.step()
    optimizer.zero_grad()
    return norm


@pytest.mark.parametrize("kind", ["adam", "lamb", "adagrad"])
def test_only_one_group_steps(kind: str):
    """Bitwise, although momentum and decay would move what is frozen."""
    optimizer, params = setup(weight_optimizer=kind)
    update(optimizer, params, None)
    for phase, frozen, moving in ((WEIGHTS, [2], [0, 1]), (ARCHITECTURE, [0, 1], [2])) * 2:
        before = copy.deepcopy(params)
        state = copy.deepcopy(optimizer.state_dict())
        norm = update(optimizer, params, phase)
        assert all(torch.equal(params[i], before[i]) for i in frozen)
        assert not any(torch.equal(params[i], before[i]) for i in moving)
        expected = torch.cat([torch.sin(before[i].detach() * 3 + 1).flatten() for i in moving]).norm()
        assert_close(norm, expected, 1e-5)  # and the norm is that of what moves
        other = ARCHITECTURE if phase == WEIGHTS else WEIGHTS
        torch.testing.assert_close(optimizer.state_dict()[other], state[other], rtol=0, atol=0)


def test_both_groups_are_what_torch_would_do():
    optimizer, params = setup(arch_lr=0.3, arch_weight_decay=0.2)
    twins = [nn.Parameter(one.detach().clone()) for one in params]
    plain = [torch.optim.AdamW(twins[:2], 0.1, weight_decay=0.01), torch.optim.Adam(twins[2:], 0.3, weight_decay=0.2)]
    for phase in (WEIGHTS, ARCHITECTURE, WEIGHTS, None, ARCHITECTURE):
        update(optimizer, params, phase)
        for one in twins:
            one.grad = torch.sin(one.detach() * 3 + 1)
        for name, other in zip((WEIGHTS, ARCHITECTURE), plain, strict=True):
            if phase in (name, None):
                other.step()
        assert_close(params, twins, 1e-6)


def test_the_learning_rate_is_that_of_the_weights():
    optimizer, _ = setup(arch_lr=0.3)
    optimizer.set_lr(0.5)
    assert optimizer.get_lr() == 0.5 and [group["lr"] for group in optimizer.param_groups] == [0.5, 0.3]


def test_clipping_is_of_what_moves():
    """By the norm of the group whose turn it is (bug 17)."""
    optimizer, params = setup()
    optimizer.set_phase(ARCHITECTURE)
    for one in params:
        one.grad = torch.full_like(one, 100.0)
    optimizer.clip_grad_norm(1.0)
    assert params[0].grad is None and params[2].grad.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["adam", "lamb", "adagrad"])
def test_state_goes_on(kind: str):
    one, params = setup(weight_optimizer=kind)
    for phase in (WEIGHTS, WEIGHTS, ARCHITECTURE):
        update(one, params, phase)
    other, twins = setup(weight_optimizer=kind, arch_lr=0.02)
    with torch.no_grad():
        for twin, param in zip(twins, params, strict=True):
            twin.copy_(param)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.param_groups[1]["lr"] == 0.02  # as the flags say now
    other.param_groups[1]["lr"] = one.param_groups[1]["lr"]
    for phase in (ARCHITECTURE, WEIGHTS, None):
        update(one, params, phase)
        update(other, twins, phase)
    assert_close(twins, params, 0, 0)


def test_a_model_without_architecture():
    cfg = SearchOptimizerConfig(lr=[0.1])
    params = [nn.Parameter(torch.ones(2, 2))]
    optimizer = SearchOptimizer(cfg, params)
    assert set(optimizer.state_dict()) == {WEIGHTS}
    update(optimizer, params, None)
    with pytest.raises(UserError, match="--reset-optimizer"):
        optimizer.load_state_dict(setup()[0].state_dict())


def test_lamb_is_algorithm_2():
    torch.manual_seed(0)
    weight, zero = nn.Parameter(torch.randn(5, 3, dtype=torch.double)), nn.Parameter(torch.zeros(3, dtype=torch.double))
    optimizer = Lamb([weight, zero], lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    expected = [weight.detach().clone(), zero.detach().clone()]
    mean, square = [torch.zeros_like(one) for one in expected], [torch.zeros_like(one) for one in expected]
    for step in range(1, 5):
        for i, parameter in enumerate((weight, zero)):
            g = torch.randn_like(parameter)
            parameter.grad = g
            mean[i] = 0.8 * mean[i] + 0.2 * g
            square[i] = 0.9 * square[i] + 0.1 * g * g
            r = (mean[i] / (1 - 0.8**step)) / ((square[i] / (1 - 0.9**step)).sqrt() + 1e-3)
            u = r + 0.1 * expected[i]
            norm = expected[i].norm()
            expected[i] = expected[i] - 0.05 * (norm / u.norm() if norm > 0 else 1.0) * u
        optimizer.step()
        assert_close([weight.detach(), zero.detach()], expected, 1e-12)


def test_it_is_found_inside_wrappers():
    optimizer, _ = setup()
    assert find_search_optimizer(SimpleNamespace(fp32_optimizer=optimizer)) is optimizer
    assert (
        find_search_optimizer(SimpleNamespace(wrapped_optimizer=SimpleNamespace(fp32_optimizer=optimizer))) is optimizer
    )
    assert find_search_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"arch_lr": -1.0}, "--arch-lr -1.0: must not be negative"),
        ({"arch_weight_decay": float("nan")}, "--arch-weight-decay nan"),
        ({"weight_beta1": 1.0}, "--weight-beta1 1.0: must be at least 0 and below 1"),
        ({"weight_eps": 0.0}, "--weight-eps 0.0: must be greater than 0"),
    ],
)
def test_mistakes_name_the_flag(flags: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        setup(**flags)


def test_flat_parameters_are_refused():
    with pytest.raises(UserError, match="--fp16-no-flatten-grads"):
        SearchOptimizer(SearchOptimizerConfig(lr=[0.1]), [nn.Parameter(torch.ones(100))])
