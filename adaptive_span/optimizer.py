"""Adagrad whose steps are shortened tensor by tensor, and what half precision needs of an optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from torch import Tensor

from adaptive_span.config import AdagradConfig
from fairseq_efficient.errors import UserError

_EPS = 1e-10


class AdagradWithGradClip(torch.optim.Adagrad):
    """``sum += g^2; p -= lr / (1 + (t - 1) lr_decay) * min(1, clip / (|g| + 1e-10)) * g / (sqrt(sum) + 1e-10)``.

    ``|g|`` is the norm of the tensor's gradient; the clip shortens the step, not what is summed. With clip 0 it is
    :class:`torch.optim.Adagrad`. No step asks the device anything.

    Raises:
        ValueError: clip is negative or not a number. RuntimeError at a step: sparse gradients with a clip.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        clip: float = 0.0,
    ):
        if not clip >= 0 or not math.isfinite(clip):
            raise ValueError(f"clip must not be negative, got {clip}")
        super().__init__(params, lr, lr_decay, weight_decay, initial_accumulator_value, _EPS)
        self.defaults["clip"] = clip  # of groups that are added later
        for group in self.param_groups:
            group.setdefault("clip", clip)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # torch's Adagrad saves none
            group.setdefault("clip", self.defaults.get("clip", 0.0))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not any(group["clip"] for group in self.param_groups):
            super().step()
            return loss
        for group in self.param_groups:
            _clipped_step(group, self.state)
        return loss


def _clipped_step(group: dict[str, Any], state: Any) -> None:
    """One step of the parameters that have a gradient, in a few calls for all of them."""
    params = [one for one in group["params"] if one.grad is not None]
    if not params:
        return
    grads = [one.grad for one in params]
    if any(grad.is_sparse for grad in grads):
        raise RuntimeError("adagrad_with_grad_clip takes no sparse gradients with a clip")
    for one in params:
        if not state[one]:  # of a group that came later
            state[one]["step"] = torch.tensor(0.0)
            state[one]["sum"] = torch.full_like(one, group["initial_accumulator_value"])
    steps = [state[one]["step"] for one in params]
    sums = [state[one]["sum"] for one in params]
    torch._foreach_add_(steps, 1)
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    norms = torch._foreach_norm(grads)
    lr, decay = group["lr"], group["lr_decay"]
    scales = [_scale(norm, step, group["clip"], lr, decay) for norm, step in zip(norms, steps, strict=True)]
    torch._foreach_addcmul_(sums, grads, grads)
    roots = torch._foreach_sqrt(sums)
    torch._foreach_add_(roots, _EPS)
    moves = torch._foreach_div(grads, roots)
    torch._foreach_mul_(moves, scales)
    torch._foreach_sub_(params, moves)


def _scale(norm: Tensor, step: Tensor, clip: float, lr: float, decay: float) -> Tensor:
    """What the step of a tensor is multiplied by, as a tensor on its device."""
    share = (clip / (norm + _EPS)).clamp(max=1) if clip else torch.ones_like(norm)
    if decay:
        lr = lr / (1 + (float(step) - 1) * decay)  # steps are counted on the CPU
    return share * lr


@register_optimizer("adagrad_with_grad_clip", dataclass=AdagradConfig)
class FairseqAdagradWithGradClip(FairseqOptimizer):
    """:class:`AdagradWithGradClip`; ``--clip-norm`` beside it clips the norm of all gradients together, as always."""

    def __init__(self, cfg: Any, params: Any):
        super().__init__(cfg)
        for name in ("adagrad_clip", "weight_decay"):
            value = getattr(cfg, name)
            if not value >= 0 or not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: must not be negative")
        self._optimizer = AdagradWithGradClip(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        lr = self.cfg.lr[0] if hasattr(self.cfg.lr, "__getitem__") else self.cfg.lr
        return {"lr": float(lr), "weight_decay": self.cfg.weight_decay, "clip": self.cfg.adagrad_clip}

    @property
    def supports_flat_params(self) -> bool:
        """No: all tensors in one would be clipped as one."""
        return False


def copy_into_master_(optimizer: Any, parameter: Tensor) -> None:
    """Write ``parameter`` into the fp32 copy that ``--fp16`` and ``--bf16`` make of it; nothing where there is none.

    Raises:
        UserError: the copies of all parameters are one flat tensor, whose weight decay cannot leave any out.
    """
    ours, masters = getattr(optimizer, "fp16_params", None), getattr(optimizer, "fp32_params", None)
    if ours is None or masters is None:
        return
    if optimizer.has_flat_params:
        if any(group.get("weight_decay") for group in optimizer.param_groups):
            raise UserError("--weight-decay would move learned spans: add --fp16-no-flatten-grads to --fp16")
        for device, flat in masters.items():
            offset = 0
            for one in ours:
                if one.device.index == device or one.device.type == "cpu":
                    if one is parameter:
                        flat.data[offset : offset + one.numel()].copy_(one.data.flatten())
                    offset += one.numel()
        return
    for one, master in zip(ours, masters, strict=True):
        if one is parameter:
            master.data.copy_(one.data)
