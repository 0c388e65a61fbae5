"""Repairs of fairseq 0.12.3 on modern Python, torch and numpy, and of its handling of checkpoints and mistakes.

``apply()`` is the first call in every system's ``__init__``, before anything registers, and in
``fairseq_efficient.plugin``. Each repair is one function that says what is wrong; it is made once, and only where the
fault is present.
"""

import argparse
import functools
import inspect
import logging
import math
import re
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch

from fairseq_efficient import (
    checkpoint_sizes,
    checkpoints,
    compat_checkpoints,
    compat_cli,
    compat_data,
    compat_interactive,
    compat_optim,
    compat_recompute,
    compat_tasks,
    compat_training,
)
from fairseq_efficient.checkpoint_rules import check_checkpoint
from fairseq_efficient.errors import UserError

OLDEST_TORCH = (2, 10)
_MARK = "_fairseq_efficient"
NOISE = (
    r"\s*The version_base parameter is not specified",
    r"\s*'config' is validated against ConfigStore schema",
    r"\s*The strict flag in the compose API is deprecated",
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"In '.*'. Usage of deprecated keyword in package header",
    r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
)


def apply() -> None:
    """Repair fairseq in this process; a second call changes nothing.

    Raises:
        UserError: torch is too old to read a checkpoint safely.
    """
    present_errors()
    require_torch(torch.__version__)
    silence_deprecations()
    restore_numpy_names()
    keep_last_batch()
    block_repeated_ngrams()
    read_checkpoints_safely()
    write_checkpoints_atomically()
    compat_checkpoints.name_what_does_not_fit(_patch)
    broadcast_plain_state()
    ask_all_ranks_before_saving()
    compat_checkpoints.name_the_save_dir(_patch)
    compat_data.end_workers(_patch)
    compat_data.name_broken_dictionaries(_patch)
    compat_data.name_broken_files(_patch)
    compat_data.name_broken_labels(_patch)
    compat_tasks.let_tasks_end_training(_patch)
    compat_optim.give_parameters_their_groups(_patch)
    compat_recompute.recompute_as_it_was_computed(_patch)
    compat_training.find_nan_in_any_module(_patch)
    compat_interactive.read_what_is_typed(_patch)
    check_commands()


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``make(stock)``, once."""
    stock = getattr(owner, name)
    if not getattr(stock, _MARK, False):
        ours = functools.wraps(stock)(make(stock))
        setattr(ours, _MARK, True)
        bound = isinstance(vars(owner).get(name), (staticmethod, classmethod))  # stock is bound to the class already
        setattr(owner, name, staticmethod(ours) if bound else ours)


class _Overlay(types.ModuleType):
    """What one fairseq module sees under another module's name: a few names of ours, else the real ones."""

    def __init__(self, real: types.ModuleType, **names: Any):
        super().__init__(real.__name__)
        vars(self).update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def present_errors() -> None:
    """Mistakes of the user end in a traceback and status 1: show one line and exit with 2.

    An ``excepthook``, because generate does not go through ``distributed.utils.call_main``, and a plugin can fail to
    import before it. Under ``fairseq-hydra-train`` hydra catches all, so there it is the getter of hydra's job
    result.
    """
    from hydra.core.utils import JobReturn, JobStatus

    compat_cli.install_excepthook()
    stock: Any = JobReturn.return_value
    if getattr(stock.fget, _MARK, False):
        return

    def return_value(self: Any) -> Any:
        if self.status == JobStatus.FAILED:
            compat_cli.exit_if_user_error(self._return_value)
        return stock.fget(self)

    setattr(return_value, _MARK, True)
    JobReturn.return_value = property(return_value, stock.fset)  # type: ignore[method-assign,assignment]


