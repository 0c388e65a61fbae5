"""What stock fairseq gets wrong while it trains: patched in by :mod:`fairseq_efficient.compat`, which calls this."""

from collections.abc import Callable, Iterator
from typing import Any

import torch


def find_nan_in_any_module(patch: Callable[[Any, str, Callable[[Any], Any]], None]) -> None:
    """When gradients are NaN, stock computes the batch again with hooks that name the first module with a NaN. Its
    backward hooks are of a kind that torch refuses for modules whose output holds no tensor at its start (every
    encoder's dict of lists, a pooler's None): the search then ends in a TypeError instead of the name. Hooks on the
    outputs themselves find the same.
    """
    from fairseq.nan_detector import NanDetector

    def make(stock: Any) -> Any:
        def add_hooks(self: Any, module: Any) -> None:
            def watch(module: Any, inputs: Any, output: Any) -> None:
                for tensor in _tensors(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: self.bhook_fn(module, (), (grad,)))

            if self.forward:
                self.fhooks.append(module.register_forward_hook(self.fhook_fn))
            if self.backward:
                self.bhooks.append(module.register_forward_hook(watch))

        return add_hooks

    patch(NanDetector, "add_hooks", make)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those of a module's output, in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
