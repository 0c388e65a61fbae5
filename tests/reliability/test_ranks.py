"""R3, R15: two processes on the CPU (gloo) train like one with ``--update-freq 2``, resume, and end together."""

import time
from pathlib import Path

import psutil
import pytest

from tests.ranks import start_ranks, two_ranks
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS, ROWS, wait_for
from tests.util import PATIENCE, System, assert_same_training, losses, run_cli, train_args

NO_DROPOUT = ("--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0")
FLAGS = (*NO_DROPOUT, "--batch-size", "4", "--max-update", "4", "--save-interval-updates", "2")


@pytest.mark.parametrize("system", ROWS)
def test_r3_two_ranks_equal_one_with_update_freq_2(
    system: System, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """Losses as printed, all weights and optimizer states, with auxiliary losses and memories; noise, of which two
    batches draw more than one, is at its median."""
    quiet = "tests.faults:no_noise" if system.noisy else ""

    def args(name: str, *more: str) -> list[str]:
        return train_args(datasets[system.data], tmp_path / name, system, *FLAGS, *more)

    two = losses(two_ranks(args("two"), quiet))
    one = losses(run_cli("train", args("one", "--update-freq", "2"), before=quiet))
    assert two == one and len(two) == 4
    assert_same_training(tmp_path / "two/checkpoint_last.pt", tmp_path / "one/checkpoint_last.pt", position=False)

    start = str(tmp_path / "two/checkpoint_1_2.pt")
    resumed = losses(two_ranks(args("resumed", "--restore-file", start), quiet))
    assert resumed == {update: two[update] for update in (3, 4)}
    assert_same_training(tmp_path / "resumed/checkpoint_last.pt", tmp_path / "two/checkpoint_last.pt")
    figure("R3", "systems whose two ranks equal one with twice the batches", 1)


LIMIT = 30  # seconds for the survivor to end


def deaths() -> list:
    """One rank of the first system; the other, and those of all systems, in the long run."""
    cases = [(system, rank) for system in MAIN_SYSTEMS for rank in (0, 1)]
    return [pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=pytest.mark.full if n else ())
            for n, case in enumerate(cases)]  # fmt: skip


@pytest.mark.parametrize(("system", "dies"), deaths())
def test_r15_a_killed_rank_ends_the_other(
    system: System, dies: int, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """With an error, and without leaving processes that load data behind."""
    endless = ("--max-update", "1000000", "--no-save", "--disable-validation", "--num-workers", "1")
    ranks = start_ranks(train_args(datasets[system.data], tmp_path, system, "--batch-size", "4", *endless))
    wait_for(lambda: 3 in losses(ranks[0].read()), "the third update")
    loaders = [child for rank in ranks for child in psutil.Process(rank.pid).children(recursive=True)]
    ranks[dies].kill()
    start = time.monotonic()
    ranks[1 - dies].wait(expect=1, timeout=LIMIT)
    figure("R15", "seconds until the other rank had ended, at most", round(time.monotonic() - start, 1), largest=True)
    ranks[dies].wait(expect=-9)
    assert not psutil.wait_procs(loaders, timeout=LIMIT * PATIENCE)[1]
    figure("R15", "killed ranks", 1)
