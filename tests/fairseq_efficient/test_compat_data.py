"""Data that stock fairseq trips over are told in one line: dictionaries, splits, labels, scores; no batch is lost."""

import gc
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from fairseq_efficient import compat
from fairseq_efficient.errors import UserError
from tests.made_data import make_sentence_data

compat.apply()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, r"No such file or directory \(is it the folder of the prepared data\?\)"),
        (b"caf\xe9 1\n", "not UTF-8; prepare the data again"),
        (b"a 1\nlonely\n", "the line 'lonely' is not a symbol and its count"),
        (b"a 1\nb x\n", "the line 'b' is not a symbol and its count"),
        (b"a 1\nb 2\na 3\n", "'a' is there twice"),
    ],
)
def test_a_broken_dictionary_is_one_line(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "dict.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: {why}$"):
        Dictionary.load(str(path))


def test_a_folder_in_the_place_of_a_dictionary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: Is a directory"):
        Dictionary.load(str(tmp_path))


def test_other_dictionaries_load_as_before(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 1\nb 2 #fairseq:overwrite\n", encoding="utf-8")
    assert Dictionary.load(str(tmp_path / "dict.txt")).symbols[4:] == ["a", "b"]
    with (tmp_path / "dict.txt").open(encoding="utf-8") as file:
        assert len(Dictionary.load(file)) == 6


def task_of(folder: Path, **flags: Any) -> Any:
    cfg = SentencePredictionConfig(data=str(folder), num_classes=2, regression_target=False, seed=1)
    for name, value in flags.items():
        setattr(cfg, name, value)
    return SentencePredictionTask.setup_task(cfg)


def test_splits_and_labels(sentence_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sentence_data, tmp_path / "data")
    task = task_of(folder)
    assert len(task.load_dataset("valid")) == 16
    with pytest.raises(UserError, match=r"^--num-classes -1: give the number of classes"):
        task_of(folder, num_classes=-1)
    with pytest.raises(UserError, match=r"input0/no\.idx: no such file, so .*/data has no split no$"):
        task.load_dataset("no")
    for end in ("bin", "idx"):
        shutil.copy(folder / "label" / f"train.{end}", folder / "label" / f"valid.{end}")
    with pytest.raises(UserError, match=r"data: split valid has not as many labels \(or second texts\) as texts"):
        task.load_dataset("valid")


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("input0/valid.bin", lambda path: path.write_bytes(b""), r"valid\.bin is empty"),
        ("input0/valid.bin", lambda path: path.write_bytes(path.read_bytes()[:-3]), r"valid\.bin is cut off"),
        ("input0/valid.idx", lambda path: path.write_bytes(path.read_bytes()[:-3]), r"valid\.idx is cut off"),
        ("input0/valid.idx", lambda path: path.write_bytes(path.read_bytes()[:18] + b"\xff" * 7 + b"\0" + bytes(99)),
         r"valid\.idx is cut off"),
        ("label/valid.idx", lambda path: path.write_bytes(b"junk" * 9), r"label/valid\.idx: not an index that"),
        ("label/valid.bin", lambda path: path.unlink(), r"label/valid\.bin: no such file, though valid\.idx is there"),
        ("input1/valid.bin", lambda path: path.unlink(), r"input1/valid\.bin: no such file, though valid\.idx is"),
        ("input1/valid.*", lambda path: [one.unlink() for one in path.parent.glob(path.name)],
         r"input1/valid\.idx: no such file, though other splits are of pairs"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, name: str, damage: Any, why: str) -> None:
    """Also second texts that are gone, which stock takes for a split of single texts."""
    folder = make_sentence_data(tmp_path / "data", pairs=True)
    task = task_of(folder)
    assert len(task.load_dataset("valid")) == 16
    damage(folder / name)
    with pytest.raises(UserError, match=why):
        task.load_dataset("valid")
    task.load_dataset("train")


@pytest.mark.parametrize(
    ("line", "classes", "why"),
    [
        ("abc", 1, "'abc' is not a number"),
        ("", 1, "'' is not a number"),
        ("nan", 1, "'nan' is not a number"),
        ("1e999", 1, "'1e999' is not a number"),
        ("1 2", 1, "'1 2' is not a number"),
        ("0.5", 2, r"'0.5' is not 2 numbers \(--num-classes\)"),
    ],
)
def test_scores(sentence_data: Path, tmp_path: Path, line: str, classes: int, why: str) -> None:
    folder = shutil.copytree(sentence_data, tmp_path / "data")
    path = folder / "label" / "valid.label"
    task = task_of(folder, num_classes=classes, regression_target=True)
    fine = "0.25" + " 1" * (classes - 1)
    path.write_text(f"{fine}\n" * 16)
    assert len(task.load_dataset("valid")) == 16
    path.write_text(f"{fine}\n" * 6 + f"{line}\n" + f"{fine}\n" * 9)
    with pytest.raises(UserError, match=rf"^{path}:7: {why}$"):
        task.load_dataset("valid")
    path.write_bytes(b"caf\xe9\n" * 16)
    with pytest.raises(UserError, match=rf"^{path}:1: 'caf\ufffd' is not"):
        task.load_dataset("valid")


def test_no_batch_is_dropped_and_empty_splits_do_not_crash():
    from fairseq.data import data_utils

    sizes = np.arange(1, 21)
    for multiple in (1, 3, 8):
        batches = data_utils.batch_by_size(
            np.arange(20), lambda i: int(sizes[i]), sizes, max_sentences=8, required_batch_size_multiple=multiple
        )
        assert np.concatenate(batches).tolist() == list(range(20))
    assert data_utils.batch_by_size(np.arange(0), lambda i: 1, max_sentences=8, required_batch_size_multiple=8) == []


# --- workers ----------------------------------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.tensor(place)


def test_workers_end_with_the_iterator_that_started_them() -> None:
    """Without the garbage collector, which would wait 5 seconds for each."""
    before = set(multiprocessing.active_children())
    batches = EpochBatchIterator(
        Numbers(), torch.stack, [[0, 1], [2, 3], [4]], num_workers=2, buffer_size=2, disable_shuffling=True
    )
    gc.disable()
    try:
        for _ in range(2):
            found = list(batches.next_epoch_itr())
            assert [batch.tolist() for batch in found] == [[0, 1], [2, 3], [4]]
        assert set(multiprocessing.active_children()) - before
        del batches
        end = time.monotonic() + 4
        while set(multiprocessing.active_children()) != before and time.monotonic() < end:
            time.sleep(0.01)  # the thread that read from them may have a moment to live
        assert set(multiprocessing.active_children()) == before
    finally:
        gc.enable()
