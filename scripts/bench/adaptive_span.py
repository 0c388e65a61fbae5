#!/usr/bin/env python3
"""Speed and memory of attention whose heads learn how far they look, against full spans, against trimming by layer, and
against torch's fused attention with a mask, in one run."""

import argparse
import logging
import sys
from pathlib import Path

# ruff: noqa: E402
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER)]  # in this order: the package has this script's name
if __name__ in ("__main__", "__mp_main__"):  # first, because fairseq sets the level to DEBUG when it is imported
    logging.basicConfig(level=logging.ERROR)

from bench_parts.adaptive_span.models import Setup
from bench_parts.adaptive_span.parity import parity
from bench_parts.adaptive_span.rows import ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import run_main
from fairseq_efficient.flags import numbers

EPILOG = """
12 layers, d=512, ffn 2048, 8 heads, blocks of 512 tokens with full caches, ramp 32, no dropout, fp32. S is the longest
span. full: all heads see S, without a mask; span2pct: 2 % of S (and the ramp); mixed: one head of eight sees S, the
others 2 %; longest: the same, but all heads computed as far as the longest one; sdpa: torch's fused attention over all
S keys, with positions and mask as an additive mask.

rows: attention (forward and backward of one layer's attention, without projections; batch --batch); train_step (forward
and backward of all layers, batch 4) and its memory; eval_latency (the block after 65,536 tokens against that
after 8,192); decode (one token with full caches)
"""
SIZES = "S, the longest span (default: 1024,2048,8192; --quick: 1024)"
QUICK = ("attention", "train_step")


def get_parser() -> argparse.ArgumentParser:
    return command.get_parser(__doc__, EPILOG, ROWS, SIZES)


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS, QUICK)
    setup = Setup(batch=args.batch, device=args.device, dtype=command.dtype_of(args))
    bench = Bench(setup, sizes=[1024, 2048, 8192])
    command.limit(bench, args)
    if args.quick:
        bench.sizes, bench.kinds, bench.step_batch = [1024], ("span2pct", "mixed"), 1
    if args.sizes:
        bench.sizes = sorted(numbers("--sizes", args.sizes, least=16))
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "adaptive span", "S, the longest span")


if __name__ == "__main__":
    run_main(main)
