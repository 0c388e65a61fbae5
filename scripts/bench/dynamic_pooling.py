#!/usr/bin/env python3
"""Speed, memory and FLOPs of dynamic pooling (hourglass language models) against twelve layers without pooling, plain
operators, and fairseq's transformer_lm, in one run."""

import argparse
import logging
import sys
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]  # in this order: the package has this script's name
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

from bench_parts.dynamic_pooling.models import Setup
from bench_parts.dynamic_pooling.parity import parity
from bench_parts.dynamic_pooling.rows import ENCODINGS, ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import run_main
from fairseq_efficient.flags import check_shares, chosen, numbers

EPILOG = """
d=512, ffn 2048, 8 heads, 32 types, no dropout, fp32, batch 1 unless a row says otherwise. vanilla: 12 layers; sf4: 2
layers, 8 over segments of 4 tokens, 2 layers.

rows: train_step (forward and backward, no optimizer) for each of --sizes, segments of 2, 3 and 4 tokens, with its
memory; batch (segments of 4 tokens at batch 4, with memory); ragged (1,024 characters, batch 4, boundaries at spaces,
padded and packed); encodings (vanilla: rotary against relative, and against transformer_lm); attention (against
einsums); pooling (share of a step; against bare kernels); decode (one step with caches, batch 1 and 8); generate (1,024
characters at batch 8, against recomputing each prefix; by fairseq's generator)
"""
SIZES = "tokens of a window (default: 1024,2048,4096; --quick: 1024)"
QUICK = ("train_step", "attention", "pooling", "decode")


def get_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__, EPILOG, ROWS, SIZES)
    parser.add_argument("--dropout", type=float, default=0.0, help="everywhere (default: 0; the paper: 0.1)")
    parser.add_argument("--encodings", metavar="X,Y", help=f"of {','.join(ENCODINGS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="recompute every prefix, not nine of them: an hour")
    return parser


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS, QUICK)
    check_shares(args, "dropout")
    setup = Setup(
        batch=args.batch, dropout=args.dropout, full=args.full, device=args.device, dtype=command.dtype_of(args)
    )
    bench = Bench(setup, sizes=[1024, 2048, 4096])
    command.limit(bench, args)
    if args.quick:
        bench.sizes, bench.factors, bench.decode_size, bench.decode_batches = [1024], (4,), 128, (1,)
    if args.sizes:
        bench.sizes = sorted(numbers("--sizes", args.sizes, least=16))
    if args.encodings:
        bench.encodings = tuple(chosen("--encodings", args.encodings, ENCODINGS))
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "hourglass")


if __name__ == "__main__":
    run_main(main)
