"""How stock fairseq reads and writes checkpoints, and what it does not say of them and their folder."""

import argparse
import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf.errors import OmegaConfBaseException

from fairseq_efficient import checkpoint_sizes, checkpoints
from fairseq_efficient.checkpoint_rules import check_bookkeeping, check_checkpoint, without_embed_paths
from fairseq_efficient.checkpoint_sizes import Bounded
from fairseq_efficient.compat.patching import Overlay, patch
from fairseq_efficient.errors import UserError

logger = logging.getLogger(__name__)


def read_checkpoints_safely() -> None:
    """Stock reads with torch's default, which an environment variable makes unsafe; it refuses its own older
    checkpoints (``argparse.Namespace``), builds any architecture that a file names, and does not say which file is
    damaged.

    ``fairseq.checkpoint_utils`` calls ``torch.load(file, ...)`` in two places; in that module it now means
    :func:`_load`.
    """
    from fairseq import checkpoint_utils

    if not isinstance(checkpoint_utils.torch, Overlay):
        checkpoint_utils.torch = Overlay(torch, load=_load)


def _load(file: Any, **_: Any) -> dict[str, Any]:
    checkpoint_sizes.expect_nothing()
    path, state = checkpoints.read_or_fall_back(file.name)
    check_checkpoint(state, path)
    check_bookkeeping(state, path)
    without_embed_paths(state)
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

    patch(PathManager, "copy", make_copy)
    patch(checkpoint_utils, "torch_persistent_save", make_save)


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

    patch(utils, "broadcast_object", make_broadcast)


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

    patch(checkpoint_utils, "save_checkpoint", make_save)


def name_the_save_dir() -> None:
    """Stock ends in a traceback when ``--save-dir`` is no folder, or one without permission to write."""
    from fairseq import checkpoint_utils

    def make(stock: Any) -> Any:
        def verify_checkpoint_directory(save_dir: str) -> None:
            try:
                stock(save_dir)
            except OSError as err:
                raise UserError(f"--save-dir {save_dir}: {err.strerror}") from None

        return verify_checkpoint_directory

    patch(checkpoint_utils, "verify_checkpoint_directory", make)


def name_what_does_not_fit() -> None:
    """Stock says "please ensure that the architectures match": say which key, with both shapes. It also builds a model
    of whatever size a checkpoint names.

    Stock starts anew, in silence, when ``--restore-file`` does not exist: say so, unless it is a ``checkpoint_last``,
    which the first start of a restarted job does not find.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    def make_trainer_load(stock: Any) -> Any:
        def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
            if not os.path.basename(filename).startswith("checkpoint_last") and not PathManager.isfile(filename):
                raise UserError(f"checkpoint {filename} does not exist (--restore-file, --finetune-from-model)")
            with _explained(filename):
                try:
                    return stock(self, filename, *args, **kwargs)
                except (KeyError, IndexError, AttributeError, TypeError, ZeroDivisionError) as err:
                    logger.debug("what came of the checkpoint's values", exc_info=True)
                    said = f"{type(err).__name__}: {err}"
                    raise UserError(f"checkpoint {filename} is not one to resume from ({said})") from None

        return load_checkpoint

    def make_ensemble_load(stock: Any) -> Any:
        def load_model_ensemble_and_task(filenames: Any, *args: Any, **kwargs: Any) -> Any:
            with _explained(", ".join(filenames)), Bounded():
                found = stock(filenames, *args, **kwargs)
            _check_finite(found[0], filenames)
            return found

        return load_model_ensemble_and_task

    patch(Trainer, "load_checkpoint", make_trainer_load)
    patch(checkpoint_utils, "load_model_ensemble_and_task", make_ensemble_load)


def _check_finite(models: Any, filenames: Any) -> None:
    """UserError for weights that are not numbers: nothing that is computed with them is, and a search never ends."""
    for model in models:
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                raise UserError(f"checkpoint {', '.join(filenames)}: {name} holds NaN or infinity; take an earlier one")


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is put into a model into one line that names the file."""
    try:
        yield
    except Exception as err:
        inner = err.__context__ if type(err) is Exception else err  # the trainer wraps all in a bare Exception
        text = str(inner)
        if isinstance(inner, UserError):
            raise inner from None
        if isinstance(inner, RuntimeError) and "Error(s) in loading state_dict" in text:
            raise UserError(f"checkpoint {path} does not fit this model: {describe_mismatch(text)}") from None
        if isinstance(inner, AssertionError) and "--reset-optimizer" in text:
            raise UserError(f"checkpoint {path}: {text}") from None
        if isinstance(inner, OmegaConfBaseException):
            raise UserError(f"checkpoint {path}: its configuration cannot be used: {text.splitlines()[0]}") from None
        if isinstance(inner, IsADirectoryError):
            raise UserError(f"--path {inner.filename}: is a folder; name a checkpoint in it") from None
        if isinstance(inner, OSError) and text.startswith("Model file not found: "):
            raise UserError(f"checkpoint {text.partition(': ')[2]} does not exist (--path)") from None
        raise


def describe_mismatch(report: str) -> str:
    """The first wrong key in torch's report of ``load_state_dict``, with both shapes, and how many keys differ."""
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", report)
    keys = {}
    for kind in ("Missing", "Unexpected"):
        found = re.search(rf"{kind} key\(s\) in state_dict: (.*)", report)
        keys[kind] = re.findall(r'"([^"]+)"', found[1]) if found else []
    if sizes:
        what = f"{sizes[0][0]} has shape {sizes[0][1]} in the file and {sizes[0][2]} in the model"
    elif keys["Missing"]:
        what = f"the file has no {keys['Missing'][0]}"
    elif keys["Unexpected"]:
        what = f"the model has no {keys['Unexpected'][0]}"
    else:
        return " ".join(report.split())[:300]
    count = len(sizes) + len(keys["Missing"]) + len(keys["Unexpected"])
    differ = f" ({count} keys differ)" if count > 1 else ""
    return f"{what}{differ}; give the --arch, sizes and dictionaries it was trained with"
