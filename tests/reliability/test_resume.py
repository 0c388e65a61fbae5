"""R1, R2: a resumed or repeated training is bit for bit the one that has not been stopped; all noise is on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.conftest import TRAINING, Training
from tests.reliability.figures import Record
from tests.reliability.systems import ROWS
from tests.util import System, assert_same_training, losses, run_cli, train_args

every_system = pytest.mark.parametrize("system", ROWS)


@every_system
@pytest.mark.parametrize(
    "start",
    [
        pytest.param("checkpoint_1_3.pt", id="mid-epoch"),
        pytest.param("checkpoint1.pt", id="epoch-end", marks=pytest.mark.full),
    ],
)
def test_r1_resume_is_exact(
    system: System,
    start: str,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    """In a new process: losses as printed; every tensor of model, optimizer and EMA."""
    whole = training(system)
    args = train_args(datasets[system.data], tmp_path, system, *TRAINING)
    found = losses(run_cli("train", [*args, "--restore-file", str(whole.folder / start)]))
    assert found and found == {update: loss for update, loss in whole.losses.items() if update in found}
    assert_same_training(tmp_path / "checkpoint_last.pt", whole.folder / "checkpoint_last.pt")
    figure("R1", "resumed trainings equal bit for bit", 1)


@every_system
def test_r2_same_seed_and_workers_change_nothing(
    system: System,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    whole = training(system)
    args = train_args(datasets[system.data], tmp_path, system, *TRAINING, "--num-workers", "2")
    assert losses(run_cli("train", args)) == whole.losses
    assert_same_training(tmp_path / "checkpoint_last.pt", whole.folder / "checkpoint_last.pt")
    figure("R2", "repeated trainings equal bit for bit", 1)
