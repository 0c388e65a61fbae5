"""What stock fairseq never asks a parameter.

A parameter says it by ``parameter.param_group``, the one attribute that fairseq copies to the fp32 masters of half
precision (``--fp16-no-flatten-grads``; ``--bf16`` never flattens).
"""

from typing import Any

from fairseq_efficient.compat.patching import patch
from fairseq_efficient.errors import UserError

NO_DECAY = "no_weight_decay"  # weight decay leaves it alone
_SCALE = "lr_scale="


def learning_rate_times(scale: float) -> str:
    """The ``param_group`` of parameters whose learning rate is ``scale`` times the others'."""
    return f"{_SCALE}{scale!r}"


def _settings(name: str | None) -> dict[str, float]:
    """What differs in the optimizer's group of that name."""
    if name == NO_DECAY:
        return {"weight_decay": 0.0}
    return {"lr_scale": float(name.removeprefix(_SCALE))} if name else {}


def _name(parameter: Any) -> str | None:
    name = getattr(parameter, "param_group", None)
    return name if isinstance(name, str) and (name == NO_DECAY or name.startswith(_SCALE)) else None


def give_parameters_their_groups() -> None:
    """Stock optimizers treat all parameters alike: marked ones get groups of their own, and ``set_lr`` knows them."""
    from fairseq import optim
    from fairseq.optim.fairseq_optimizer import FairseqOptimizer
    from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin

    def make_build(stock: Any) -> Any:
        def build_optimizer(*args: Any, **kwargs: Any) -> Any:
            found = stock(*args, **kwargs)
            inner = getattr(found, "_optimizer", None)  # optimizers of several parts have none of their own
            if inner is not None:
                _split_groups(inner)
            return found

        return build_optimizer

    patch(optim, "build_optimizer", make_build)
    patch(FairseqOptimizer, "set_lr", lambda stock: _set_lr)
    patch(FairseqOptimizer, "get_lr", lambda stock: _get_lr)
    patch(_FP16OptimizerMixin, "build_fp32_params", _refuse_flat_copies)


def _split_groups(optimizer: Any) -> None:
    for group in list(optimizer.param_groups):
        parts: dict[str | None, list[Any]] = {}
        for one in group["params"]:
            parts.setdefault(_name(one), []).append(one)
        if set(parts) <= {None}:
            continue
        common = {key: value for key, value in group.items() if key != "params"}
        first = None if None in parts else next(iter(parts))  # unmarked parameters keep the group that get_lr reads
        group["params"] = parts.pop(first)
        group.update(_settings(first))
        for name, params in parts.items():
            optimizer.add_param_group({**common, **_settings(name), "params": params})


def _set_lr(self: Any, lr: float) -> None:
    for group in self.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _get_lr(self: Any) -> float:
    group = self.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))


def _refuse_flat_copies(stock: Any) -> Any:
    def build_fp32_params(args: Any, params: Any, flatten: bool = True) -> Any:
        params = list(params)
        if flatten and any((_name(one) or "").startswith(_SCALE) for one in params):
            raise UserError("a learning rate of its own for some parameters (--skim-lr-scale) is lost in one flat fp16 "
                            "copy: add --fp16-no-flatten-grads, or use --bf16")  # fmt: skip
        return stock(args, params, flatten=flatten)

    return build_fp32_params
