#!/usr/bin/env python3
"""Quality run: MiniLM fine-tuned densely and with skipped tokens, on several data sets; quality, FLOPs, the clock."""

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
    check_output,
    finish,
    make_parser,
    results_folder,
)
from experiment_parts.skimming import results
from experiment_parts.skimming.plan import CORPORA, Data, Model, Plan, Variant, parse_model
from experiment_parts.skimming.stages import converted, prepare, time_variants, train, validate
from experiment_parts.stages import say

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, check_shares, numbers

EPILOG = f"""
--data is one of {", ".join(CORPORA)}:
  imdb=FILE.jsonl (text, label) or the folder aclImdb       2,500 of train are held out and reported
  sst2=train.tsv or the task's folder                       2,000 of train are held out and reported
  wiki-topics, spam-assassin, vader-movies                  built in: no path; their test split is reported
  mrpc=FOLDER ...                                           a task of GLUE, its folder; its dev set is reported
  squad=FOLDER                                              train*.json and dev*.json (or valid*.json), plain or packed
  squad-answerable=FOLDER                                   the same without the questions that have no answer
or NAME=FOLDER of what scripts/prepare_classification.py made.

Models: dense (always first); dense-longer: it, trained on for as many texts as skimmed ones are; and skimmed ones:
lambda0.5 (the price of a kept token), target0.3 (share to be kept).
These start from the dense model (--start dense), which also teaches them (--distill-weight), from --model, or each from
the one before it in --models (--start previous: less training for each where prices rise or targets fall step by step;
each reads other texts, with --seed 1000 higher than the one before).

Stages of each data set: prepare; train and validate each model; time all in turns. A stage that is done is skipped,
training goes on from its last checkpoint: give the same --out. Logs and checkpoints are in OUT/DATA/MODEL/seedN.
Results (JSON, Markdown, PNG) go to OUT/results, with --publish to docs/results; other data sets' results there stay.
Look at the runs: python scripts/report.py skimming OUT/imdb/*/seed1 --results OUT/results/skimming.json --out page.html
"""
Asked = tuple[dict[str, Path | None], list[Model], list[int], list[float]]  # data sets, models, seeds, thresholds


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EPILOG)
    add_out(parser)
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
    add_output(parser.add_argument_group("output"), results.NAME)
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
    group.add_argument(
        "--start", choices=["dense", "model", "previous"], default="dense", help="of skimmed models (%(default)s)"
    )
    group.add_argument("--distill-weight", type=float, default=1.0, help="of the dense teacher; 0: none (%(default)s)")
    group.add_argument("--target-weight", type=float, default=5.0, help="--skim-lambda of targetX (%(default)s)")
    group.add_argument("--skim-init-bias", type=float, default=2.0, help="(default: %(default)s)")
    group.add_argument("--skim-noise", type=float, default=1.0, help="of decisions, at first (default: %(default)s)")
    group.add_argument(
        "--skim-noise-share", type=float, default=0.0, metavar="X", help="share of updates over which it falls to 0 "
        "(default: 0, it stays)",
    )  # fmt: skip
    group.add_argument("--skim-lr-scale", type=float, default=100.0, help="of the predictors (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=32, help="texts (default: %(default)s)")
    group.add_argument(
        "--attention-dropout", type=float, default=0.1, help="0: trains faster on long texts (default: %(default)s)"
    )
    group.add_argument("--lr", type=float, default=5e-5, help="peak, of the dense model (default: %(default)s)")
    group.add_argument("--skim-lr", type=float, default=5e-5, help="of skimmed ones (default: %(default)s)")
    group.add_argument("--warmup", type=float, default=0.06, help="share of the updates (default: %(default)s)")
    add_watching(group, valid="fifths", log="fiftieths")
    group.set_defaults(valid_batches=10)


def add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--thresholds", default="", metavar="X,X", help="also validate and time skimmed models at these")
    group.add_argument("--time-texts", type=int, default=96, metavar="N", help="texts (default: %(default)s)")
    group.add_argument("--time-runs", type=int, default=5, metavar="N", help="passes over them (default: %(default)s)")
    group.add_argument("--time-batches", default="1,8,32", metavar="N,N", help="batch sizes (default: %(default)s)")


def check(args: argparse.Namespace) -> Asked:
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
    check_least(args, 1, "train_examples", "skim_examples", "batch_size", "valid_batches", "valid_interval",
                "log_interval", "threads", "time_texts", "time_runs", "max_tokens")  # fmt: skip
    check_shares(args, "warmup", "attention_dropout", "skim_noise_share")
    if not args.model.is_dir():
        raise UserError(f"--model {args.model}: no such folder")
    check_output(args)
    args.time_batches = sorted(numbers("--time-batches", args.time_batches, least=1))
    thresholds = [x for x in numbers("--thresholds", args.thresholds or "0", float) if x]
    return sets, models, numbers("--seeds", args.seeds), thresholds


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


def stages(args: argparse.Namespace, asked: Asked) -> None:
    sets, models, seeds, thresholds = asked
    folder = results_folder(args)
    plan = Plan(args, converted(args), models)
    for name, data in [(name, prepare(args, plan.start, name, path)) for name, path in sets.items()]:
        variants = measured(plan, data, models, seeds, thresholds)
        timings = time_variants(plan, data, [one for one in variants if one.run.seed == seeds[0]])
        results.write(folder, plan, data, variants, timings)
        say(f"{name}: wrote {folder / results.NAME}.json, .md and .png")


def main() -> int:
    args = get_parser().parse_args()
    asked = check(args)
    return finish(lambda: stages(args, asked))


if __name__ == "__main__":
    run_main(main)
