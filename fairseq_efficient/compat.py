"""Repairs of fairseq 0.12.3 on modern Python, torch and numpy, and of its handling of checkpoints and mistakes.

``apply()`` is the first call in every system's ``__init__`` (before anything registers) and in ``fairseq_efficient.plugin``. Each
repair is one function that says what is wrong and is applied once, where the fault is present. Checks of the command line
are in :mod:`fairseq_efficient.compat_cli`.
"""

import argparse
import contextlib
import functools
import os
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

from fairseq_efficient import checkpoints, compat_cli
from fairseq_efficient.checkpoint_rules import check_checkpoint
from fairseq_efficient.errors import UserError

OLDEST_TORCH = (2, 10)
_MARK = "_fairseq_efficient"


def apply() -> None:
    """Repair fairseq in this process; calling it again changes nothing.

    Raises:
        UserError: torch is too old to read a checkpoint safely.
    """
    compat_cli.present_errors()
    require_torch(torch.__version__)
    restore_numpy_names()
    read_checkpoints_safely()
    write_checkpoints_atomically()
    name_what_does_not_fit()
    broadcast_plain_state()
    compat_cli.check_commands(patch)


def patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``make(stock)``, once."""
    stock = getattr(owner, name)
    if not getattr(stock, _MARK, False):
        ours = make(stock)
        functools.update_wrapper(ours, stock)
        setattr(ours, _MARK, True)
        setattr(owner, name, staticmethod(ours) if isinstance(vars(owner).get(name), staticmethod) else ours)


class _Overlay(types.ModuleType):
    """What one fairseq module sees under a module's name: a few names of ours first, then the real module's."""

    def __init__(self, real: types.ModuleType, **names: Any):
        super().__init__(real.__name__)
        vars(self).update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def require_torch(version: str) -> None:
    """Before torch 2.10 a crafted file could run code under ``weights_only`` (CVE-2025-32434) or corrupt the heap (CVE-2026-24747)."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise UserError(f"torch {version} is installed; fairseq-efficient needs torch >= 2.10 (older ones load checkpoints unsafely)")


def restore_numpy_names() -> None:
    """numpy 1.24 removed ``np.int`` and ``np.float``, which three lines of fairseq still use.

    Only those modules see them again: numpy itself stays as it is, for libraries that look whether a name exists.
    """
    if hasattr(numpy, "int") and hasattr(numpy, "float"):
        return
    from fairseq.data import data_utils
    from fairseq.modules import dynamic_crf_layer

    for module in (data_utils, dynamic_crf_layer):
        if not isinstance(module.np, _Overlay):
            module.np = _Overlay(numpy, int=int, float=float)


def read_checkpoints_safely() -> None:
    """Stock code reads with torch's default, which an environment variable switches off, refuses its own older checkpoints
    (``argparse.Namespace``), builds any architecture a file names, and dies without naming a damaged file.

    ``fairseq.checkpoint_utils`` calls ``torch.load(file, ...)`` in two places; there alone it now is :func:`_load`.
    """
    from fairseq import checkpoint_utils

    if not isinstance(checkpoint_utils.torch, _Overlay):
        checkpoint_utils.torch = _Overlay(torch, load=_load)


def _load(file: Any, **_: Any) -> dict[str, Any]:
    path, state = checkpoints.read_or_fall_back(file.name)
    check_checkpoint(state, path)
    return state


def write_checkpoints_atomically() -> None:
    """Stock ``checkpoint_best`` and ``checkpoint_last`` are copied in place (a crash leaves half a file), the first write is not
    flushed to the disk before its rename, and a full disk leaves ``*.tmp`` behind."""
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    def make_copy(stock: Any) -> Any:
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
            if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
                return stock(src_path, dst_path, overwrite=overwrite)
            checkpoints.atomic_copy(src_path, dst_path)
            return True

        return copy

    def make_save(stock: Any) -> Any:
        def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
            if async_write or PathManager.path_requires_pathmanager(filename):
                stock(obj, filename, async_write=async_write)
            else:
                checkpoints.atomic_save(obj, filename)

        return torch_persistent_save

    patch(PathManager, "copy", make_copy)
    patch(checkpoint_utils, "torch_persistent_save", make_save)


def name_what_does_not_fit() -> None:
    """Stock says "please ensure that the architectures match"; say which key, with both shapes. A ``--restore-file`` that does not
    exist starts a new training in silence; say so, unless it is a ``checkpoint_last`` (the first start of a resumed job)."""
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer

    def make_trainer_load(stock: Any) -> Any:
        def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
            if not os.path.basename(filename).startswith("checkpoint_last") and not _exists(filename):
                raise UserError(f"checkpoint {filename} does not exist (--restore-file, --finetune-from-model)")
            with _explained(filename):
                return stock(self, filename, *args, **kwargs)

        return load_checkpoint

    def make_ensemble_load(stock: Any) -> Any:
        def load_model_ensemble_and_task(filenames: Any, *args: Any, **kwargs: Any) -> Any:
            with _explained(", ".join(filenames)):
                return stock(filenames, *args, **kwargs)

        return load_model_ensemble_and_task

    patch(Trainer, "load_checkpoint", make_trainer_load)
    patch(checkpoint_utils, "load_model_ensemble_and_task", make_ensemble_load)


def _exists(path: str) -> bool:
    from fairseq.file_io import PathManager

    return bool(PathManager.isfile(path))


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is put into a model into one line that names the file."""
    try:
        yield
    except Exception as err:
        inner = err if type(err) is not Exception else err.__context__  # the trainer wraps all in a bare Exception
        text = str(inner)
        if isinstance(inner, UserError):
            raise inner from None
        if isinstance(inner, RuntimeError) and "Error(s) in loading state_dict" in text:
            raise UserError(f"checkpoint {path} does not fit this model: {describe_mismatch(text)}") from None
        if isinstance(inner, AssertionError) and "--reset-optimizer" in text:
            raise UserError(f"checkpoint {path}: {text}") from None
        if isinstance(inner, OSError) and text.startswith("Model file not found"):
            raise UserError(f"checkpoint {text.partition(': ')[2]} does not exist (--path)") from None
        raise


def describe_mismatch(text: str) -> str:
    """The first wrong key in torch's report of ``load_state_dict``, with both shapes, and how many more there are."""
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", text)
    lists = {
        word: re.findall(r'"([^"]+)"', found[1])
        for word in ("Missing", "Unexpected")
        if (found := re.search(rf"{word} key\(s\) in state_dict: (.*)", text))
    }
    count = len(sizes) + sum(len(keys) for keys in lists.values())
    if sizes:
        key, ours, theirs = sizes[0][0], sizes[0][2], sizes[0][1]
        what = f"{key} has shape {theirs} in the file and {ours} in the model"
    elif lists.get("Missing"):
        what = f"the file has no {lists['Missing'][0]}"
    elif lists.get("Unexpected"):
        what = f"the model has no {lists['Unexpected'][0]}"
    else:
        return " ".join(text.split())[:300]
    more = f" ({count} keys differ)" if count > 1 else ""
    return f"{what}{more}; use the --arch, sizes and dictionaries it was trained with"


def broadcast_plain_state() -> None:
    """Resuming on two ranks sends the state by ``torch.save`` and ``torch.load``, whose default since torch 2.6 refuses fairseq's own
    placeholder of a tensor, ``argparse.Namespace`` and ``DictConfig``: allow the first two, send the last as a dict."""
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
