"""Where things are in a quality run of language models, and the flags that decide what is learned."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment_runs import split_size
from experiment_stages import fairseq

from fairseq_efficient.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MODELS: dict[str, list[str]] = {  # name -> architecture and what else it takes
    "vanilla": ["vanilla"],
    "fixed2": ["fixed", "--fixed-sf", "2"],
    "fixed3": ["fixed", "--fixed-sf", "3"],
    "fixed4": ["fixed", "--fixed-sf", "4"],
    "whitespaces": ["whitespaces"],
    "unigram": ["unigram"],
    "entropy": ["entropy"],
    "gumbel": ["gumbel"],
}
SPACES = "▁ <0x0A>"  # end a segment of whitespaces; data without newlines has no such symbol
NEVER = "1000000000"
TRAIN_FLAGS = [
    "--criterion", "dynamic_pooling_cross_entropy", "--optimizer", "adam", "--adam-betas", "(0.9, 0.999)",
    "--adam-eps", "1e-8", "--lr-scheduler", "cosine", "--log-format", "json", "--save-interval", NEVER,
    "--validate-interval", NEVER, "--keep-interval-updates", "1", "--no-epoch-checkpoints",
]  # fmt: skip


def layers(text: str) -> tuple[int, int, int]:
    """``"1-3-1"`` -> (1, 3, 1); UserError for another form or a part without layers."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)", text)
    if not found or "0" in found.groups():
        raise UserError(f"--layers {text}: expected three numbers above 0, such as 1-3-1")
    pre, shortened, post = map(int, found.groups())
    return pre, shortened, post


@dataclass(frozen=True)
class Plan:
    """What is the same for all runs."""

    args: argparse.Namespace
    data: Path

    @property
    def env(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.args.threads), "PYTHONUNBUFFERED": "1", "LOGLEVEL": "INFO"}

    @property
    def subset(self) -> str:
        """The split that is scored: test, or valid where there is none (nothing is chosen by it)."""
        return "test" if (self.data / "test.idx").exists() else "valid"

    @property
    def context(self) -> int:
        given = self.args.context_window
        return int(self.args.tokens_per_sample // 2 if given is None else given)

    @property
    def device_flags(self) -> list[str]:
        return ["--cpu"] if self.args.device == "cpu" else []

    @property
    def workers(self) -> list[str]:
        return ["--num-workers", "0" if self.args.device == "cpu" else "2"]

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """What scripts/prepare_lm.py says of the data; empty if it was made otherwise."""
        try:
            found: dict[str, Any] = json.loads((self.data / "prepare.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    @property
    def name(self) -> str:
        args = self.args
        if args.name:
            return str(args.name)
        files = [args.data, args.cut, *(split.partition("=")[2] for split in args.split)]
        source = args.corpus or next((Path(file).name.split(".")[0] for file in files if file), "sotu")
        options = self.prepared.get("options", {})
        if options.get("symbols") == "bytes":
            return f"{source}, bytes"
        clean = options.get("clean", "none")
        return f"{source}, characters" if clean == "none" else f"{source}, {clean} characters"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model, seed and data."""
        args = self.args
        names = (
            "layers", "dim", "ffn", "heads", "position_encoding", "dropout", "attention_dropout", "prior", "updates",
            "batch_size", "tokens_per_sample", "lr", "warmup", "clip_norm", "device", "precision", "threads",
        )  # fmt: skip
        return {**{name: getattr(args, name) for name in names}, "context_window": self.context}

    def run(self, model: str, seed: int, updates: int, timed: bool = False) -> "Run":
        return Run(self, model, seed, updates, timed and model != "vanilla", "time" if timed else "updates")


@dataclass(frozen=True)
class Run:
    """One model with one seed. ``timed``: trained for as long as vanilla took; ``setting``: what it is compared at."""

    plan: Plan
    model: str
    seed: int
    updates: int
    timed: bool
    setting: str

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seed}" + (", equal time" if self.timed else "")

    @property
    def pooled(self) -> bool:
        return self.model != "vanilla"

    @property
    def folder(self) -> Path:
        return Path(self.plan.args.out, self.model, f"seed{self.seed}" + ("-time" if self.timed else ""))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint_last.pt"

    @property
    def env(self) -> dict[str, str]:
        return self.plan.env

    @property
    def device_flags(self) -> list[str]:
        return self.plan.device_flags

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells other data from these."""
        return {split: list(split_size(self.plan.data / split)) for split in ("train", "valid")}

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        return [*fairseq(tool), str(self.plan.data), "--user-dir", str(ROOT / "dynamic_pooling"), *flags]

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        args = self.plan.args
        pre, shortened, post = layers(args.layers)
        arch, *more = MODELS[self.model]
        config = f"[{pre}, ({shortened},), {post}]" if self.pooled else f"[{pre + shortened + post}, (0,), 0]"
        flags = ["--task", "dynamic_pooling_lm", "--arch", f"dynamic_pooling_lm_{arch}", *more]
        for flag, value in (
            ("model-config", config), ("decoder-embed-dim", args.dim), ("decoder-ffn-embed-dim", args.ffn),
            ("decoder-attention-heads", args.heads),
            ("position-encoding", args.position_encoding), ("dropout", args.dropout),
            ("activation-dropout", args.dropout), ("attention-dropout", args.attention_dropout), ("prior", args.prior),
            ("whitespace-symbols", SPACES), ("tokens-per-sample", args.tokens_per_sample),
            ("batch-size", args.batch_size), ("lr", args.lr), ("clip-norm", args.clip_norm), ("seed", self.seed),
            ("warmup-updates", round(args.warmup * self.updates)), ("max-update", self.updates),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        if args.precision == "bf16":
            flags.append("--bf16" if args.device == "cuda" else "--cpu-bf16")
        return [*flags, *TRAIN_FLAGS, *self.plan.device_flags]

    @property
    def watch_flags(self) -> list[str]:
        """Flags of what is logged, validated and saved on the way."""
        args = self.plan.args
        valid = min(args.valid_interval or max(self.updates // 10, 1), self.updates)
        log = min(args.log_interval or max(self.updates // 40, 1), self.updates)
        return [
            "--validate-interval-updates", str(valid), "--save-interval-updates", str(valid),
            "--max-valid-steps", str(args.valid_batches), "--log-interval", str(log), *self.plan.workers,
        ]  # fmt: skip
