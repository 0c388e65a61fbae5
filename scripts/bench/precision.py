#!/usr/bin/env python3
"""What bf16 gives on this machine: bare matrix products and attention at the encoder's sizes, against fp32.

The ratios bound what --cpu-bf16 (or --bf16) can give a whole model: python scripts/bench/precision.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from fairseq_efficient.bench.machine import check_device, describe, provenance, this_command
from fairseq_efficient.bench.rows import HEADER, Row, make_row, table_line, table_row, write_rows
from fairseq_efficient.bench.timing import Pair, take_turns
from fairseq_efficient.errors import run_main
from fairseq_efficient.files import check_output
from fairseq_efficient.flags import check_least

DIM, FFN, HEADS, CHUNK = 512, 2048, 8, 512


def products(tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """Those of one feed-forward block."""
    x = torch.randn(tokens, DIM, device=device, dtype=dtype)
    up, down = (torch.randn(shape, device=device, dtype=dtype) for shape in ((FFN, DIM), (DIM, FFN)))
    return lambda: linear(linear(x, up), down)


def attention(tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """Within chunks, as the encoder calls it."""
    q, k, v = (
        torch.randn(max(tokens // CHUNK, 1), HEADS, min(tokens, CHUNK), DIM // HEADS, device=device, dtype=dtype)
        for _ in range(3)
    )
    return lambda: scaled_dot_product_attention(q, k, v)


@torch.no_grad()
def measure(sizes: list[int], runs: int, device: torch.device) -> list[Row]:
    rows = []
    for what, make in (("matmul", products), ("attention", attention)):
        for tokens in sizes:
            calls = {name: make(tokens, getattr(torch, name), device) for name in ("bfloat16", "float32")}
            samples = take_turns(calls, runs, device)
            pair = Pair.of(samples["bfloat16"], samples["float32"])
            rows.append(make_row(f"{what}/{tokens}/bf16/vs_fp32", pair))
            print(table_row(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="timed calls (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one size, few calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    args = parser.parse_args()
    check_least(args, 1, "threads", "runs")
    check_device(args.device)
    check_output(args.json, "--json")
    torch.set_num_threads(args.threads)
    head = provenance(this_command(), args.threads, args.device)
    print(describe(head["machine"]))
    print(table_line(HEADER))
    sizes = [8192] if args.quick else [512, 2048, 8192]
    rows = measure(sizes, min(args.runs, 5) if args.quick else args.runs, torch.device(args.device))
    if args.json:
        write_rows(args.json, head, rows)


if __name__ == "__main__":
    run_main(main)
