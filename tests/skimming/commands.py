"""The commands train and validate on tiny labelled sentences, and the figures that they log."""

import json
from pathlib import Path
from typing import Any

from tests.util import ROOT, SKIM, System, run_in_process, train_args

USER_DIR = ("--user-dir", str(ROOT / "skimming"))
RESET = ("--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler")
STOCK = ("--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32",
         "--encoder-attention-heads", "2", "--dropout", "0.1")  # fmt: skip
TINY = System("skimming", "skim_roberta_tiny", (*SKIM, "--skim-init-bias", "1", "--dropout", "0.1"), "sentences")


def train(data: Path, folder: Path, *more: str, arch: str = "skim_roberta_tiny", tool: Any = run_in_process) -> str:
    system = System("skimming", arch, TINY.flags, "sentences")
    return str(tool("train", train_args(data, folder, system, *more)))


def valid_log(output: str, prefix: str = "valid_") -> dict[str, float]:
    """The last line of validation figures, without ``prefix``."""
    lines = [line[line.index("{") :] for line in output.splitlines() if f'"{prefix}loss"' in line]
    found = json.loads(lines[-1])
    return {key[len(prefix) :]: float(value) for key, value in found.items() if key.startswith(prefix) and value}


def train_log(output: str) -> list[dict[str, str]]:
    lines = [line for line in output.splitlines() if '"update": ' in line and '"loss": ' in line]
    return [json.loads(line[line.index("{") :]) for line in lines]


def validate(data: Path, path: Path, *more: str, subset: str = "valid") -> dict[str, float]:
    output = run_in_process(
        "validate",
        [str(data), *USER_DIR, "--task", "sentence_prediction", "--path", str(path), "--valid-subset", subset, "--cpu",
         "--batch-size", "5", "--num-workers", "0", "--log-format", "json", *more]
    )  # fmt: skip
    return valid_log(output, f"{subset}_")
