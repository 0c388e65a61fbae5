#!/usr/bin/env python3
"""Write a trained model as a folder to give away: `python scripts/export_model.py CHECKPOINT FOLDER`."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main

EPILOG = """
FOLDER then holds model.safetensors (weights, and the options of model and task in its header), the dictionary, the
tokenizer, a reduced prepare.json and a model card, README.md. Optimizer state is left out. Paths are left out too.

Where fairseq takes a checkpoint it takes FOLDER/model.safetensors, and FOLDER as data:
  fairseq-interactive FOLDER --user-dir SYSTEM --path FOLDER/model.safetensors ...
  fairseq-train DATA --finetune-from-model FOLDER/model.safetensors ...
In Python: Model.from_pretrained("FOLDER"), see hubconf.py.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of any system here")
    parser.add_argument("folder", type=Path, help="to make")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared data, if it was moved since training")
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="of large matrices in the file "
        "(default: %(default)s; fp16 halves the file)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    card = parser.add_argument_group("model card")
    card.add_argument("--title", default="", help="its heading (default: the architecture)")
    card.add_argument("--trained-on", default="", metavar="TEXT", help="the data, by its public name")
    card.add_argument("--license", default="", metavar="TEXT", help="of the weights")
    card.add_argument(
        "--result", action="append", default=[], metavar="NAME=VALUE", help="a measured number; repeatable"
    )
    card.add_argument("--notes", default="", metavar="TEXT", help="more for the card")
    return parser


def results(values: list[str]) -> tuple[tuple[str, str], ...]:
    found = []
    for value in values:
        name, equals, number = value.partition("=")
        if not equals or not name.strip() or not number.strip():
            raise UserError(f"--result {value}: expected NAME=VALUE")
        found.append((name.strip(), number.strip()))
    return tuple(found)


def main() -> None:
    args = get_parser().parse_args()
    measured = results(args.result)
    logging.disable(logging.INFO)
    import efficient_systems  # noqa: F401
    from fairseq_efficient.hub.folders import Card, export

    card = Card(args.title, args.trained_on, args.license, args.notes, measured)
    facts = export(args.checkpoint, args.folder, args.data, args.precision, card, args.overwrite)
    print(f"{args.folder}: {facts['parameters']:,} parameters, {facts['size'] / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
