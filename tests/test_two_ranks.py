"""Two processes on the CPU (gloo) train like one with ``--update-freq 2``, and resume."""

from pathlib import Path

import pytest

from tests.util import SYSTEMS, Command, System, assert_same_training, free_port, losses, run_cli, train_args

NO_DROPOUT = ("--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0")
FLAGS = (*NO_DROPOUT, "--batch-size", "4", "--max-update", "4", "--save-interval-updates", "2")


def two_ranks(args: list[str]) -> str:
    """Rank 0's output of the form that works on CPU (see deep_pyramidion/README.md); both ranks must succeed."""
    form = [
        "--distributed-world-size", "2", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}",
        "--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp",
    ]  # fmt: skip
    ranks = [Command("train", [*args, *form, "--distributed-rank", str(rank)]) for rank in (0, 1)]
    output, _ = [rank.wait() for rank in ranks]
    return output


@pytest.mark.parametrize("system", [system for system in SYSTEMS if not system.noisy], ids=str)
def test_two_ranks_equal_one_with_update_freq_2(system: System, datasets: dict[str, Path], tmp_path: Path):
    def args(name: str, *more: str) -> list[str]:
        return train_args(datasets[system.data], tmp_path / name, system, *FLAGS, *more)

    two = losses(two_ranks(args("two")))
    one = losses(run_cli("train", args("one", "--update-freq", "2")))
    assert two == one and len(two) == 4
    assert_same_training(tmp_path / "two/checkpoint_last.pt", tmp_path / "one/checkpoint_last.pt", position=False)

    start = str(tmp_path / "two/checkpoint_1_2.pt")
    resumed = losses(two_ranks(args("resumed", "--restore-file", start)))
    assert resumed == {update: two[update] for update in (3, 4)}
    assert_same_training(tmp_path / "resumed/checkpoint_last.pt", tmp_path / "two/checkpoint_last.pt")
