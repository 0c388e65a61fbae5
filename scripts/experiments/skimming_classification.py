#!/usr/bin/env python3
"""Quality run: MiniLM fine-tuned densely and with skipped tokens, on several data sets; quality, FLOPs, the clock."""

import argparse
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_stages.run

# ruff: noqa: E402
import skimming_results as results
from experiment_stages import StageFailed, say
from skimming_plan import CORPORA, Data, Model, Plan, Variant, parse_model
from skimming_stages import converted, prepare, time_variants, train, validate

from fairseq_efficient.errors import UserError, run_main

EPILOG = f"""
--data is one of {", ".join(CORPORA)}:
  imdb=FILE.jsonl (text, label) or the folder aclImdb       2,500 of train are held out and reported
  sst2=train.tsv or the task's folder                       2,000 of train are held out and reported
  wiki-topics, spam-assassin, vader-movies                  built in: no path; their test split is reported
  mrpc=FOLDER ...                                           a task of GLUE, its folder; its dev set is reported
  squad=FOLDER                                              train*.json and dev*.json (or valid*.json), plain or packed
or NAME=FOLDER of what scripts/prepare_classification.py made.

Models: dense (always first), and skimmed ones: lambda0.5 (the price of a kept token), target0.3 (share to be kept).
They start from the dense model (--start dense), which also teaches them (--distill-weight), or from --model.

Stages of each data set: prepare; train and validate each model; time all in turns. A stage that is done is skipped,
training goes on from its last checkpoint: give the same --out. Logs and checkpoints are in OUT/DATA/MODEL/seedN.
Results (JSON, Markdown, PNG) go to OUT/results, with --publish to docs/results; other data sets' results there stay.
Look at the runs: python scripts/report.py skimming OUT/imdb/*/seed1 --results OUT/results/skimming.json --out page.html
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything this run makes")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="checkpoint to start from: what "
        "scripts/convert/from_huggingface.py made, or the folder of Hugging Face that it reads",
    )  # fmt: skip
    parser.add_argument("--model-name", metavar="NAME", help="of it, in the results (default: its folder's)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME[=PATH]", help="data set; repeatable")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where fetched corpora are kept")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a row (default: %(default)s)")
    add_training(parser.add_argument_group("training"))
    add_measuring(parser.add_argument_group("measuring"))
    output = parser.add_argument_group("output")
    output.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: OUT/results)")
    output.add_argument("--publish", action="store_true", help="write docs/results/skimming.{json,md,png}")
    return parser


def add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--models", default="dense,lambda0.1,lambda0.3,lambda1", help="comma list (%(default)s)")
    group.add_argument("--seeds", default="1", help="comma list (default: %(default)s)")
    group.add_argument(
        "--train-examples", type=int, default=20_000, metavar="N", help="texts that the dense model reads, drawn by "
        "seed: distinct ones, until all were read (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--skim-examples", type=int, default=20_000, metavar="N", help="the same of skimmed ones (default: %(default)s)"
    )
    group.add_argument("--start", choices=["dense", "model"], default="dense", help="of skimmed models (%(default)s)")
    group.add_argument("--distill-weight", type=float, default=1.0, help="of the dense teacher; 0: none (%(default)s)")
    group.add_argument("--target-weight", type=float, default=5.0, help="--skim-lambda of targetX (%(default)s)")
    group.add_argument("--skim-init-bias", type=float, default=2.0, help="(default: %(default)s)")
    group.add_argument("--skim-lr-scale", type=float, default=100.0, help="of the predictors (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=32, help="texts (default: %(default)s)")
    group.add_argument("--lr", type=float, default=5e-5, help="peak, of the dense model (default: %(default)s)")
    group.add_argument("--skim-lr", type=float, default=5e-5, help="of skimmed ones (default: %(default)s)")
    group.add_argument("--warmup", type=float, default=0.06, help="share of the updates (default: %(default)s)")
    group.add_argument("--valid-batches", type=int, default=10, metavar="N", help="in a validation (%(default)s)")
    group.add_argument("--valid-interval", type=int, metavar="N", help="updates, also between checkpoints (fifths)")
    group.add_argument("--log-interval", type=int, metavar="N", help="updates (default: fiftieths)")
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of training (%(default)s)")
    group.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--thresholds", default="", metavar="X,X", help="also validate and time skimmed models at these")
    group.add_argument("--time-texts", type=int, default=96, metavar="N", help="texts (default: %(default)s)")
    group.add_argument("--time-runs", type=int, default=5, metavar="N", help="passes over them (default: %(default)s)")
    group.add_argument("--time-batches", default="1,8,32", metavar="N,N", help="batch sizes (default: %(default)s)")


def check(args: argparse.Namespace) -> tuple[dict[str, Path | None], list[Model], list[int], list[float]]:
    """The data sets, models, seeds and thresholds asked for; UserError for flags that make no sense."""
    sets: dict[str, Path | None] = {}
    for value in args.data:
        name, equals, path = value.partition("=")
        if name not in CORPORA or (equals and not path) or name in sets:
            raise UserError(f"--data {value}: expected NAME or NAME=PATH, each once, of {', '.join(CORPORA)}")
        sets[name] = Path(path) if path else None
    if not sets:
        raise UserError("--data: give at least one data set")
    models = [parse_model(name) for name in dict.fromkeys(["dense", *args.models.split(",")])]
    for flag in ("train_examples", "skim_examples", "batch_size", "valid_batches", "valid_interval", "log_interval",
                 "threads", "time_texts", "time_runs", "max_tokens"):  # fmt: skip
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least 1")
    if not 0 <= args.warmup < 1:
        raise UserError(f"--warmup {args.warmup}: must be at least 0 and below 1")
    if not args.model.is_dir():
        raise UserError(f"--model {args.model}: no such folder")
    if args.results and args.publish:
        raise UserError("give --results or --publish, not both")
    args.time_batches = sorted(set(numbers("--time-batches", args.time_batches, int)))
    if not args.time_batches or args.time_batches[0] < 1:
        raise UserError("--time-batches: must be at least 1")
    seeds = numbers("--seeds", args.seeds, int)
    return sets, models, list(dict.fromkeys(seeds)), [x for x in numbers("--thresholds", args.thresholds, float) if x]


def numbers(flag: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",") if word]
    except ValueError:
        raise UserError(f"{flag} {text}: not a comma list of numbers") from None


def measured(plan: Plan, data: Data, models: list[Model], seeds: list[int], thresholds: list[float]) -> list[Variant]:
    """Train and validate every model with every seed."""
    found = []
    for seed in seeds:
        for model in models:
            one = plan.run(data, model, seed)
            train(one)
            for threshold in [0.0, *([] if model.dense else thresholds)]:
                found.append(Variant(one, threshold))
                validate(found[-1])
    return found


def main() -> int:
    args = get_parser().parse_args()
    sets, models, seeds, thresholds = check(args)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = ROOT / "docs" / "results" if args.publish else (args.results or args.out / "results")
    try:
        plan = Plan(args, converted(args))
        for name, data in [(name, prepare(args, plan.start, name, path)) for name, path in sets.items()]:
            variants = measured(plan, data, models, seeds, thresholds)
            timings = time_variants(plan, data, [one for one in variants if one.run.seed == seeds[0]])
            results.write(folder, plan, data, variants, timings)
            say(f"{name}: wrote {folder / results.NAME}.json, .md and .png")
    except StageFailed as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
