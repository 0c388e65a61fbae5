"""What stock fairseq never asks a task: patched in by :mod:`fairseq_efficient.compat`, which calls this."""

import functools
import sys
from collections.abc import Callable
from typing import Any


def let_tasks_end_training(patch: Callable[[Any, str, Callable[[Any], Any]], None]) -> None:
    """Stock ends training by ``--max-update``, time, learning rate or patience only: a task may have a method
    ``training_is_over()``, asked after each update, on all ranks alike. Training then ends as usual: validated, saved.
    """
    for name in ("fairseq_cli.train", "__main__"):  # the latter: python -m fairseq_cli.train
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "validate_and_save") and hasattr(module, "validate"):
            patch(module, "validate_and_save", functools.partial(_make, module))


def _make(module: Any, stock: Any) -> Any:
    def validate_and_save(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, subsets: Any, end_of_epoch: bool) -> Any:
        losses, stop = stock(cfg, trainer, task, epoch_itr, subsets, end_of_epoch)
        if stop or not (hasattr(task, "training_is_over") and task.training_is_over()):
            return losses, stop
        if losses[0] is None and not cfg.dataset.disable_validation:
            losses = module.validate(cfg, trainer, task, epoch_itr, subsets)
        module.checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, losses[0])
        return losses, True

    return validate_and_save
