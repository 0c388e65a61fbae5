#!/usr/bin/env python3
"""Measure what a block of each kind costs in evaluation: `python scripts/measure_latency.py TABLE.json --checkpoint
CKPT` (or `--arch par_lm_wt103_base`)."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output
from fairseq_efficient.flags import check_least

EPILOG = """
One forward without gradient over (--batch, --tokens) tokens after --memory remembered ones, and their loss. A block's
time is that of --copies of them less that of a net without blocks, divided; "rest" is that net's: embedding, softmax.
The table is what --latency-table of fairseq-train and scripts/derive_layout.py take. --layouts are measured as whole
nets, in the same turns, beside what the table predicts of them.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, metavar="TABLE.json", help="file to write")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="model whose sizes are measured")
    parser.add_argument("--data", metavar="DIR", help="folder of its dict.txt (default: the one it was trained on)")
    parser.add_argument("--arch", metavar="NAME", help="an architecture instead")
    parser.add_argument("--types", type=int, default=267_744, help="types of its dictionary (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens of a forward (default: as trained; of --arch 64)")
    parser.add_argument("--memory", type=int, help="remembered tokens (default: --mem-len of the model)")
    parser.add_argument("--batch", type=int, default=1, help="rows (default: %(default)s)")
    parser.add_argument("--cache-memory", choices=["hidden", "keys"], help="(default: as the model)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--layouts", metavar="L,L", help="also measure these, e.g. affaff,afafaf")
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--copies", type=int, default=6, help="blocks that are timed at once (default: %(default)s)")
    return parser


def check(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) == (args.arch is None):
        raise UserError("say --checkpoint or --arch (one of them)")
    check_least(args, 8, "types")
    check_least(args, 1, "tokens", "batch", "threads", "runs", "copies")
    check_least(args, 0, "memory")
    for layout in layouts_of(args):
        if not layout or set(layout) - set("afi"):
            raise UserError(f"--layouts {args.layouts}: expected layouts of a, f and i with commas between them")
    check_output(args.table, "", args.checkpoint)


def layouts_of(args: argparse.Namespace) -> list[str]:
    return [] if args.layouts is None else args.layouts.split(",")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(dictionary, DecoderOptions) of the checkpoint or architecture."""
    logging.disable(logging.INFO)
    from fairseq import checkpoint_utils
    from fairseq.data import Dictionary

    import par_search  # noqa: F401
    from par_search.config import ARCHITECTURES, ParLMConfig
    from par_search.model import decoder_options

    if args.arch is not None:
        if args.arch not in ARCHITECTURES or args.arch.startswith("par_supernet"):
            names = ", ".join(name for name in ARCHITECTURES if not name.startswith("par_supernet"))
            raise UserError(f"--arch {args.arch}: not one of {names}")
        words = Dictionary()
        for number in range(args.types - len(words)):
            words.add_symbol(f"w{number}")
        cfg = ParLMConfig(**{**ARCHITECTURES[args.arch], "tokens_per_sample": 64})
        return words, decoder_options(cfg, words)
    if not args.checkpoint.is_file():
        raise UserError(f"--checkpoint {args.checkpoint}: no such file")
    overrides = {"data": args.data} if args.data else {}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    options = getattr(getattr(models[0], "decoder", None), "options", None)
    if options is None or not hasattr(options, "block"):
        raise UserError(f"--checkpoint {args.checkpoint}: not a par_lm or par_supernet")
    return task.source_dictionary, options


def main() -> None:
    args = get_parser().parse_args()
    check(args)
    dictionary, options = load(args)
    from dataclasses import replace

    import torch

    from fairseq_efficient.bench.machine import check_device, describe, provenance, this_command
    from par_search.costs import Costs, Shape, write_table
    from par_search.latency import measure_kinds

    check_device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.cache_memory:
        options = replace(options, block=replace(options.block, cache_keys=args.cache_memory == "keys"))
    tokens = args.tokens or options.tokens or 64
    memory = options.mem_len if args.memory is None else args.memory
    shape = Shape.of(options.block, tokens, memory, args.batch)
    layouts, device = layouts_of(args), torch.device(args.device)
    blocks, rest, times = measure_kinds(dictionary, options, shape, device, args.runs, args.copies, layouts)
    costs = Costs((blocks[0], blocks[1], blocks[2]), "ms", rest)
    nets = {
        layout: {"latency_ms": round(time, 4), "predicted_ms": round(costs.of_layout(layout), 4)}
        for layout, time in zip(layouts, times, strict=True)
    }
    head = provenance(this_command(), args.threads, args.device)
    write_table(args.table, shape, blocks, rest, {"types": len(dictionary), "nets": nets, **head})
    print(
        f"{describe(head['machine'])}: batch {args.batch}, {tokens} tokens, {memory} remembered as {shape.cache_memory}"
    )
    parts = zip(("attention", "feed-forward", "identity", "rest"), (*blocks, rest), strict=True)
    print(", ".join(f"{name} {milliseconds:.3f} ms" for name, milliseconds in parts))
    for layout, net in nets.items():
        print(f"{layout}: {net['latency_ms']:.2f} ms, predicted {net['predicted_ms']:.2f} ms")
    print(f"wrote {args.table}")


if __name__ == "__main__":
    run_main(main)
