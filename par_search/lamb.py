"""LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2); fairseq's needs apex."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam whose step for each tensor is as long as the tensor's norm, times the learning rate.

    Args:
        lr, betas, eps: as Adam. weight_decay: added to the step before its norm is taken.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        unbiased = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        step = (mean / (1 - beta1 ** state["step"])).div_(unbiased)
        if group["weight_decay"]:
            step.add_(parameter, alpha=group["weight_decay"])
        norms = parameter.norm(), step.norm()
        both = (norms[0] > 0) & (norms[1] > 0)
        trust = torch.where(both, norms[0] / norms[1].clamp(min=1e-30), torch.ones_like(norms[0]))
        parameter.sub_(step.mul_(trust), alpha=group["lr"])
