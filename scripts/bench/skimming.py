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

from bench_parts.skimming.models import Setup
from bench_parts.skimming.parity import parity
from bench_parts.skimming.rows import MODELS, ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import chosen, numbers

EPILOG = """
6x384: 6 layers of width 384 (MiniLM), 12x768: 12 of 768 (BERT base); 12 heads. A batch has 4,096 / size sentences of
unequal lengths, 60 % of it is no padding; a classification head of two classes reads the first token. keepR: a share R
of the real tokens goes through every layer, unequal shares of each sentence; predictors (width 64) run, their decisions
are given. packed: ours without predictors; stock: fairseq's RoBERTa, padded.

rows: ratios (for each model and size), overhead (predictors that keep all), uneven (one long row, equal sums), latency
(batches of 1, 8 and 32), backends (loop, bucket, padded), masked (dropped against hidden), train_step
"""
SIZES = "tokens of the longest sentence (default: 128,512; --quick: 128)"
QUICK = ("ratios", "overhead")


def get_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__, EPILOG, ROWS, SIZES, f"{command.DTYPE}, and stock stays fp32", batch=None)
    parser.add_argument("--models", metavar="X,Y", help=f"of {','.join(MODELS)} (default: all; --quick: 6x384)")
    parser.add_argument("--ratios", metavar="R,R", help="shares of tokens that are kept (default: 0.7,0.5,0.3,0.1)")
    return parser


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS, QUICK)
    setup = Setup(batch=args.batch or 0, device=args.device, dtype=command.dtype_of(args))
    bench = Bench(setup, sizes=[128, 512])
    command.limit(bench, args)
    if args.quick:
        bench.sizes, bench.models, bench.ratios = [128], ("6x384",), (0.5, 0.3)
    if args.sizes:
        bench.sizes = sorted(numbers("--sizes", args.sizes, least=8))
    if args.models:
        bench.models = tuple(chosen("--models", args.models, MODELS))
    if args.ratios:
        bench.ratios = tuple(numbers("--ratios", args.ratios, float))
        if not all(0 < share <= 1 for share in bench.ratios):
            raise UserError(f"--ratios {args.ratios}: must be above 0 and at most 1")
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "skimming")


if __name__ == "__main__":
    run_main(main)
