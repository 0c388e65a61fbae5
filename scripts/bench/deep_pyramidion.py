#!/usr/bin/env python3
"""Speed, memory and FLOPs of Pyramidion against stock fairseq's transformer and our blockwise encoder, in one run."""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]  # in this order: the package has this script's name
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

from bench_parts.deep_pyramidion.models import Setup, parity
from bench_parts.deep_pyramidion.rows import ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import run_main
from fairseq_efficient.flags import numbers

EPILOG = """
d=512, 6+6 layers, ffn 2048, 8 heads, chunks of 512, halving to 512, 8,000 types, batch 1, no attention dropout.

rows: encoder_forward and train_step (forward and backward, 128 target tokens) for each of --sizes, also with
--cpu-bf16 against stock in fp32; linearity; pooling (share of the encoder; against a bare embedding_bag); generate
(8,192 source tokens, beam 16, 128 tokens: in all, and decode without the encoder); decode (one step)
"""
SIZES = "source tokens (default: 2048,4096,8192,16384; --quick: 2048)"
QUICK = tuple(name for name in ROWS if name != "generate")


def get_parser() -> argparse.ArgumentParser:
    dtype = "only this one (default: on the CPU both, bf16 being --cpu-bf16; on CUDA bf16 for every model)"
    return command.get_parser(__doc__, EPILOG, ROWS, SIZES, dtype)


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS, QUICK)
    setup = Setup(batch=args.batch, device=args.device)
    if args.device == "cuda":
        setup = replace(setup, dtype=args.dtype or "bf16")
    bench = Bench(setup, sizes=[2048] if args.quick else [2048, 4096, 8192, 16384])
    command.limit(bench, args)
    if args.quick:
        bench.setup = replace(setup, tokens=32)
        bench.generate_size = 2048
    if args.sizes:
        bench.sizes = sorted(numbers("--sizes", args.sizes, least=bench.setup.kept))
    if args.dtype:
        bench.precisions = (args.dtype,)
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "pyramidion", "source tokens")


if __name__ == "__main__":
    run_main(main)
