"""What the tests of task ``segment_lm`` share: the small Transformer-XL of ``tests/plugins`` and its training."""

from pathlib import Path
from typing import Any

import torch

from tests.util import ROOT, run_in_process

PLUGIN = "tests/plugins/tiny_stream_lm"
TASK = ("--user-dir", str(ROOT / PLUGIN), "--task", "segment_lm", "--cpu", "--num-workers", "0")
TOKENS, LANES, MEMORY = 8, 4, 12  # of a training; 640 tokens make 20 updates an epoch


def args(data: Path, folder: Path, *more: Any) -> list[str]:
    return [
        str(data), *TASK, "--arch", "tiny_stream_lm", "--mem-len", str(MEMORY), "--save-dir", str(folder),
        "--tokens-per-sample", str(TOKENS), "--batch-size", str(LANES), "--optimizer", "adam", "--lr", "0.01",
        "--max-update", "8", "--log-format", "json", "--log-interval", "1", "--seed", "1", *map(str, more),
    ]  # fmt: skip


def train(data: Path, folder: Path, *more: Any) -> str:
    return run_in_process("train", args(data, folder, *more))


def nll(logits: torch.Tensor, target: torch.Tensor) -> float:
    return -float(logits.double().log_softmax(-1).gather(-1, target.unsqueeze(-1)).sum())
