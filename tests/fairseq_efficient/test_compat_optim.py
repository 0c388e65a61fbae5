"""Parameters with a learning rate, or without the weight decay, of their own."""

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq import optim
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_efficient import compat
from fairseq_efficient.compat.optim import NO_DECAY, learning_rate_times
from fairseq_efficient.errors import UserError
from tests.skimming.helpers import build

compat.apply()


def parameters(*marks: str | None) -> list[Tensor]:
    found = [nn.Parameter(torch.ones(2)) for _ in marks]
    for parameter, mark in zip(found, marks, strict=True):
        if mark is not None:
            parameter.param_group = mark  # type: ignore[attr-defined]
    return found


ADAM = {
    "lr": [0.1], "weight_decay": 0.0, "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "fp16_adam_stats": False,
    "use_old_adam": False, "tpu": False,
}  # fmt: skip


def optimizer(params: list[Tensor], name: str = "sgd") -> Any:
    more = {"momentum": 0.0, "weight_decay": 0.5} if name == "sgd" else {}
    return optim.build_optimizer(Namespace(optimizer=name, **{**ADAM, **more}), params)


TEN = learning_rate_times(10.0)


@pytest.mark.parametrize("marks", [(None, TEN, NO_DECAY, "another"), (TEN, None, NO_DECAY, None), (TEN, TEN, TEN, TEN)])
def test_a_step(marks: tuple[str | None, ...]):
    params = parameters(*marks)
    one = optimizer(params)
    one.set_lr(0.2)
    assert one.get_lr() == pytest.approx(0.2)
    for parameter in params:
        parameter.grad = torch.full((2,), 0.25)
    one.step()
    for parameter, mark in zip(params, marks, strict=True):
        rate, decay = (2.0 if mark == TEN else 0.2), (0.0 if mark == NO_DECAY else 0.5)
        assert torch.allclose(parameter, torch.full((2,), 1 - rate * (0.25 + decay)), atol=1e-6), mark
    assert sum(len(group["params"]) for group in one.param_groups) == 4


def test_groups_survive_a_checkpoint():
    one, other = optimizer(parameters(None, TEN), "adam"), optimizer(parameters(None, TEN), "adam")
    for parameter in one.params:
        parameter.grad = torch.ones(2)
    one.step()
    other.load_state_dict(one.state_dict())
    other.set_lr(0.3)
    assert [group["lr"] for group in other.param_groups] == pytest.approx([0.3, 3.0])


def half(params: list[Tensor], **common: Any) -> Any:
    common = {"bf16": False, "fp16_scale_window": 1, "fp16_no_flatten_grads": False, **common}
    cfg = OmegaConf.create({"common": common, "optimizer": {"_name": "adam", **ADAM}})
    return optim.FP16Optimizer.build_optimizer(cfg, params)


def test_half_precision_keeps_the_rates_or_says_that_it_cannot():
    params = [nn.Parameter(one.detach().bfloat16()) for one in parameters(None, None)]
    params[1].param_group = TEN  # type: ignore[attr-defined]
    found = half(params, bf16=True)
    found.set_lr(0.3)
    assert [group["lr"] for group in found.param_groups] == pytest.approx([0.3, 3.0])
    with pytest.raises(UserError, match="--fp16-no-flatten-grads"):
        half(params, fp16_init_scale=4, fp16_scale_tolerance=0.0, min_loss_scale=1e-4, threshold_loss_scale=None)


def test_predictors_of_skimming():
    model = build(skim_lr_scale=10.0)
    for name, parameter in model.named_parameters():
        assert getattr(parameter, "param_group", None) == (TEN if "skim_predictors" in name else None), name
    assert not any(hasattr(one, "param_group") for one in build().parameters())
