"""Checkpoints that can be trusted: read without running anything, refused when foreign, written whole or not at all.

fairseq is patched with these functions by :mod:`fairseq_efficient.compat`; the loading rules of archs and tasks are in
:mod:`fairseq_efficient.checkpoint_rules`.
"""

import argparse
import contextlib
import logging
import os
import re
import shutil
import zipfile
from typing import Any

import numpy as np
import torch

from fairseq_efficient import checkpoint_pickles, tensor_files
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import replacing

logger = logging.getLogger(__name__)

_NAME = r"checkpoint(_last|_best|\d+|_\d+_\d+|\.best_\w+_-?[\d.]+?)"  # of fairseq's own files, without suffix and .pt


class UnreadableCheckpoint(UserError):
    """The file is damaged; ``reason`` says how."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"checkpoint {path} cannot be read: {reason}")
        self.path, self.reason = path, reason


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors, plain values and ``argparse.Namespace`` (old fairseq) come out of it.

    ``weights_only`` is passed explicitly, so ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` cannot switch it off. A file that
    ends in ``.safetensors`` is one of :mod:`fairseq_efficient.tensor_files`.

    Raises:
        UnreadableCheckpoint: empty, truncated or altered (each zip member is checked against its CRC: torch does not).
        UserError: not accessible, or holds a class or function outside the list above.
    """
    try:
        if path.endswith(tensor_files.SUFFIX):
            return tensor_files.read_tensor_file(path)
        damage = _zip_damage(path)
        if damage:
            raise UnreadableCheckpoint(path, damage)
        state = read_pickle(path)
    except UserError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as err:
        raise UserError(f"checkpoint {path}: {err.strerror}") from None
    except Exception as err:  # a damaged file fails in every way a parser can fail
        forbidden = re.search(r"GLOBAL (\S+)", str(err))
        if forbidden:
            raise UserError(f"checkpoint {path} refused: it holds {forbidden[1]}, which is not plain data") from None
        raise UnreadableCheckpoint(path, _reason(err)) from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} refused: it holds a {type(state).__name__}, not a training state")
    return state


def read_pickle(path: str, mmap: bool = False) -> Any:
    """What ``torch.load`` makes of ``path``, if it holds plain values and tensors alone.

    Raises:
        UserError: it names something else, or tensors that are not in it. Others as torch raises them.
    """
    forbidden = checkpoint_pickles.refused_name(path)
    if forbidden:
        raise UserError(f"checkpoint {path} refused: it holds {forbidden}, which is not plain data")
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    try:
        name = checkpoint_pickles.expanded(state)
    except UserError as err:
        raise UserError(f"checkpoint {path} refused: it holds {err}") from None
    if name is not None:
        raise UserError(f"checkpoint {path} refused: most of the tensor {name} is not in the file")
    return state


def _reason(err: Exception) -> str:
    if "Weights only load failed" in str(err):
        return "it is damaged, or not a file written by torch.save"
    first = (str(err).strip() or type(err).__name__).splitlines()[0]
    return f"it is damaged ({first[:200]})"


def _zip_damage(path: str) -> str | None:
    """What is wrong with the container, or None. Files of torch < 1.6 are no zip archives and pass."""
    size = os.path.getsize(path)
    if size == 0:
        return "it is empty (0 bytes)"
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
                return "its zip directory was not written by torch.save"
            altered = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
        return f"it is truncated ({size} bytes and no zip directory) or altered"
    return f"{altered} does not match its checksum: a byte was altered" if altered else None


def read_or_fall_back(path: str) -> tuple[str, dict[str, Any]]:
    """``(path, state)``; instead of a damaged ``checkpoint_last*.pt`` the newest readable one beside it, with a
    warning.

    Raises:
        UserError: damaged, and another file was asked for by name (using other weights in silence would be a lie), or
            nothing beside it is readable.
    """
    try:
        return path, read_checkpoint(path)
    except UnreadableCheckpoint as err:
        other = newest_readable(path)
        if other is None:
            raise UserError(f"{err}; no readable checkpoint is beside it") from None
        if not os.path.basename(path).startswith("checkpoint_last"):
            raise UserError(f"{err}; the newest readable one beside it is {other[0]}") from None
        logger.warning(f"{err}; continuing from {other[0]} instead")
        return other


def newest_readable(path: str) -> tuple[str, dict[str, Any]] | None:
    """The other readable checkpoint with most updates in ``path``'s folder, of the same suffix (as ``-shard0``)."""
    folder, name = os.path.split(path)
    known = re.fullmatch(_NAME + r"(?P<suffix>.*)\.pt", name)
    pattern = re.compile(_NAME + re.escape(known["suffix"] if known else "") + r"\.pt")
    others = [os.path.join(folder, f) for f in os.listdir(folder or ".") if f != name and pattern.fullmatch(f)]
    for other in sorted(others, key=_age, reverse=True):
        with contextlib.suppress(UserError):
            return other, read_checkpoint(other)
    return None


def _age(path: str) -> tuple[int, float]:
    """(updates, modification time); the tensors are mapped, not read. Unreadable files count as oldest."""
    try:
        state = read_pickle(path, mmap=True)
        return int(state["optimizer_history"][-1]["num_updates"]), os.path.getmtime(path)
    except Exception:  # read_checkpoint will say what is wrong with it
        return -1, 0.0


def atomic_copy(source: str, target: str) -> None:
    """Copy a file so that ``target`` is the old or the new one at every instant, even after a crash."""
    with replacing(target) as out, open(source, "rb") as file:
        shutil.copyfileobj(file, out, 1 << 24)


def atomic_save(state: Any, path: str) -> None:
    """``torch.save`` through :func:`replacing`; numpy's numbers in the bookkeeping become Python's, to be read back."""
    if isinstance(state, dict):
        bookkeeping = ("cfg", "task_state", "extra_state", "optimizer_history")
        state = {k: plain(v) if k in bookkeeping else v for k, v in state.items()}
    with replacing(path) as file:
        torch.save(state, file)
    with torch.serialization.safe_globals([argparse.Namespace]):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unsafe:
        what = ", ".join(sorted(unsafe))
        logger.error(f"checkpoint {path} cannot be loaded again: a task or criterion stored {what}")


def exported(
    model: dict[str, Any],
    task: dict[str, Any],
    weights: dict[str, Any],
    criterion: str,
    bpe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A fairseq checkpoint of plain values, without optimizer state. ``model``, ``task`` and ``bpe`` hold ``_name``."""
    last = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam"}
    sections = {"model": model, "task": task, "criterion": {"_name": criterion}, **({"bpe": bpe} if bpe else {})}
    return {
        "cfg": sections,
        "args": None,
        "model": weights,
        "optimizer_history": [{**last, "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def plain(value: Any) -> Any:
    """``value`` with each numpy number in nested dicts, lists and tuples replaced by Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        changed = {k: plain(v) for k, v in value.items()}
        return value if all(changed[k] is v for k, v in value.items()) else changed
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value
