#!/usr/bin/env python3
"""Speed, memory and FLOPs of Pyramidion against stock fairseq's transformer and our blockwise encoder, in one run."""

import argparse
import logging
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

import torch
from pyramidion_models import Setup, parity
from pyramidion_rows import ROWS, Bench

from fairseq_efficient.bench.machine import describe, provenance, this_command
from fairseq_efficient.bench.picture import draw
from fairseq_efficient.bench.rows import HEADER, check_writable, summary, table_line, write_json
from fairseq_efficient.errors import UserError, run_main

EPILOG = """
d=512, 6+6 layers, ffn 2048, 8 heads, chunks of 512, halving to 512, 8,000 types, batch 1, no attention dropout.
Variants take turns in one process (A B C, C B A ...); a call of more than a minute is made once. "result" is baseline /
ours of the medians, unless its goal is a ceiling: then ours / baseline, or a share. "bound" is the ratio of the FLOPs,
"reached" the share of it. MB and GFLOP are ours / baseline; MB is what the work adds, at its highest, in a process of
its own.
Before anything is timed, the variants must agree where they compute the same.

rows: encoder_forward and train_step (forward and backward, 128 target tokens) for each of --sizes, also with
--cpu-bf16 against stock in fp32; linearity; pooling (share of the encoder; against a bare embedding_bag); generate
(8,192 source tokens, beam 16, 128 tokens: in all, and decode without the encoder); decode (one step)
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the rows that matter most, small: below a minute")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them here")
    parser.add_argument("--sizes", metavar="N,N", help="source tokens (default: 2048,4096,8192,16384; --quick: 2048)")
    parser.add_argument("--rows", metavar="WHAT,WHAT", help=f"of {','.join(ROWS)} (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16"],
        help="only this one (default: on the CPU both, bf16 being --cpu-bf16; on CUDA bf16 for every model)",
    )
    parser.add_argument("--batch", type=int, default=1, help="documents (default: %(default)s)")
    parser.add_argument("--runs", type=int, metavar="N", help="timed calls of each variant (default: 5; --quick: 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    return parser


def whole_numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text}: expected whole numbers with commas between them") from None
    if min(found) < least:
        raise UserError(f"{flag} {text}: must be at least {least}")
    return sorted(set(found))


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    for flag in ("threads", "batch", "runs"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here")
    names = args.rows.split(",") if args.rows else [name for name in ROWS if not args.quick or name != "generate"]
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows {name}: not one of {', '.join(ROWS)}")
    setup = Setup(batch=args.batch, device=args.device)
    if args.device == "cuda":
        setup = replace(setup, dtype=args.dtype or "bf16")
    bench = Bench(setup, sizes=[2048] if args.quick else [2048, 4096, 8192, 16384], runs=args.runs or 5)
    if args.quick:
        bench.setup = replace(setup, tokens=32)
        bench.generate_size, bench.runs, bench.long, bench.memory = 2048, args.runs or 2, 1.0, False
    if args.sizes:
        bench.sizes = whole_numbers("--sizes", args.sizes, bench.setup.kept)
    bench.threads, bench.memory = args.threads, bench.memory and not args.no_memory
    if args.dtype:
        bench.precisions = (args.dtype,)
    return bench, names


def agree(bench: Bench) -> bool:
    """Print what the variants must agree on, and whether they do."""
    checks = list(parity(bench.setup))
    for check in checks:
        verdict = "ok  " if check.passed else "FAIL"
        found = f"largest difference {check.largest:.2g} (tolerance {check.tolerance:g})"
        print(f"{verdict} {check.name}: {found}", flush=True)
    return all(check.passed for check in checks)


def main() -> int:
    args = get_parser().parse_args()
    for flag, path in (("--json", args.json), ("--png", args.png)):
        check_writable(path, flag)
    bench, names = make_bench(args)
    torch.set_num_threads(args.threads)
    head = provenance(this_command(), args.threads, args.device)
    print(f"{describe(head['machine'])}; torch {head['versions']['torch']}; commit {str(head['commit'])[:10]}")
    load, status = os.getloadavg()[0], 0
    if load > 0.5:
        print(f"warning: load average {load:.1f}: other programs run, times will be off", file=sys.stderr)
    try:
        if not agree(bench):
            print("the variants do not compute the same: no speed is measured", file=sys.stderr)
            return 1
        print(table_line(HEADER), flush=True)
        bench.emit = lambda text: print(text, flush=True)
        bench.measure(names)
    except KeyboardInterrupt:
        print("interrupted: what follows is incomplete", file=sys.stderr)
        status = 130
    print(summary(bench.rows))
    if not bench.rows:
        return status
    settings = {
        **asdict(bench.setup),
        "sizes": bench.sizes,
        "runs": bench.runs,
        "load_before": load,
        "complete": status == 0,
    }
    if args.json:
        write_json(args.json, {**head, "settings": settings}, bench.rows)
        print(f"wrote {args.json}")
    if args.png:
        draw(args.png, bench.rows, "pyramidion", f"{describe(head['machine'])}, {bench.setup.device}")
        print(f"wrote {args.png}")
    return status


if __name__ == "__main__":
    run_main(main)
