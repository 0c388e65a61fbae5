"""The command line that the benchmarks share: their flags, and a run from the parity checks to the files."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fairseq_efficient.bench.machine import check_device, describe, provenance, this_command
from fairseq_efficient.bench.parity import Check, agree
from fairseq_efficient.bench.picture import draw
from fairseq_efficient.bench.rows import HEADER, summary, table_line, write_rows
from fairseq_efficient.bench.session import Session
from fairseq_efficient.files import check_output
from fairseq_efficient.flags import check_least, chosen

DTYPE = "of all models (default: fp32, on CUDA bf16); on the CPU bf16 is --cpu-bf16"
MEASURED = """
Before anything is timed, the variants must agree where they compute the same. They take turns in one process (A B C,
C B A ...); a call of more than a minute is made once. "result" is baseline / ours of the medians, unless its goal is a
ceiling: then ours / baseline, or a percentage that the row's note explains. "bound" is the ratio of the FLOPs,
"reached" the share of it. MB and GFLOP are ours / baseline; MB is what the work adds, at its highest, in a process of
its own.
"""


def get_parser(
    description: str | None, epilog: str, rows: Sequence[str], sizes: str, dtype: str = DTYPE, batch: int | None = 1
) -> argparse.ArgumentParser:
    """The flags of every benchmark.

    Args:
        rows: names to choose from. sizes, dtype: what these flags say of themselves; without ``dtype`` there is no such
            flag. batch: default of ``--batch``; None: each row has its own.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog + MEASURED, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the rows that matter most, small: below a minute")
    parser.add_argument("--check", action="store_true", help="only check that the variants compute the same")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them here")
    parser.add_argument("--sizes", metavar="N,N", help=sizes)
    parser.add_argument("--rows", metavar="WHAT,WHAT", help=f"of {','.join(rows)} (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    told = "those of the table" if batch is None else batch
    parser.add_argument("--batch", type=int, default=batch, help=f"rows in a batch (default: {told})")
    parser.add_argument("--runs", type=int, metavar="N", help="timed calls of each variant (default: 5; --quick: 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    if dtype:
        parser.add_argument("--dtype", "--precision", choices=["fp32", "bf16"], help=dtype)
    return parser


def check_flags(args: argparse.Namespace, rows: Sequence[str], quick: Sequence[str] = ()) -> list[str]:
    """The rows that are asked for; by default all, with ``--quick`` those of ``quick``, if there are any.

    Raises:
        UserError: flags that make no sense.
    """
    check_least(args, 1, "threads", "batch", "runs")
    check_device(args.device)
    if args.rows:
        return chosen("--rows", args.rows, rows)
    return list(quick if args.quick and quick else rows)


def dtype_of(args: argparse.Namespace) -> str:
    """``--dtype``, or what the device does best."""
    return str(args.dtype or ("bf16" if args.device == "cuda" else "fp32"))


def limit(bench: Session, args: argparse.Namespace) -> None:
    """How often a session times each call, with what, and whether it measures memory; ``--quick`` is as little as is
    of use."""
    bench.runs, bench.threads, bench.memory = args.runs or (2 if args.quick else 5), args.threads, not args.no_memory
    if args.quick:
        bench.long, bench.memory = 1.0, False


def check_files(args: argparse.Namespace) -> None:
    """UserError where ``--json`` or ``--png`` cannot be written."""
    for flag, path in (("--json", args.json), ("--png", args.png)):
        check_output(path, flag)


def main(
    parser: argparse.ArgumentParser,
    make_bench: Callable[[argparse.Namespace], tuple[Session, list[str]]],
    parity: Callable[[Any], Iterable[Check]],
    title: str,
    axis: str = "tokens",
) -> int:
    """A whole benchmark; the exit status.

    Args:
        make_bench: flags -> the session and the names of its rows. parity: of the session's setup.
        title, axis: what the picture calls ours and the sizes.
    """
    args = parser.parse_args()
    check_files(args)
    bench, names = make_bench(args)
    return run(args, bench, names, lambda: parity(bench.setup), title, axis)


def run(
    args: argparse.Namespace,
    bench: Session,
    names: list[str],
    checks: Callable[[], Iterable[Check]],
    title: str,
    axis: str = "tokens",
) -> int:
    """Check, measure, print and write; the exit status. ``title`` is what the picture calls ours."""
    torch.set_num_threads(args.threads)
    head = provenance(this_command(), args.threads, args.device)
    print(f"{describe(head['machine'])}; torch {head['versions']['torch']}; commit {str(head['commit'])[:10]}")
    load, status = os.getloadavg()[0], 0
    if load > 0.5 and not args.check:
        print(f"warning: load average {load:.1f}: other programs run, times will be off", file=sys.stderr)
    try:
        if not agree(checks()):
            print("the variants do not compute the same: no speed is measured", file=sys.stderr)
            return 1
        if args.check:
            return 0
        print(table_line(HEADER), flush=True)
        bench.emit = lambda text: print(text, flush=True)
        bench.measure(names)
    except KeyboardInterrupt:
        print("interrupted: what follows is incomplete", file=sys.stderr)
        status = 130
    print(summary(bench.rows))
    settings: dict[str, Any] = {
        **asdict(bench.setup),
        "sizes": bench.sizes,
        "runs": bench.runs,
        "load_before": load,
        "complete": status == 0,
    }
    if args.json and bench.rows:
        write_rows(args.json, {**head, "settings": settings, "picture": {"ours": title, "sizes": axis}}, bench.rows)
        print(f"wrote {args.json}")
    if args.png and bench.rows:
        draw(args.png, bench.rows, title, f"{describe(head['machine'])}, {bench.setup.device}", axis)
        print(f"wrote {args.png}")
    return status