def require_torch(version: str) -> None:
    """Reading a crafted file with an older torch runs code (CVE-2025-32434) or corrupts the heap (CVE-2026-24747)."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise UserError(f"torch {version} is installed, torch >= 2.10 is needed (older ones read checkpoints unsafely)")


def restore_numpy_names() -> None:
    """numpy removed ``np.float`` (1.24; fairseq's dynamic CRF layer) and ``np.compat`` (2.0; ``--num-batch-buckets``,
    language models that break blocks at sentences).

    Only those modules see them again; numpy itself stays as it is, for libraries that look whether a name exists.
    ``np.int`` in ``data_utils`` is left alone: that branch next calls ``Generator.randint``, which never existed.
    """
    from fairseq.data import language_pair_dataset, token_block_dataset
    from fairseq.modules import dynamic_crf_layer

    long = types.SimpleNamespace(long=numpy.int64)
    users = (
        (dynamic_crf_layer, "float", float),
        (language_pair_dataset, "compat", long),
        (token_block_dataset, "compat", long),
    )
    for module, name, value in users:
        if not hasattr(module.np, name):
            module.np = _Overlay(numpy, **{name: value})
    rename_percentile_option()


def rename_percentile_option() -> None:
    """numpy 2.4 removed ``percentile(interpolation=...)`` for ``method``: ``--num-batch-buckets`` is a TypeError."""
    from fairseq.data import data_utils

    if "interpolation" in inspect.signature(numpy.percentile).parameters or isinstance(data_utils.np, _Overlay):
        return

    def percentile(*args: Any, interpolation: str = "linear", **kwargs: Any) -> Any:
        return numpy.percentile(*args, method=interpolation, **kwargs)  # type: ignore[call-overload]

    data_utils.np = _Overlay(numpy, percentile=percentile)


def keep_last_batch() -> None:
    """Stock drops the last batch, in every split, if its size is no multiple of ``--required-batch-size-multiple`` (8):
    20 test lines give 16 hypotheses, 4 lines a ZeroDivisionError (fairseq issues 5036, 5094, 5351).
    """
    from fairseq.data import data_utils

    def make_batches(stock: Any) -> Any:
        def batch_by_size(indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
            indices = numpy.asarray(indices if hasattr(indices, "__len__") else list(indices), dtype=numpy.int64)
            if len(indices) == 0:
                return []
            batches = list(stock(indices, *args, **kwargs))
            if kwargs.get("fixed_shapes") is None:
                rest = indices[sum(map(len, batches)) :]
                batches += [rest] if len(rest) else []
            return batches

        return batch_by_size

    _patch(data_utils, "batch_by_size", make_batches)


def silence_deprecations() -> None:
    """fairseq's old hydra and torch calls warn some ten times per command, in paragraphs that bury a real message; and
    where this runs before fairseq is imported, its speech task need not advise to install tensorboardX."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("fairseq.tasks.text_to_speech").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Please install tensorboardX")


def block_repeated_ngrams() -> None:
    """``--no-repeat-ngram-size`` blocks nothing without fairseq's CUDA extension: stock compares with the end of the
    token *buffer*, which is padding until the last step, in a Python loop over hypotheses.
    """
    from fairseq.ngram_repeat_block import NGramRepeatBlock

    def make_block(stock: Any) -> Any:
        def _no_repeat_ngram(self: Any, tokens: Any, lprobs: Any, bsz: int, beam_size: int, step: int) -> Any:
            size = self.no_repeat_ngram_size
            if step >= size:
                seen = tokens[:, 1 : step + 1].unfold(
                    1, size, 1
                )  # (R, step - size + 1, size), without the start symbol
                last = tokens[:, step + 2 - size : step + 1].unsqueeze(1)
                row, place = (seen[:, :, :-1] == last).all(-1).nonzero(as_tuple=True)
                lprobs[row, seen[row, place, -1]] = -math.inf
            return lprobs

        return _no_repeat_ngram

    _patch(NGramRepeatBlock, "_no_repeat_ngram", make_block)


def read_checkpoints_safely() -> None:
    """Stock reads with torch's default, which an environment variable makes unsafe; it refuses its own older
    checkpoints (``argparse.Namespace``), builds any architecture that a file names, and does not say which file is
    damaged.

    ``fairseq.checkpoint_utils`` calls ``torch.load(file, ...)`` in two places; in that module it now means
    :func:`_load`.
    """
    from fairseq import checkpoint_utils

    if not isinstance(checkpoint_utils.torch, _Overlay):
        checkpoint_utils.torch = _Overlay(torch, load=_load)


def _load(file: Any, **_: Any) -> dict[str, Any]:
    checkpoint_sizes.expect_nothing()
    path, state = checkpoints.read_or_fall_back(file.name)
    check_checkpoint(state, path)
    return state


