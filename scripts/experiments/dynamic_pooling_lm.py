#!/usr/bin/env python3
"""Quality run: language models with and without dynamic token pooling, trained alike, scored on a whole test split."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_stages.run

# ruff: noqa: E402
import dynamic_pooling_results as results
from dynamic_pooling_plan import MODELS, Plan, layers
from dynamic_pooling_stages import check_bits, evaluate, prepare, time_updates, timed_updates, train, validate
from experiment_stages import StageFailed, say

from fairseq_efficient.errors import UserError, run_main

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
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything this run makes")
    add_data(parser.add_argument_group("data (see scripts/prepare_lm.py)"))
    add_model(parser.add_argument_group("models"))
    add_training(parser.add_argument_group("training and evaluation"))
    output = parser.add_argument_group("output")
    output.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: OUT/results)")
    output.add_argument("--publish", action="store_true", help="write docs/results/dynamic_pooling.{json,md,png}")
    return parser


def add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=Path, metavar="DIR", help="prepared already")
    group.add_argument("--corpus", metavar="NAME", help="built-in (default: sotu)")
    group.add_argument("--split", action="append", default=[], metavar="NAME=FILE", help="train, valid and maybe test")
    group.add_argument("--cut", type=Path, metavar="FILE", help="one file to cut 90/5/5, such as text8")
    group.add_argument("--format", metavar="FORMAT", help="of the files")
    group.add_argument("--clean", metavar="HOW", help="default: text8; with --symbols bytes none")
    group.add_argument("--lang", default="en", help="of --clean text8 (default: %(default)s)")
    group.add_argument("--symbols", choices=["characters", "bytes"], default="characters", help="default: %(default)s")
    group.add_argument("--newlines", choices=["keep", "space"], help="default: space if cleaned as text8, else keep")
    group.add_argument(
        "--unigram-vocab", type=int, default=5000, metavar="N", help="of the tokenizer (default: %(default)s)"
    )
    group.add_argument("--name", help="of the data, in the results (default: made from the flags)")


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
    group.add_argument("--valid-batches", type=int, default=20, metavar="N", help="in a validation (%(default)s)")
    group.add_argument("--valid-interval", type=int, metavar="N", help="updates, also between checkpoints (tenths)")
    group.add_argument("--log-interval", type=int, metavar="N", help="updates (default: fortieths)")
    group.add_argument("--context-window", type=int, metavar="N", help="of fairseq-eval-lm (default: half a window)")
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="for every model alike")
    group.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def check(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    """The models and seeds asked for; UserError for flags that make no sense."""
    models = list(dict.fromkeys(args.models.split(",")))
    for model in models:
        if model not in MODELS:
            raise UserError(f"--models {model}: not one of {', '.join(MODELS)}")
    if not all(seed.isdigit() for seed in args.seeds.split(",")):
        raise UserError(f"--seeds {args.seeds}: not a comma list of whole numbers")
    numbers = ("updates", "dim", "ffn", "heads", "tokens_per_sample", "batch_size", "valid_batches", "valid_interval",
               "log_interval", "threads", "unigram_vocab", "time_updates")  # fmt: skip
    for flag in numbers:
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least 1")
    layers(args.layers)
    if args.time_updates is not None and args.time_updates < 4:
        raise UserError(f"--time-updates {args.time_updates}: must be at least 4, of which two do not count")
    if args.context_window is not None and not 0 <= args.context_window < args.tokens_per_sample:
        raise UserError(f"--context-window {args.context_window}: must be below --tokens-per-sample")
    if not 0 <= args.warmup < 1:
        raise UserError(f"--warmup {args.warmup}: must be at least 0 and below 1")
    if args.equal_time and "vanilla" not in models:
        raise UserError("--equal-time: needs vanilla among --models")
    if sum(map(bool, (args.data, args.corpus, args.split, args.cut))) > 1:
        raise UserError("give one of --data, --corpus, --split and --cut")
    if args.data is not None and not (args.data / "dict.txt").is_file():
        raise UserError(f"--data {args.data}: no dict.txt in it; prepare it with scripts/prepare_lm.py")
    if args.results and args.publish:
        raise UserError("give --results or --publish, not both")
    return models, list(dict.fromkeys(map(int, args.seeds.split(","))))


def main() -> int:
    args = get_parser().parse_args()
    models, seeds = check(args)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = ROOT / "docs" / "results" if args.publish else (args.results or args.out / "results")
    try:
        plan = Plan(args, prepare(args))
        runs = [plan.run(model, seed, args.updates) for seed in seeds for model in models]
        done = []
        for run in runs:
            train(run)
            evaluate(run)
            validate(run)
            done.append(run)
            results.write(folder, plan, done)
        if args.time_updates:
            time_updates(runs[: len(models)], args.time_updates)
        checked = check_bits(next((run for run in reversed(runs[: len(models)]) if run.pooled), runs[0]))
        if args.equal_time:
            updates = timed_updates(plan, runs)
            for seed in seeds:
                for model in models:
                    run = plan.run(model, seed, updates[model], timed=True)
                    train(run)
                    evaluate(run)
                    validate(run)
                    done.append(run)
                    results.write(folder, plan, done, checked)
        results.write(folder, plan, done, checked)
        say(f"wrote {folder / results.NAME}.json, .md and .png")
    except StageFailed as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
