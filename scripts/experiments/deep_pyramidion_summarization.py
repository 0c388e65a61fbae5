#!/usr/bin/env python3
"""Quality run: full attention, blockwise and Pyramidion, trained alike on long documents, decoded and scored."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.deep_pyramidion import results
from experiment_parts.deep_pyramidion.plan import MODELS, Plan
from experiment_parts.deep_pyramidion.stages import generate, prepare, score_summaries, validate
from experiment_parts.flags import (
    add_out,
    add_output,
    add_watching,
    check_output,
    finish,
    make_parser,
    results_folder,
)
from experiment_parts.runs import train
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, chosen

EPILOG = """
Stages: prepare (once); train, validate, decode and score each model. A stage that is done is skipped, training goes on
from its last checkpoint: give the same --out. Logs, checkpoints and stages of a run are in OUT/MODEL/seed1.
Results (JSON, Markdown) go to OUT/results, with --publish to docs/results.
Look at a run: scripts/report.py deep_pyramidion OUT/MODEL/seed1 --data OUT/data --subset valid --out page.html
"""


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument(
        "--train", type=Path, metavar="FILE", help="jsonl with document and abstract; .xz, .gz are fine"
    )
    parser.add_argument("--valid", type=Path, metavar="FILE", help="the same: decoded and scored")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared already, with --keep-text, instead of files")
    add_out(parser)
    parser.add_argument("--name", default="SumPubMed", help="of the corpus, in the results (default: %(default)s)")
    parser.add_argument("--docs", type=int, metavar="N", help="only the first N documents of each file")
    parser.add_argument("--vocab-size", type=int, default=8000, help="dictionary types (default: %(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="comma list (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=600, help="of each model (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="documents (default: %(default)s)")
    parser.add_argument("--generate-batch-size", type=int, default=16, help="documents (default: %(default)s)")
    parser.add_argument("--max-source-positions", type=int, default=4096, help="(default: %(default)s)")
    add_watching(parser)
    add_output(parser, results.NAME, "{json,md}")
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """The models asked for; UserError for flags that make no sense."""
    models = chosen("--models", args.models, list(MODELS))
    numbers = ("updates", "docs", "vocab_size", "batch_size", "generate_batch_size", "max_source_positions",
               "valid_batches", "valid_interval", "log_interval", "threads")  # fmt: skip
    check_least(args, 1, *numbers)
    if (args.data is None) == (args.train is None or args.valid is None):
        raise UserError("give --train and --valid, or --data")
    if args.data is not None and not (args.data / "valid.source.txt").is_file():
        raise UserError(f"--data {args.data}: has no valid.source.txt (prepare it with --keep-text)")
    check_output(args)
    return models


def stages(args: argparse.Namespace, models: list[str]) -> None:
    folder = results_folder(args)
    plan = Plan(args, prepare(args))
    runs = [plan.run(model) for model in models]
    for number, one in enumerate(runs):
        train(one)
        validate(one)
        generate(one)
        score_summaries(one, floors=number == 0)
        results.write(folder, plan, runs[: number + 1])
    say(f"wrote {folder / results.NAME}.json and .md")


def main() -> int:
    args = get_parser().parse_args()
    models = check(args)
    return finish(lambda: stages(args, models))


if __name__ == "__main__":
    run_main(main)
