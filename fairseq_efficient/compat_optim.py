"""What stock fairseq never asks a parameter: patched in by :mod:`fairseq_efficient.compat`, which calls this."""

from collections.abc import Callable
from typing import Any

NO_DECAY = "no_weight_decay"  # ``parameter.param_group`` of parameters that weight decay must leave alone


def keep_out_of_weight_decay(patch: Callable[[Any, str, Callable[[Any], Any]], None]) -> None:
    """Stock optimizers decay all parameters alike: those marked with :data:`NO_DECAY` get a group of their own, without
    weight decay. The mark survives the fp32 copies of ``--fp16-no-flatten-grads``; flat copies hold no parameters.
    """
    from fairseq import optim

    def make_build(stock: Any) -> Any:
        def build_optimizer(*args: Any, **kwargs: Any) -> Any:
            found = stock(*args, **kwargs)
            inner = getattr(found, "_optimizer", None)  # optimizers of several parts have none of their own
            if inner is not None:
                for group in list(inner.param_groups):
                    marked = [one for one in group["params"] if getattr(one, "param_group", None) == NO_DECAY]
                    others = [one for one in group["params"] if getattr(one, "param_group", None) != NO_DECAY]
                    if marked and others:
                        group["params"] = others
                        inner.add_param_group({**group, "params": marked, "weight_decay": 0.0})
                    elif marked:
                        group["weight_decay"] = 0.0
            return found

        return build_optimizer

    patch(optim, "build_optimizer", make_build)

