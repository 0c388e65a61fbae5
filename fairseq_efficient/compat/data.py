"""Data that stock fairseq drops, or reports by errors of many types: one line that names the file or the flag; workers
that end."""

import contextlib
import itertools
import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from fairseq_efficient.compat.patching import patch
from fairseq_efficient.errors import UserError

_FOLDERS = ("input0", "input1", "label")
_NOT_THERE = "could not find dataset: "
_UNEQUAL = ("dataset lengths must match", "datasets must have the same length")


def keep_last_batch() -> None:
    """Stock drops the last batch, in every split, if its size is no multiple of ``--required-batch-size-multiple`` (8):
    20 test lines give 16 hypotheses, 4 lines a ZeroDivisionError.
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

    patch(data_utils, "batch_by_size", make_batches)


def end_workers() -> None:
    """Stock's iterator of an epoch and its sampler hold each other, so only the garbage collector finds those that are
    no longer used, in no particular order: the loader's pipes may be closed before its workers are told to end, and
    training stands still for 5 seconds a worker."""
    from fairseq.data.iterators import FrozenBatchSampler

    def make(stock: Any) -> Any:
        def __init__(self: Any, ordered_batches: Any, *args: Any, **kwargs: Any) -> None:
            stock(self, ordered_batches, *args, **kwargs)
            if hasattr(ordered_batches, "__self__"):
                owner: Any = weakref.WeakMethod(ordered_batches)
                self.ordered_batches = lambda *args: owner()(*args)  # called by the owner, while it lives

        return __init__

    patch(FrozenBatchSampler, "__init__", make)


def name_broken_dictionaries() -> None:
    """Stock raises errors of four types, most without the file's name, for a dictionary that is missing or damaged."""
    from fairseq.data import Dictionary

    def make(stock: Any) -> Any:
        def add_from_file(self: Any, f: Any) -> Any:
            if not isinstance(f, str):
                return stock(self, f)
            try:
                return stock(self, f)
            except Exception as err:
                why = _why_broken(err)
                if why is None:
                    raise
                raise UserError(f"{f}: {why}") from None

        return add_from_file

    patch(Dictionary, "add_from_file", make)


def _why_broken(err: Exception) -> str | None:
    text = str(err)
    if isinstance(err, OSError):
        return f"{err.strerror} (is it the folder of the prepared data?)"
    if text.startswith("Incorrect encoding"):
        return "not UTF-8; prepare the data again"
    if text.startswith("Incorrect dictionary format"):
        line = " ".join(text.partition(": ")[2].split()).strip('" ')
        return f"the line {line[:60]!r} is not a symbol and its count"
    if text.startswith("Duplicate word found"):
        return f"{text.partition(': ')[2].partition('. ')[0][:60]} is there twice"
    return None


def name_broken_files() -> None:
    """Stock raises an assertion, or errors of numpy, for ``.bin`` and ``.idx`` that are damaged or of two data sets."""
    from fairseq.data import data_utils

    def make(stock: Any) -> Any:
        def load_indexed_dataset(path: str, dictionary: Any = None, *args: Any, **kwargs: Any) -> Any:
            from fairseq_efficient.data.token_files import check_files

            for number in itertools.count():  # train, and train1, train2 ... beside it
                index = Path(f"{path}{number or ''}.idx")
                if not (index.is_file() or index.with_suffix(".bin").is_file()):
                    break
                check_files(index, None if dictionary is None else len(dictionary))
            try:
                return stock(path, dictionary, *args, **kwargs)
            except (AssertionError, ValueError, EOFError, struct.error, MemoryError, OverflowError) as err:
                if not Path(f"{path}.idx").is_file():
                    raise
                said = " ".join(str(err).split())[:80]
                raise UserError(
                    f"{path}.idx is damaged{f' ({said})' if said else ''}; prepare the data again"
                ) from None

        return load_indexed_dataset

    patch(data_utils, "load_indexed_dataset", make)


def name_broken_labels() -> None:
    """Task ``sentence_prediction``: a forgotten ``--num-classes``, a split that is not there, scores that are none, and
    labels that are not as many as the texts."""
    from fairseq.tasks.sentence_prediction import SentencePredictionTask

    def make_setup(stock: Any) -> Any:
        def setup_task(cfg: Any, **kwargs: Any) -> Any:
            if cfg.num_classes < 1:
                raise UserError(f"--num-classes {cfg.num_classes}: give the number of classes (of scores: 1)")
            return stock(cfg, **kwargs)

        return setup_task

    def make_load(stock: Any) -> Any:
        def load_dataset(self: Any, split: str, combine: bool = False, **kwargs: Any) -> Any:
            _check_split(self.cfg.data, split)
            if self.cfg.regression_target:
                _check_scores(os.path.join(self.cfg.data, "label", f"{split}.label"), self.cfg.num_classes)
            with _named(split, self.cfg.data):
                return stock(self, split, combine=combine, **kwargs)

        return load_dataset

    patch(SentencePredictionTask, "setup_task", make_setup)
    patch(SentencePredictionTask, "load_dataset", make_load)


@contextlib.contextmanager
def _named(split: str, folder: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as err:
        text = str(err)
        if text.startswith(_NOT_THERE):
            path = text.removeprefix(_NOT_THERE)
            raise UserError(f"{path}.idx: no such file, so {folder} has no split {split}") from None
        if text in _UNEQUAL:
            raise UserError(f"{folder}: split {split} has not as many labels (or second texts) as texts") from None
        raise


def _check_split(folder: str, split: str) -> None:
    """UserError for a split without the second texts that others have: stock would read the first alone."""
    there = {name: [Path(folder, name, f"{split}.{end}") for end in ("idx", "bin")] for name in _FOLDERS}
    found = [name for name, files in there.items() if any(file.is_file() for file in files)]
    if "input0" in found and "input1" not in found and any(Path(folder, "input1").glob("*.idx")):
        raise UserError(f"{there['input1'][0]}: no such file, though other splits are of pairs")


def _check_scores(path: str, count: int) -> None:
    """UserError for a line that is not ``count`` numbers."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                scores = [float(word) for word in line.split()]
            except ValueError:
                scores = []
            if len(scores) != count or not all(abs(score) < float("inf") for score in scores):
                text = line.strip()[:40].decode("utf-8", "replace")
                wanted = "a number" if count == 1 else f"{count} numbers (--num-classes)"
                raise UserError(f"{path}:{number}: {text!r} is not {wanted}")