def write_checkpoints_atomically() -> None:
    """``checkpoint_best`` and ``checkpoint_last`` are copied in place (a crash leaves half a file), the first write
    is not flushed to the disk before its rename, and a full disk leaves ``*.tmp`` behind.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    def make_copy(stock: Any) -> Any:
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
            if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
                return stock(src_path, dst_path, overwrite=overwrite)
            checkpoints.atomic_copy(src_path, dst_path)
            return True

        return copy

    def make_save(stock: Any) -> Any:
        def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
            if async_write or PathManager.path_requires_pathmanager(filename):
                return stock(obj, filename, async_write=async_write)
            checkpoints.atomic_save(obj, filename)

        return torch_persistent_save

    _patch(PathManager, "copy", make_copy)
    _patch(checkpoint_utils, "torch_persistent_save", make_save)


def broadcast_plain_state() -> None:
    """Resuming on two ranks sends the state through ``torch.load``, which since torch 2.6 refuses fairseq's
    placeholder of a tensor, ``argparse.Namespace`` and ``DictConfig``: allow the first two and send the last as a
    dict.
    """
    from fairseq.distributed import utils
    from omegaconf import OmegaConf

    def make_broadcast(stock: Any) -> Any:
        def broadcast_object(obj: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(obj, dict) and OmegaConf.is_config(obj.get("cfg")):
                obj = {**obj, "cfg": OmegaConf.to_container(obj["cfg"], enum_to_str=True)}
            with torch.serialization.safe_globals([utils._TensorPlaceholder, argparse.Namespace]):
                return stock(obj, *args, **kwargs)

        return broadcast_object

    _patch(utils, "broadcast_object", make_broadcast)


def ask_all_ranks_before_saving() -> None:
    """Stock asks only the first rank's task what belongs into a checkpoint: a task whose state is spread over the
    ranks has a method ``before_save(epoch_itr)``, which is called on all of them first.
    """
    from fairseq import checkpoint_utils

    def make_save(stock: Any) -> Any:
        def save_checkpoint(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any) -> Any:
            if not cfg.no_save and hasattr(trainer.task, "before_save"):
                trainer.task.before_save(epoch_itr)
            return stock(cfg, trainer, epoch_itr, val_loss)

        return save_checkpoint

    _patch(checkpoint_utils, "save_checkpoint", make_save)


def check_commands() -> None:
    """Stock ends deep inside (``--fp16 --cpu``), trains twice into one folder (torchrun on the CPU), "is done" after no
    update (``--lr -1``), or raises a RuntimeError without words (no ``--arch``): look at the values once they are
    parsed, and, for hydra and programs, again before anything is built and in the trainer.
    """
    from fairseq import options, tasks
    from fairseq.trainer import Trainer

    def make_parse(stock: Any) -> Any:
        def parse_args_and_arch(*args: Any, **kwargs: Any) -> Any:
            try:
                parsed = stock(*args, **kwargs)
            except RuntimeError as err:
                if err.args:
                    raise
                raise UserError("--arch is missing: say which model to train (--help lists them)") from None
            compat_cli.check_arguments(parsed[0] if isinstance(parsed, tuple) else parsed)
            return parsed

        return parse_args_and_arch

    def make_trainer(stock: Any) -> Any:
        def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
            compat_cli.check_config(cfg)
            stock(self, cfg, *args, **kwargs)

        return __init__

    def make_defaults(stock: Any) -> Any:
        def add_defaults(cfg: Any) -> None:
            compat_cli.check_config(cfg)
            stock(cfg)

        return add_defaults

    def make_setup(stock: Any) -> Any:
        def setup_task(cfg: Any, **kwargs: Any) -> Any:
            if not kwargs.get("from_checkpoint"):
                compat_cli.check_data(getattr(cfg, "data", None))
            return stock(cfg, **kwargs)

        return setup_task

    _patch(options, "parse_args_and_arch", make_parse)
    _patch(tasks, "setup_task", make_setup)
    _patch(Trainer, "__init__", make_trainer)
    if "fairseq_cli.train" in sys.modules:  # called between the import of a --user-dir and the building of the model
        _patch(sys.modules["fairseq_cli.train"], "add_defaults", make_defaults)
