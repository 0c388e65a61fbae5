#!/usr/bin/env python3
"""Quality run: Transformer-XLs whose attention stands where a rule, a search or chance puts it, trained alike."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.flags import (
    add_out,
    add_output,
    add_watching,
    check_timed,
    finish,
    make_parser,
    results_folder,
)
from experiment_parts.language_models.plan import add_data, check_places, prepare_data
from experiment_parts.par_search import results
from experiment_parts.par_search.plan import LAYOUTS, MODELS, ORIGINAL_UPDATES, Plan, prepare_flags
from experiment_parts.par_search.stages import cutoffs, evaluate, measure, search, time_updates
from experiment_parts.runs import train
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, check_shares, chosen, numbers

EPILOG = """
Stages: prepare, cutoffs of the adaptive softmax (once); for each seed search a layout, train each model, run
fairseq-eval-lm on valid and test; then time updates and evaluation steps of all layouts, in turns. A stage that is done
is skipped, training goes on from its last checkpoint: give the same --out. Logs and checkpoints of a run are in
OUT/MODEL/seedN, of the searches in OUT/search/seedN.
Seeds can run side by side: several commands with --data, the same --out, other --seeds, and --latency-runs 0; then one
with all seeds, which measures and writes.
Results (JSON, Markdown, PNG, the search as PNG and GIF) go to OUT/results, with --publish to docs/results; rows of
other runs there stay.
Look at the runs: python scripts/report.py par_search OUT/search/seed* OUT/par/seed1 --out page.html

  --corpus sotu                                   12,000 lower-cased sub-words (default)
  --corpus pubmed-abstracts --vocab-size 8000 --keep-case
  --models original                               the published code's recipe, with its table of perplexities
"""


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    add_out(parser)
    data = add_data(parser)
    data.add_argument("--vocab-size", type=int, default=12_000, metavar="N", help="sub-words (default: %(default)s)")
    data.add_argument("--keep-case", action="store_true", help="do not make the text lower case")
    add_model(parser.add_argument_group("models"))
    add_training(parser.add_argument_group("training"))
    add_search(parser.add_argument_group("search"))
    add_evaluation(parser.add_argument_group("evaluation"))
    add_output(parser.add_argument_group("output"), results.NAME)
    return parser


def add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--models", default=",".join(LAYOUTS), help=f"of {','.join(MODELS)} (default: %(default)s)")
    group.add_argument("--seeds", default="1,2,3", help="comma list (default: %(default)s)")
    group.add_argument("--blocks", type=int, default=12, help="(default: %(default)s)")
    group.add_argument("--dim", type=int, default=256, help="width (default: %(default)s)")
    group.add_argument("--ffn", type=int, default=1024, help="feed-forward width (default: %(default)s)")
    group.add_argument("--heads", type=int, default=4, help="(default: %(default)s)")
    group.add_argument("--mem-len", type=int, default=128, help="tokens remembered in training (default: %(default)s)")
    group.add_argument("--par-ratio", type=float, default=5.0, help="of par (default: %(default)s)")
    group.add_argument("--dropout", type=float, default=0.1, help="(default: %(default)s)")
    group.add_argument(
        "--cutoffs", default="optimal", metavar="N,N", help="optimal, none or ids (default: %(default)s)"
    )
    group.add_argument("--clusters", type=int, default=3, help="of optimal cutoffs (default: %(default)s)")


def add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--updates", type=int, default=3000, help="of each model (default: %(default)s)")
    group.add_argument("--original-updates", type=int, default=ORIGINAL_UPDATES, help="of original (%(default)s)")
    group.add_argument("--original-flags", default="", metavar="FLAGS", help="for its fairseq-train")
    group.add_argument("--tokens-per-sample", type=int, default=128, help="of a block (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=16, help="lanes (default: %(default)s)")
    group.add_argument("--lr", type=float, default=1e-3, help="peak of the cosine schedule (default: %(default)s)")
    group.add_argument("--warmup", type=float, default=0.1, help="share of the updates (default: %(default)s)")
    group.add_argument("--clip-norm", type=float, default=0.25, help="(default: %(default)s)")
    add_watching(group)


def add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--search-updates", type=int, metavar="N", help="of a search (default: --updates)")
    group.add_argument("--search-warmup", type=float, default=0.25, help="share for weights alone (%(default)s)")
    group.add_argument("--search-flags", default="", metavar="FLAGS", help="for fairseq-train: --search-flags='...'")
    group.add_argument("--derive", default="", metavar="FLAGS", help="for derive_layout.py: --derive='...'")


def add_evaluation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--eval-tokens", type=int, default=64, help="of a block in evaluation (default: %(default)s)")
    group.add_argument("--eval-mem-len", type=int, default=640, help="tokens remembered there (default: %(default)s)")
    group.add_argument("--latency-runs", type=int, default=9, help="timed steps of each layout (%(default)s; 0: none)")
    group.add_argument(
        "--time-updates", type=int, default=0, metavar="N", help="time N more updates of each layout, in turns"
    )


def check(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    """The models and seeds asked for; UserError for flags that make no sense."""
    models, seeds = chosen("--models", args.models, MODELS), numbers("--seeds", args.seeds)
    if "random" in models and "searched" not in models:
        raise UserError("--models random: needs searched, whose blocks it shuffles")
    args.search_updates = args.updates if args.search_updates is None else args.search_updates
    counts = ("updates", "original_updates", "search_updates", "dim", "ffn", "heads", "tokens_per_sample",
              "batch_size", "valid_batches", "valid_interval", "log_interval", "threads", "vocab_size", "eval_tokens",
              "clusters")  # fmt: skip
    check_least(args, 1, *counts)
    check_least(args, 2, "blocks")
    check_least(args, 0, "mem_len", "eval_mem_len", "latency_runs", "time_updates")
    check_shares(args, "warmup", "search_warmup")
    check_timed(args.time_updates)
    check_places(args, ["data", "corpus", "split"])
    return models, seeds


def stages(args: argparse.Namespace, models: list[str], seeds: list[int]) -> None:
    folder = results_folder(args)
    plan = Plan(args, prepare_data(args, prepare_flags(args)))
    cutoffs(plan)
    done = []
    for seed in seeds:
        if "searched" in models:
            search(plan, seed)
        for model in models:
            one = plan.run(model, seed)
            train(one)
            evaluate(one)
            done.append(one)
            results.write(folder, plan, done)
    if args.time_updates:
        time_updates(plan, done)
    if args.latency_runs:
        measure(plan, done)
    results.write(folder, plan, done)
    if "searched" in models:
        results.draw_search(folder, plan, seeds)
    say(f"wrote {folder / results.NAME}.json, .md and .png")


def main() -> int:
    args = get_parser().parse_args()
    models, seeds = check(args)
    return finish(lambda: stages(args, models, seeds))


if __name__ == "__main__":
    run_main(main)
