#!/usr/bin/env python3
"""Speed, memory and FLOPs of skimming encoders whose kept tokens are given, against the same engine without skimming
and fairseq's RoBERTa on the padded batch, in one run."""

import argparse
import logging
import sys
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]  # in this order: the package has this script's name
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

from skimming_models import Setup
from skimming_parity import parity
from skimming_rows import MODELS, ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import UserError, run_main

EPILOG = """
6x384: 6 layers of width 384 (MiniLM), 12x768: 12 of 768 (BERT base); 12 heads. A batch has 4,096 / size sentences of
unequal lengths, 60 % of it is no padding; a classification head of two classes reads the first token. keepR: a share R
of the real tokens goes through every layer, unequal shares of each sentence; predictors (width 64) run, their decisions
are given. packed: ours without predictors; stock: fairseq's RoBERTa, padded. Variants take turns in one process (A B C,
C B A ...). "result" is baseline / ours of the medians, unless its goal is a ceiling: then the time that is added, or
ours / baseline. "bound" is the ratio of the FLOPs, "reached" the share of it. MB and GFLOP are ours / baseline; MB is
what the work adds, at its highest, in a process of its own.
Before anything is timed, the variants must agree where they compute the same.

rows: ratios (for each model and size), overhead (predictors that keep all), uneven (one long row, equal sums), latency
(batches of 1, 8 and 32), backends (loop, bucket, padded), masked (dropped against hidden), train_step
"""
SIZES = "tokens of the longest sentence (default: 128,512; --quick: 128)"
QUICK = ("ratios", "overhead")


def get_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__, EPILOG, ROWS, SIZES)
    parser.set_defaults(batch=None)
    parser.add_argument("--models", metavar="X,Y", help=f"of {','.join(MODELS)} (default: all; --quick: 6x384)")
    parser.add_argument("--ratios", metavar="R,R", help="shares of tokens that are kept (default: 0.7,0.5,0.3,0.1)")
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16"],
        help="of all models (default: fp32, on CUDA bf16); on the CPU bf16 is --cpu-bf16, and stock stays fp32",
    )
    return parser


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS)
    if args.quick and not args.rows:
        names = list(QUICK)
    dtype = args.dtype or ("bf16" if args.device == "cuda" else "fp32")
    setup = Setup(batch=args.batch or 0, device=args.device, dtype=dtype)
    bench = Bench(setup, sizes=[128, 512], runs=args.runs or 5)
    if args.quick:
        bench.sizes, bench.models, bench.ratios = [128], ("6x384",), (0.5, 0.3)
        bench.runs, bench.long, bench.memory = args.runs or 2, 1.0, False
    if args.sizes:
        bench.sizes = command.whole_numbers("--sizes", args.sizes, 8)
    if args.models:
        bench.models = tuple(args.models.split(","))
        for name in bench.models:
            if name not in MODELS:
                raise UserError(f"--models {name}: not one of {', '.join(MODELS)}")
    if args.ratios:
        bench.ratios = _shares(args.ratios)
    bench.threads, bench.memory = args.threads, bench.memory and not args.no_memory
    return bench, names


def _shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--ratios {text}: expected numbers with commas between them") from None
    if not all(0 < share <= 1 for share in found):
        raise UserError(f"--ratios {text}: must be above 0 and at most 1")
    return found


def main() -> int:
    args = get_parser().parse_args()
    command.check_files(args)
    bench, names = make_bench(args)
    return command.run(args, bench, names, lambda: parity(bench.setup), "skimming")


if __name__ == "__main__":
    run_main(main)
