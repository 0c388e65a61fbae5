"""R13, R14: half precision trains as full precision does, and loss scales come back or stop the training."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_efficient.checkpoints import read_checkpoint
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS
from tests.util import System, error_line, losses, run_here, run_in_process, train_args

every_system = pytest.mark.parametrize("system", MAIN_SYSTEMS, ids=str)
UPDATES, MANY = 50, 500
SEEDS = ("1", "2", "3", "4")  # a tiny model of one seed is chaotic: rounding alone moves its loss by a percent
QUIET = ("--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0", "--lr", "0.002")


def entries(output: str, key: str) -> list[float]:
    """The numbers of that name in a log of JSON lines."""
    lines = [json.loads(line[line.index("{") :]) for line in output.splitlines() if f'"{key}"' in line]
    return [float(line[key]) for line in lines]


@pytest.mark.full
@every_system
def test_r13_bf16_autocast_trains_as_fp32_does(
    system: System, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """The validation loss after 50 updates within 1 %, mean of four seeds, and 500 updates without NaN."""
    sums = []
    for name, more in (("full", ()), ("half", ("--cpu-bf16",))):
        found = []
        for seed in SEEDS:
            saving = ("--max-update", str(UPDATES), "--no-save", "--validate-interval", "1000000", "--seed", seed)
            args = train_args(datasets[system.data], tmp_path / name, system, *QUIET, *saving, *more)
            found.append(entries(run_in_process("train", args), "valid_loss")[-1])
        sums.append(sum(found))
    difference = abs(sums[1] / sums[0] - 1)
    mean = f"mean of {len(SEEDS)} seeds"
    figure(
        "R13", f"bf16 and fp32 differ after {UPDATES} updates by, at most, {mean}", round(difference, 4), largest=True
    )
    assert difference < 0.01, sums

    many = ("--max-update", str(MANY), "--no-save", "--disable-validation", "--cpu-bf16", "--log-interval", "10")
    output = run_in_process("train", train_args(datasets[system.data], tmp_path, system, *many))
    seen = [float(loss) for loss in losses(output).values()]
    assert len(seen) >= MANY // 10 - 1 and all(map(math.isfinite, seen))
    figure("R13", "updates in bf16 without NaN", MANY)


# --- R14: fp16 on a GPU -----------------------------------------------------------------------------------------------


def gpu_args(data: Path, folder: Path, system: System, *more: str) -> list[str]:
    args = train_args(data, folder, system, "--fp16", "--fp16-no-flatten-grads", "--no-epoch-checkpoints", *more)
    args.remove("--cpu")
    return args


def scales(output: str) -> list[float]:
    return entries(output, "loss_scale")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_system
def test_r14_the_loss_scale_falls_and_comes_back(
    system: System, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """From 2^30, where everything overflows; weights stay finite."""
    scaling = ("--fp16-init-scale", str(2**30), "--fp16-scale-window", "4", "--max-update", "60")
    output = run_in_process("train", gpu_args(datasets[system.data], tmp_path, system, *scaling))
    found = scales(output)
    low = found.index(min(found))
    assert "overflow" in output and found[low] < 2**30 and max(found[low:]) > found[low]
    weights: dict[str, Any] = read_checkpoint(str(tmp_path / "checkpoint_last.pt"))["model"]
    assert all(bool(one.isfinite().all()) for one in weights.values())
    figure("R14", "loss scales that fell and came back", 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_system
def test_r14_a_scale_that_cannot_fall_stops_the_training(
    system: System, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    scaling = ("--fp16-init-scale", str(2**30), "--min-loss-scale", str(2**29))
    status, output = run_here("train", gpu_args(datasets[system.data], tmp_path, system, *scaling))
    assert status == 1 and "Minimum loss scale reached" in error_line(output)
    figure("R14", "smallest scales that stopped a training", 1)
