"""What the command lines of experiments share: flags, what they must be, where results go, and how one ends."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from experiment_parts.stages import ROOT, StageFailed
from fairseq_efficient.errors import UserError


def make_parser(description: str | None, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything this run makes")


def add_watching(group: argparse._ActionsContainer, valid: str = "tenths", log: str = "fortieths") -> None:
    """How trainings are watched, and what they run on. valid, log: default intervals as shares of the updates."""
    group.add_argument("--valid-batches", type=int, default=20, metavar="N", help="in a validation (%(default)s)")
    group.add_argument("--valid-interval", type=int, metavar="N", help=f"updates, also between checkpoints ({valid})")
    group.add_argument("--log-interval", type=int, metavar="N", help=f"updates (default: {log})")
    add_machine(group)


def add_machine(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="for every model alike")
    group.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def add_output(group: argparse._ActionsContainer, name: str, kinds: str = "{json,md,png}") -> None:
    group.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: OUT/results)")
    group.add_argument("--publish", action="store_true", help=f"write docs/results/{name}.{kinds}")


# --- checks -----------------------------------------------------------------------------------------------------------


def check_timed(count: int | None) -> None:
    """UserError for a ``--time-updates`` of which nothing is left: a round's first two do not count."""
    if count and count < 4:
        raise UserError(f"--time-updates {count}: must be at least 4, of which two do not count")


def check_output(args: argparse.Namespace) -> None:
    if args.results and args.publish:
        raise UserError("give --results or --publish, not both")


# --- a run ------------------------------------------------------------------------------------------------------------


def results_folder(args: argparse.Namespace) -> Path:
    """Where results go; makes ``--out``, which is absolute from here on."""
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    return ROOT / "docs" / "results" if args.publish else Path(args.results or args.out / "results")


def finish(stages: Callable[[], None]) -> int:
    """The exit status of a script: 1 if a stage failed, which is said on stderr."""
    try:
        stages()
    except StageFailed as err:
        print(err, file=sys.stderr)
        return 1
    return 0
