#!/usr/bin/env python3
"""What a model has to beat on prepared data: `python scripts/floors.py DATA --subset test`."""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output, write_json
from fairseq_efficient.text.classification import floors as classification_floors
from fairseq_efficient.text.language_models import floors as lm_floors

EPILOG = """
Everything learns from the split train and is scored on --subset, whole.
  of scripts/prepare_lm.py               interpolated count models of 0, 1, 2 ... tokens of context (Witten-Bell); of
                                         characters and bytes also xz -9e, which has compressed train before
  of scripts/prepare_classification.py   the most frequent class; naive Bayes over bags of the same tokens
Of summaries (lead, oracle): scripts/score_rouge.py --floors.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="prepared data")
    parser.add_argument("--subset", default="test", metavar="SPLIT", help="that is scored (default: %(default)s)")
    parser.add_argument(
        "--order", type=int, metavar="N", help="of count models: up to N tokens of context (default: 6 of characters "
        "and bytes, 3 of others)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser


def find(folder: Path, subset: str, order: int | None) -> dict[str, Any]:
    """The floors of the data in ``folder``, by what made it."""
    if (folder / "label").is_dir():
        return classification_floors.floors_of(folder, subset)
    if not (folder / "dict.txt").is_file():
        raise UserError(f"{folder}: neither labelled texts nor data of a language model (see --help)")
    return lm_floors.floors_of(folder, subset, order)


def lines(found: dict[str, Any]) -> list[str]:
    if "majority" in found:
        names = {"majority": "most frequent class", "naive_bayes": "naive Bayes, bag of tokens"}
        return [f"{found['texts']:,} texts", *(f"{name}: {found[key]:.2%}" for key, name in names.items())]
    said = [f"{found['tokens']:,} tokens ({found['kind']})"]
    for size, model in enumerate(found["count_models"]):
        bits, numbers = model["bits"], model["numbers"]
        told = f"{bits:.4f} bits per token, perplexity {2**bits:,.2f}"
        said.append(f"count model of {numbers:,} numbers, {size} tokens of context: {told}")
    if "xz_bits" in found:
        said.append(f"xz -9e after train: {found['xz_bits']:.4f} bits per token")
    return said


def main() -> None:
    args = get_parser().parse_args()
    if args.order is not None and not 0 <= args.order <= 20:
        raise UserError(f"--order {args.order}: must be from 0 to 20")
    check_output(args.json, "--json")
    found = find(args.data, args.subset, args.order)
    print("\n".join(lines(found)))
    if args.json is not None:
        write_json(args.json, found, "--json")


if __name__ == "__main__":
    run_main(main)
