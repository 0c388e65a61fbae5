#!/usr/bin/env python3
"""Quality run: byte language models whose heads see a fixed span, learn theirs, or have no feed-forward beside them."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.adaptive_span import results
from experiment_parts.adaptive_span.plan import ALL_ATTENTION, OPTIMIZERS, Plan, kinds, prepare_flags
from experiment_parts.adaptive_span.stages import check_bits, evaluate, time_updates
from experiment_parts.flags import (
    add_out,
    add_output,
    add_watching,
    finish,
    make_parser,
    results_folder,
)
from experiment_parts.language_models.plan import add_data, check_places, prepare_data
from experiment_parts.runs import train
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, check_shares, chosen, numbers

EPILOG = f"""
Models: fixedS for each S of --spans; adaptive-P for each P of --penalties, up to the longest of --spans; and
{ALL_ATTENTION}, with persistent vectors in the place of feed-forward layers and the middle penalty. All have as many
parameters: where fewer distances have a position, or there is no feed-forward, widths make up for it.

Stages: prepare (once); train each model with each seed and run fairseq-eval-lm on the test split; time more updates of
the models of the first seed, in turns; recompute the bits of one model. A stage that is done is skipped, training goes
on from its last checkpoint: give the same --out. Logs and checkpoints of a run are in OUT/MODEL/seedN.
Results (JSON, Markdown, PNG) go to OUT/results, with --publish to docs/results; rows of other runs there stay.
Look at the runs: python scripts/report.py adaptive_span OUT/*/seed1 --out page.html

  --corpus sotu                 bytes of the State of the Union messages (default)
  --corpus pubmed-abstracts     of abstracts
  --cut enwik8                  of a file, its first 90 % for training
"""


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    add_out(parser)
    add_data(parser, cut="enwik8")
    add_models(parser.add_argument_group("models"))
    add_training(parser.add_argument_group("training and evaluation"))
    add_output(parser.add_argument_group("output"), results.NAME)
    return parser


def add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--models", metavar="A,B,...", help="of the models below (default: all)")
    group.add_argument("--seeds", default="1", help="comma list (default: %(default)s)")
    group.add_argument("--spans", default="256,1024,2048", metavar="N,N", help="fixed ones, in tokens (%(default)s)")
    group.add_argument(
        "--penalties", default="2e-7,2e-6,2e-5", metavar="P,P", help="of learned spans: --adapt-span-loss (%(default)s)"
    )
    group.add_argument("--ramp", type=int, default=32, help="of learned spans, in tokens (default: %(default)s)")
    group.add_argument("--init", type=float, default=0.0, help="of them, as a share of the longest (%(default)s)")
    group.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    group.add_argument("--dim", type=int, default=128, help="width (default: %(default)s)")
    group.add_argument("--ffn", type=int, default=512, help="feed-forward width (default: %(default)s)")
    group.add_argument("--heads", type=int, default=4, help="(default: %(default)s)")
    group.add_argument("--dropout", type=float, default=0.0, help="(default: %(default)s)")


def add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--updates", type=int, default=2500, help="of each model (default: %(default)s)")
    group.add_argument("--tokens-per-sample", type=int, default=512, help="of a block (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=4, help="lanes (default: %(default)s)")
    group.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adam", help="(default: %(default)s)")
    group.add_argument("--lr", type=float, help="peak; of adam it falls as a cosine (default: 2e-3, adagrad 0.07)")
    group.add_argument("--clip", type=float, help="of adam all gradients' norm (0.25), else each tensor's (0.03)")
    group.add_argument("--warmup", type=float, default=0.1, help="share of the updates (default: %(default)s)")
    group.add_argument(
        "--time-updates", type=int, default=6, metavar="N", help="more updates to time, in turns; 0: none (%(default)s)"
    )
    group.add_argument("--check", metavar="MODEL", help="recompute its bits; none (default: the first with penalty)")
    add_watching(group)


def check(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    """The models and seeds asked for; UserError for flags that make no sense."""
    known = kinds(args)
    models = list(known) if args.models is None else chosen("--models", args.models, list(known))
    if args.check is None:
        args.check = next((model for model in models if known[model].penalty is not None), models[0])
    elif args.check != "none" and args.check not in models:
        raise UserError(f"--check {args.check}: not one of --models, and not none")
    counts = ("updates", "layers", "dim", "ffn", "heads", "ramp", "tokens_per_sample", "batch_size", "valid_batches",
              "valid_interval", "log_interval", "threads")  # fmt: skip
    check_least(args, 1, *counts)
    check_least(args, 0, "clip", "time_updates")
    check_shares(args, "warmup", "dropout")
    if not 0 <= args.init <= 1:
        raise UserError(f"--init {args.init}: is a share of the longest span, from 0 to 1")
    if args.dim % args.heads:
        raise UserError(f"--heads {args.heads}: must divide --dim {args.dim}")
    rate, clip = OPTIMIZERS[args.optimizer]
    args.lr, args.clip = (rate if args.lr is None else args.lr), (clip if args.clip is None else args.clip)
    if not args.lr > 0:
        raise UserError(f"--lr {args.lr}: must be above 0")
    check_places(args, ("data", "corpus", "split", "cut"))
    return models, numbers("--seeds", args.seeds)


def stages(args: argparse.Namespace, models: list[str], seeds: list[int]) -> None:
    folder = results_folder(args)
    plan = Plan(args, prepare_data(args, prepare_flags(args)))
    runs = [plan.run(model, seed) for seed in seeds for model in models]
    for number, one in enumerate(runs):
        train(one)
        evaluate(one)
        results.write(folder, plan, runs[: number + 1])
    time_updates(runs[: len(models)])
    results.write(folder, plan, runs, check_bits(plan, runs))
    say(f"wrote {folder / results.NAME}.json, .md and .png")


def main() -> int:
    args = get_parser().parse_args()
    models, seeds = check(args)
    return finish(lambda: stages(args, models, seeds))


if __name__ == "__main__":
    run_main(main)
