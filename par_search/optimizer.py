"""Optimizer ``par_search``: one for the weights, one for the architecture; the task lets one step at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer

from fairseq_efficient.errors import UserError
from par_search.config import SearchOptimizerConfig
from par_search.lamb import Lamb
from par_search.phases import ARCHITECTURE, WEIGHTS
from par_search.supernet import ARCHITECTURE as MARK


@register_optimizer("par_search", dataclass=SearchOptimizerConfig)
class SearchOptimizer(FairseqOptimizer):
    """The schedule of learning rates is that of the weights. A model without architecture (par_lm) has weights only.

    The parameters whose phase it is not have no gradient when a step is made, so that neither momentum nor decay moves
    them, and the gradient norm is that of the others. Without a task that sets phases all of them step.
    """

    def __init__(self, cfg: Any, params: Sequence[torch.nn.Parameter]):
        super().__init__(cfg)
        _check(cfg)
        params = list(params)
        if len(params) == 1 and params[0].dim() == 1 and params[0].numel() > 1:
            raise UserError("--optimizer par_search must know each tensor: add --fp16-no-flatten-grads to --fp16")
        self.groups = {
            WEIGHTS: [one for one in params if getattr(one, "param_group", None) != MARK],
            ARCHITECTURE: [one for one in params if getattr(one, "param_group", None) == MARK],
        }
        lr = cfg.lr[0] if isinstance(cfg.lr, Sequence) or hasattr(cfg.lr, "__getitem__") else cfg.lr
        parts: dict[str, torch.optim.Optimizer] = {WEIGHTS: _of_weights(cfg, self.groups[WEIGHTS], float(lr))}
        if self.groups[ARCHITECTURE]:
            parts[ARCHITECTURE] = torch.optim.Adam(
                self.groups[ARCHITECTURE], lr=cfg.arch_lr, weight_decay=cfg.arch_weight_decay
            )
        self._optimizer = Joined(parts)
        self.phase: str | None = None

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {}

    def set_phase(self, phase: str | None) -> None:
        """Let only WEIGHTS or ARCHITECTURE step; None: both."""
        self.phase = phase

    def _freeze(self) -> None:
        for phase, params in self.groups.items():
            if self.phase is not None and phase != self.phase:
                for one in params:
                    one.grad = None

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.parts[WEIGHTS].param_groups:
            group["lr"] = lr

    def get_lr(self) -> float:
        return float(self.optimizer.parts[WEIGHTS].param_groups[0]["lr"])

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Any = None) -> Any:
        self._freeze()
        return super().clip_grad_norm(max_norm, aggregate_norm_fn)

    def step(self, closure: Any = None, scale: float = 1.0, groups: Any = None) -> None:
        self._freeze()
        super().step(closure, scale, groups)

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Overrides are of the weights; the flags of the architecture are those given now."""
        if set(state_dict) != set(self.optimizer.parts):
            raise UserError("the checkpoint's optimizer is not of this model (--reset-optimizer starts a new one)")
        self.optimizer.load_state_dict(state_dict)
        for group in self.optimizer.parts[WEIGHTS].param_groups:
            group.update(optimizer_overrides or {})
        for group in self.optimizer.parts[ARCHITECTURE].param_groups if self.groups[ARCHITECTURE] else ():
            group.update(lr=self.cfg.arch_lr, weight_decay=self.cfg.arch_weight_decay)


class Joined(torch.optim.Optimizer):
    """Several optimizers as one."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {key: value for part in self.parts.values() for key, value in part.state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)


def _of_weights(cfg: Any, params: list[Any], lr: float) -> torch.optim.Optimizer:
    kind = str(cfg.weight_optimizer)
    if kind == "adagrad":
        return torch.optim.Adagrad(params, lr=lr, weight_decay=cfg.weight_decay)
    betas = (cfg.weight_beta1, cfg.weight_beta2)
    if kind == "lamb":
        return Lamb(params, lr, betas, cfg.weight_eps, cfg.weight_decay)
    return torch.optim.AdamW(params, lr, betas, cfg.weight_eps, cfg.weight_decay, fused=True)


def _check(cfg: Any) -> None:
    for name in ("arch_lr", "arch_weight_decay", "weight_decay"):
        value = getattr(cfg, name)
        if not value >= 0 or not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')} {value}: must not be negative")
    for name in ("weight_beta1", "weight_beta2"):
        if not 0 <= getattr(cfg, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be at least 0 and below 1")
    if not cfg.weight_eps > 0:
        raise UserError(f"--weight-eps {cfg.weight_eps}: must be greater than 0")


def find_search_optimizer(optimizer: Any) -> SearchOptimizer | None:
    """The SearchOptimizer inside fairseq's wrappers for half precision."""
    while optimizer is not None and not isinstance(optimizer, SearchOptimizer):
        inner = (getattr(optimizer, name, None) for name in ("fp32_optimizer", "wrapped_optimizer"))
        optimizer = next((one for one in inner if one is not None), None)
    return optimizer
