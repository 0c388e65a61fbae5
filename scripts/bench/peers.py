#!/usr/bin/env python3
"""Speed and memory of ours against what users would take instead: RoBERTa, LED and GPT-2 of transformers, in turns."""

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

from bench_parts.peers.models import Setup, parity
from bench_parts.peers.rows import ROWS, Bench

from fairseq_efficient.bench import command
from fairseq_efficient.errors import run_main
from fairseq_efficient.flags import numbers

EPILOG = """
Needs transformers: pip install 'fairseq-efficient[peers]'. roberta has the weights of ours (6 layers of width 384, 12
heads; 4,096 / size sentences, 60 % of the batch is no padding) and must give the same logits; keepR: a share R of the
tokens goes through every layer. led: 6 + 6 layers of width 512, its window is our chunk of 512, its first token sees
all; summaries of 64 tokens with 4 beams. gpt2: 12 layers of width 512 over characters; sf4: ours, segments of 4
characters, 2 + 8 + 2 layers; vanilla: ours without segments. led and gpt2 have drawn weights, as ours.

rows: classification (forward), encoder, training, summaries (beam search), characters (training), decoding
"""
SIZES = "of documents, in tokens (default: 4096,8192; --quick: 2048)"


def get_parser() -> argparse.ArgumentParser:
    return command.get_parser(__doc__, EPILOG, ROWS, SIZES, dtype="", batch=None)


def make_bench(args: argparse.Namespace) -> tuple[Bench, list[str]]:
    """The bench and the names of its rows; UserError for flags that make no sense."""
    names = command.check_flags(args, ROWS)
    base, device = Setup(), args.device
    dtype = "bf16" if device == "cuda" else "fp32"
    parts = {name: getattr(base, name) for name in ("sentences", "summaries", "characters")}
    parts = {name: replace(part, device=device, dtype=dtype) for name, part in parts.items()}
    if args.batch:
        parts = {name: replace(part, batch=args.batch) for name, part in parts.items()}
    bench = Bench(Setup(**parts, device=device, dtype=dtype), sizes=[4096, 8192])
    command.limit(bench, args)
    if args.quick:
        bench.sizes, bench.sentence_sizes, bench.summary_size = [2048], (128,), 2048
        bench.character_size, bench.decoded = 1024, 128
    if args.sizes:
        bench.sizes = sorted(numbers("--sizes", args.sizes, least=512))
        bench.summary_size = bench.sizes[-1]
    bench.document_sizes = tuple(bench.sizes)
    return bench, names


def main() -> int:
    return command.main(get_parser(), make_bench, parity, "ours")


if __name__ == "__main__":
    run_main(main)
