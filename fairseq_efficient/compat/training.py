"""What stock fairseq gets wrong while it trains."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch

from fairseq_efficient.compat.patching import patch
from fairseq_efficient.errors import UserError


def let_tasks_end_training() -> None:
    """Stock ends training by ``--max-update``, time, learning rate or patience only: a task may have a method
    ``training_is_over()``, asked after each update, on all ranks alike. Training then ends as usual: validated, saved.
    And where the metric of the best checkpoint is none that is logged, stock forgets what it trained until then.
    """
    for name in ("fairseq_cli.train", "__main__"):  # the latter: python -m fairseq_cli.train
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "validate_and_save") and hasattr(module, "validate"):
            patch(module, "validate_and_save", functools.partial(_ended_by_task, module))


def _ended_by_task(module: Any, stock: Any) -> Any:
    def validate_and_save(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, subsets: Any, end_of_epoch: bool) -> Any:
        metric = cfg.checkpoint.best_checkpoint_metric
        try:
            losses, stop = stock(cfg, trainer, task, epoch_itr, subsets, end_of_epoch)
        except KeyError as err:
            if err.args != (metric,):
                raise
            module.checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            raise UserError(
                f"--best-checkpoint-metric {metric}: validation logs no such value; what was trained is saved"
            ) from None
        if stop or not (hasattr(task, "training_is_over") and task.training_is_over()):
            return losses, stop
        if losses[0] is None and not cfg.dataset.disable_validation:
            losses = module.validate(cfg, trainer, task, epoch_itr, subsets)
        module.checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, losses[0])
        return losses, True

    return validate_and_save


def find_nan_in_any_module() -> None:
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


def copy_tasks() -> None:
    """A task cannot be copied or pickled, nor a model behind an interface, which has one: its state looks for the
    dictionary of its factories among its factories, without end."""
    from fairseq.tasks.fairseq_task import StatefulContainer

    def make(stock: Any) -> Any:
        def __getattr__(self: Any, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            return stock(self, name)

        return __getattr__

    patch(StatefulContainer, "__getattr__", make)
