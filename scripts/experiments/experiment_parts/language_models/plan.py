"""What quality runs of language models share: their flags, where things are, how they are watched."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from experiment_parts.flags import ROOT, check_output, flag
from experiment_parts.runs import ExperimentPlan, split_size
from experiment_parts.stages import fairseq, run, say
from fairseq_efficient.errors import UserError

ADAM = ["--optimizer", "adam", "--adam-betas", "(0.9, 0.999)", "--adam-eps", "1e-8", "--lr-scheduler", "cosine"]


# --- flags ------------------------------------------------------------------------------------------------------------


def add_data(parser: argparse.ArgumentParser, cut: str = "") -> argparse._ArgumentGroup:
    """The group of what the data are. cut: what ``--cut`` could be given; without it there is no such flag."""
    group = parser.add_argument_group("data (see scripts/prepare_lm.py)")
    group.add_argument("--data", type=Path, metavar="DIR", help="prepared already")
    group.add_argument("--corpus", metavar="NAME", help="built-in (default: sotu)")
    group.add_argument("--split", action="append", default=[], metavar="NAME=FILE", help="train, valid and maybe test")
    if cut:
        group.add_argument("--cut", type=Path, metavar="FILE", help=f"one file to cut 90/5/5, such as {cut}")
    group.add_argument("--format", metavar="FORMAT", help="of the files")
    group.add_argument("--name", help="of the data, in the results (default: made from the flags)")
    return group


def check_places(args: argparse.Namespace, inputs: Sequence[str]) -> None:
    """UserError for more than one of ``inputs``, data that are none, and two places for the results."""
    if sum(bool(getattr(args, name)) for name in inputs) > 1:
        raise UserError(f"give one of {', '.join(map(flag, inputs[:-1]))} and {flag(inputs[-1])}")
    if args.data is not None and not (args.data / "dict.txt").is_file():
        raise UserError(f"--data {args.data}: no dict.txt in it; prepare it with scripts/prepare_lm.py")
    check_output(args)


def corpus_flags(args: argparse.Namespace) -> list[str]:
    """What :func:`add_data` read, as arguments of scripts/prepare_lm.py."""
    flags = []
    for split in args.split:
        flags += ["--split", split]
    for name in ("cut", "format"):
        flags += [f"--{name}", str(getattr(args, name))] if getattr(args, name, None) else []
    return flags if args.split or getattr(args, "cut", None) else [*flags, "--corpus", args.corpus or "sotu"]


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
class LanguageModelPlan(ExperimentPlan):
    """What is the same for all runs."""

    data: Path

    @property
    def name(self) -> str:
        """Of the corpus."""
        raise NotImplementedError

    @property
    def subset(self) -> str:
        """The split that is scored: test, or valid where there is none (nothing is chosen by it)."""
        return "test" if (self.data / "test.idx").exists() else "valid"

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
