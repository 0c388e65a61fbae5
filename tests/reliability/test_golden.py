"""R19: what a released version wrote is loaded, computes what it computed, and trains on."""

import importlib.metadata
import os
from pathlib import Path

import pytest
import torch

import efficient_systems  # noqa: F401  (registers)
from fairseq_efficient.checkpoints import read_checkpoint
from tests.reliability import golden
from tests.reliability.figures import Record
from tests.util import ROOT, assert_close, error_line, run_cli, run_here, train_args

VERSIONS = golden.versions()
FILES = [(version, name) for version in VERSIONS for name in sorted(golden.recorded(version))]
BY_FILE = {one.file: one for one in golden.GOLDEN}


def test_every_family_is_there():
    """Of the first version, and small; a family that is added belongs into the next release."""
    first = [version.name for version in VERSIONS][:1]
    assert first == ["0.1.0"]
    for version in VERSIONS:
        files = {path.name for path in version.glob("*.*")} - {golden.OUTPUTS}
        assert files == set(golden.recorded(version)) and files <= set(BY_FILE)
        assert all(path.stat().st_size <= golden.LARGEST for path in version.rglob("*") if path.is_file())


@pytest.mark.parametrize(("version", "name"), FILES, ids=[f"{version.name}-{name}" for version, name in FILES])
def test_r19_it_computes_what_it_computed(version: Path, name: str, figure: Record):
    """On another processor to 1e-4 of log-probabilities."""
    path, one = version / name, BY_FILE[name]
    found = golden.compute(path, golden.data_of(version, one), one.system.data)
    assert_close(found, golden.recorded(version)[name], 1e-4, 1e-4)
    if path.suffix == ".pt":
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    figure("R19", "checkpoints of earlier versions loaded", 1)


WITH_STATE = [(version, name) for version, name in FILES if BY_FILE[name].state]


@pytest.mark.parametrize(("version", "name"), WITH_STATE, ids=[f"{v.name}-{name}" for v, name in WITH_STATE])
def test_r19_training_goes_on(version: Path, name: str, datasets: dict[str, Path], tmp_path: Path, figure: Record):
    path, one = version / name, BY_FILE[name]
    more = ("--restore-file", str(path), "--max-update", str(golden.UPDATES + 1), "--disable-validation")
    output = run_cli("train", train_args(datasets[one.system.data], tmp_path, one.system, *more))
    assert f"@ {golden.UPDATES} updates" in output
    state = read_checkpoint(str(tmp_path / "checkpoint_last.pt"))
    assert state["optimizer_history"][-1]["num_updates"] == golden.UPDATES + 1
    figure("R19", "trainings of earlier versions continued", 1)


# --- scripts/make_golden.py -------------------------------------------------------------------------------------------

SCRIPT = "scripts/make_golden.py"


def test_a_release_is_written_once(tmp_path: Path):
    only = ["--out", str(tmp_path), "--only", "span-fixed,span-tensors"]
    status, output = run_here(SCRIPT, only)
    assert status == 0, output
    (version,) = tmp_path.iterdir()
    assert version.name == importlib.metadata.version("fairseq-efficient").partition(".dev")[0]
    assert sorted(os.listdir(version)) == ["outputs.safetensors", "span-fixed.pt", "span-tensors.safetensors", "stream"]
    text = (version / "span-fixed.pt").read_bytes()
    assert str(ROOT).encode() not in text and str(tmp_path).encode() not in text
    for name in ("span-fixed.pt", "span-tensors.safetensors"):
        assert_close(golden.compute(version / name, version / "stream", "spans"), golden.recorded(version)[name], 0, 0)
    status, output = run_here(SCRIPT, only)
    assert status == 2 and "exists: what a version wrote is not written again" in error_line(output)
    for more, message in ((["--only", "x"], "--only x: not one of"), (["--only", "span-fixed"], "give another --out")):
        status, output = run_here(SCRIPT, more)
        assert status == 2 and message in error_line(output)
