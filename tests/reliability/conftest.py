"""One training of each system, which many tests start from; workers share them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.poison import poisoned_memory
from tests.util import System, losses, run_cli, train_args

__all__ = ["poisoned_memory"]

# saved after 3 updates (in the epoch), after the epoch's 5 and at the end; all random draws are on
TRAINING = ("--save-interval-updates", "3", "--store-ema", "--dropout", "0.1", "--attention-dropout", "0.1")


@dataclass(frozen=True)
class Training:
    """What :data:`TRAINING` left: ``checkpoint_1_3.pt``, ``checkpoint1.pt``, ``checkpoint_last.pt`` ..."""

    system: System
    folder: Path
    losses: dict[int, str]


@pytest.fixture(scope="session")
def training(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[System], Training]:
    """8 updates of a system, made by whoever asks first."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trainings"
    root.mkdir(exist_ok=True)

    def get(system: System) -> Training:
        folder, log = root / system.arch, root / f"{system.arch}.log"
        with FileLock(root / f"{system.arch}.lock"):
            if not log.exists():
                output = run_cli("train", train_args(datasets[system.data], folder, system, *TRAINING))
                log.write_text(output, encoding="utf-8")
        return Training(system, folder, losses(log.read_text(encoding="utf-8")))

    return get
