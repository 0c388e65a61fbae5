#!/usr/bin/env python3
"""Speed, memory and FLOPs of single-block Transformer-XLs, of the search for their layout, and of adaptive softmaxes,
in one run."""

import argparse
import logging
import sys
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]  # in this order: the package has this script's name
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

from bench_parts.par_search.models import Setup
from bench_parts.par_search.parity import parity
from bench_parts.par_search.rows import ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, numbers

EPILOG = """
The base model for WikiText-103: 32 blocks, d=512, ffn 2048, 8 heads, 267,744 types by tied adaptive embeddings (12,000
in the rows latency, which has others with all of them, predicted, supernet, decode and generate), no dropout, fp32.
Types are drawn by Zipf's law. interleaved: a Transformer-XL of 16 + 16 blocks; par: the paper's rule, 6 + 26. memM:
remembered tokens; -keys: remembered as keys and values, else as hidden states that are projected anew. Evaluation is
that of fairseq-eval-lm: loss of the tokens and next memory, positions projected before (they depend on weights alone).

rows: attention (a layer, against SDPA with an additive mask and no positions, and against einsums), latency (par
against interleaved), predicted (the sum of blocks measured alone, against nets), supernet (a step, against its branches
alone), softmax (optimal cutoffs, against all types and the original's rule; d of --dim), decode (a token with caches),
generate (256 tokens with caches, against recomputing each prefix)
"""
SIZES = "tokens of a step in attention rows (default: 64,192,512, after 640, 192 and 512; --quick: 64)"
QUICK = ("attention", "latency", "predicted", "supernet", "softmax")


def get_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__, EPILOG, ROWS, SIZES, "of all nets (default: fp32, on CUDA bf16)", batch=None)
    parser.add_argument("--blocks", type=int, help="of the nets (default: 32)")
    parser.add_argument("--dim", type=int, default=512, help="width; 4 times as much in the middle (default: 512)")
    parser.add_argument("--full", action="store_true", help="recompute every prefix, not nine of them")
    return parser


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS, QUICK)
    check_least(args, 2, "blocks")
    if args.dim < 64 or args.dim % 64:
        raise UserError(f"--dim {args.dim}: must be a multiple of 64, the width of a head")
    setup = Setup(dim=args.dim, ffn=4 * args.dim, heads=args.dim // 64, blocks=args.blocks or 32, full=args.full,
                  device=args.device, dtype=command.dtype_of(args))  # fmt: skip
    bench = Bench(setup, sizes=[])
    command.limit(bench, args)
    if args.quick:
        bench.setup = Setup(**{**vars(setup), "types": 12_000, "cutoffs": "250,2500", "factor": 4.0})
        bench.shapes, bench.batches, bench.passes = [bench.shapes[0], (192, 192)], (1,), ("forward",)
        bench.latency_batches, bench.caches, bench.chain, bench.vocabularies = (1,), ("",), 4, (12_000,)
    if args.sizes:
        sizes = sorted(numbers("--sizes", args.sizes, least=1))
        bench.shapes = [pair for pair in bench.shapes if pair[0] in sizes]
        if len(bench.shapes) < len(sizes):
            raise UserError(f"--sizes {args.sizes}: of 64, 192, 512")
        if set(names) - {"attention"}:
            raise UserError("--sizes is for --rows attention")
    if args.batch is not None:
        bench.batches = bench.latency_batches = bench.decode_batches = (args.batch,)
    bench.sizes = [tokens for tokens, _ in bench.shapes]
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "par", "tokens or types")


if __name__ == "__main__":
    run_main(main)
