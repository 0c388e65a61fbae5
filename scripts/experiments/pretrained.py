#!/usr/bin/env python3
"""Make the small models of pretrained/: `python scripts/experiments/pretrained.py SYSTEM ... --out runs/pretrained`."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER), str(ROOT / "scripts")]  # no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.flags import add_out, add_watching, check_output, finish, make_parser
from experiment_parts.pretrained import results
from experiment_parts.pretrained.plan import RECIPES, Plan
from experiment_parts.pretrained.stages import export, floors, learn, measure, prepare
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least

EPILOG = f"""
SYSTEM is one of {", ".join(RECIPES)}.

Stages of each: prepare its corpus (fetched once), floors, search (par_search), train, export as fp16, measure the
exported file on the test split, export again with its model card. A stage that is done is skipped, training goes on
from its last checkpoint: give the same --out. Logs and checkpoints are in OUT/SYSTEM.
Models go to OUT/results/pretrained, what is known of them to OUT/results/pretrained.json; with --publish to pretrained
and docs/results. Those of other systems there stay.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="whose model is made")
    add_out(parser)
    parser.add_argument("--updates", type=int, metavar="N", help="of each training and search (default: the recipe's)")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where fetched corpora are kept")
    parser.add_argument("--prepare-only", action="store_true", help="fetch and prepare, for a machine without network")
    add_watching(parser.add_argument_group("training"))
    output = parser.add_argument_group("output")
    output.add_argument("--results", type=Path, metavar="DIR", help="where the models go (default: OUT/results)")
    output.add_argument("--publish", action="store_true", help="write pretrained/ and docs/results/pretrained.json")
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """The systems asked for, each once; UserError for flags that make no sense."""
    for system in args.systems:
        if system not in RECIPES:
            raise UserError(f"{system}: not one of {', '.join(RECIPES)}")
    check_least(args, 1, "updates", "valid_batches", "valid_interval", "log_interval", "threads")
    check_output(args)
    return list(dict.fromkeys(args.systems))


def stages(args: argparse.Namespace, systems: list[str]) -> None:
    args.out = args.out.resolve()
    for plan in [Plan.of(args, RECIPES[system]) for system in systems]:
        prepare(plan)
        if not args.prepare_only:
            make(plan)


def make(plan: Plan) -> None:
    floors(plan)
    learn(plan)
    export(plan)
    measure(plan)
    folder = results.write(plan)
    say(f"{plan.recipe.system}: wrote {folder}")


def main() -> int:
    args = get_parser().parse_args()
    systems = check(args)
    return finish(lambda: stages(args, systems))


if __name__ == "__main__":
    run_main(main)
