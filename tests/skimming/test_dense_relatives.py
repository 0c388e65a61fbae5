"""Models that keep all tokens beside one that skims: where its training starts, and its teachers."""

from pathlib import Path

import pytest
import torch

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests.skimming.commands import RESET, STOCK, train, train_log, valid_log, validate
from tests.skimming.helpers import HEAD
from tests.util import System, assert_close, run_in_process, train_args


@pytest.fixture(scope="module")
def vanilla(sentence_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fairseq's RoBERTa, fine-tuned by fairseq's criterion."""
    folder = tmp_path_factory.mktemp("vanilla")
    args = train_args(sentence_data, folder, System("skimming", "roberta", STOCK, "sentences"), "--max-update", "10")
    run_in_process("train", [*args, "--criterion", "sentence_prediction"])
    return folder / "checkpoint_last.pt"


# --- where a training starts ------------------------------------------------------------------------------------------


def test_a_vanilla_roberta_starts_a_skimming_one(vanilla: Path, sentence_data: Path, tmp_path: Path):
    """By --restore-file; before any update its accuracy and loss are the vanilla model's."""
    expected = validate(sentence_data, vanilla)
    start = ("--restore-file", str(vanilla), *RESET, "--skim-init-bias", "5")
    output = train(sentence_data, tmp_path, *start, "--max-update", "1", "--lr", "0", "--skim-lambda", "0")
    found = valid_log(output)
    assert "no skim predictor for layer 0, 1: starts new" in output
    assert found["keep_ratio"] == 1.0
    assert abs(found["loss"] - expected["loss"]) < 1e-3
    assert abs(found["accuracy"] - expected["accuracy"]) < 0.06  # stock rounds to one digit
    again = train(sentence_data, tmp_path, *start, "--max-update", "30", "--skim-lambda", "3")
    assert "done training" in again


# --- a teacher --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["skim", "stock"])
def test_a_dense_teacher_is_learned_from(of: str, vanilla: Path, sentence_data: Path, tmp_path: Path):
    path = vanilla
    if of == "skim":
        train(sentence_data, tmp_path / "dense", "--skim-layers", "none", "--max-update", "8")
        path = tmp_path / "dense" / "checkpoint_last.pt"
    more = ("--skim-teacher", str(path), "--skim-distill-weight", "5", "--skim-distill-temperature", "2")
    output = train(sentence_data, tmp_path / "taught", *more, "--max-update", "6")
    assert f"learning from {path}" in output
    lines = train_log(output)
    assert all(float(line["aux/distill"]) >= 0 for line in lines) and float(lines[0]["aux/distill"]) > 0
    assert "aux/distill" not in valid_log(output)
    state = read_checkpoint(str(tmp_path / "taught" / "checkpoint_last.pt"))
    assert state.get("criterion") is None and not any("teacher" in key for key in state["model"])
    path.rename(path.with_suffix(".moved"))  # validation needs none
    try:
        validate(sentence_data, tmp_path / "taught" / "checkpoint_last.pt")
    finally:
        path.with_suffix(".moved").rename(path)


def test_a_taught_run_resumes_exactly(vanilla: Path, sentence_data: Path, tmp_path: Path):
    """Loading the teacher draws random numbers, which must not show."""
    more = ("--skim-teacher", str(vanilla), "--max-update", "6", "--save-interval-updates", "3")
    train(sentence_data, tmp_path / "whole", *more)
    train(sentence_data, tmp_path / "parts", *more, "--restore-file", str(tmp_path / "whole" / "checkpoint_1_3.pt"))
    states = [read_checkpoint(str(tmp_path / name / "checkpoint_last.pt"))["model"] for name in ("whole", "parts")]
    assert_close(states[0], states[1], 0, 0)


def test_teachers_that_cannot_teach(vanilla: Path, sentence_data: Path, tmp_path: Path):
    state = read_checkpoint(str(vanilla))
    headless = {**state, "model": {k: v for k, v in state["model"].items() if not k.startswith("classification_heads")}}
    torch.save(headless, tmp_path / "headless.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    cases = {
        tmp_path / "missing.pt": "missing.pt: No such file",
        tmp_path / "headless.pt": f"it has no head {HEAD}",
        tmp_path / "text.pt": "text.pt cannot be read",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            train(sentence_data, tmp_path / "x", "--skim-teacher", str(path), "--max-update", "1")
