"""Training goes on from a checkpoint, in a new process, as if it had not been stopped; dropout is on."""

from pathlib import Path

import pytest

from tests.util import SYSTEMS, System, assert_same_training, losses, run_cli, train_args

FLAGS = ("--save-interval-updates", "3", "--store-ema")


@pytest.fixture(scope="module", params=SYSTEMS, ids=str)
def whole(request: pytest.FixtureRequest, datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """(system, folder, losses) of 8 updates without a break: saved after 3 (mid-epoch) and after the epoch's 5."""
    folder = tmp_path_factory.mktemp(f"whole_{request.param}")
    return (
        request.param,
        folder,
        losses(run_cli("train", train_args(datasets[request.param.data], folder, request.param, *FLAGS))),
    )


@pytest.mark.parametrize("start", ["checkpoint_1_3.pt", "checkpoint1.pt"], ids=["mid-epoch", "epoch-end"])
def test_resume_is_exact(whole: tuple[System, Path, dict], start: str, datasets: dict[str, Path], tmp_path: Path):
    system, folder, expected = whole
    args = train_args(datasets[system.data], tmp_path, system, *FLAGS, "--restore-file", str(folder / start))
    found = losses(run_cli("train", args))
    assert found and found == {update: loss for update, loss in expected.items() if update in found}
    assert_same_training(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")


def test_same_seed_and_workers_change_nothing(
    whole: tuple[System, Path, dict], datasets: dict[str, Path], tmp_path: Path
):
    system, folder, expected = whole
    args = train_args(datasets[system.data], tmp_path, system, *FLAGS, "--num-workers", "2")
    assert losses(run_cli("train", args)) == expected
    assert_same_training(tmp_path / "checkpoint_last.pt", folder / "checkpoint_last.pt")
