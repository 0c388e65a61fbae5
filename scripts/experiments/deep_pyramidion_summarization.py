#!/usr/bin/env python3
"""Quality run: full attention, blockwise and Pyramidion, trained alike on long documents, decoded and scored."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]  # this process imports no torch: see experiment_parts/stages.py

# ruff: noqa: E402
from experiment_parts.deep_pyramidion import report as pyramidion_report
from experiment_parts.flags import (
    add_machine,
    add_out,
    add_output,
    check_least,
    check_output,
    chosen_models,
    finish,
    make_parser,
    results_folder,
)
from experiment_parts.runs import ExperimentPlan, once
from experiment_parts.stages import (
    Record,
    StageFailed,
    fairseq,
    read_json,
    read_training_log,
    run,
    say,
    show_training,
    trained,
)

from fairseq_efficient.bench.machine import provenance, this_command
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.text.reading import open_binary

MODELS = {
    "full": ["--encoder-pooling", "lambda", "--use-sparse-attn", "pooler_no_block"],
    "blockwise": ["--encoder-pooling", "lambda", "--use-sparse-attn", "only_blockwise"],
    "pyramidion": [],  # pyramidion_tiny itself: topk, 4,096 -> 2,048 -> 1,024 -> 512 -> 256
}
TRAIN_FLAGS = [
    "--task", "long_summarization", "--arch", "pyramidion_tiny", "--source-lang", "src", "--target-lang", "tgt",
    "--max-target-positions", "512", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "1e-3",
    "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100", "--clip-norm", "1.0",
    "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--update-epoch-batch-itr", "True",
    "--seed", "1", "--log-format", "json", "--keep-interval-updates", "1", "--no-epoch-checkpoints",
]  # fmt: skip
GENERATE_FLAGS = [
    "--task", "long_summarization", "--source-lang", "src", "--target-lang", "tgt", "--gen-subset", "valid",
    "--beam", "4", "--max-len-b", "400", "--no-repeat-ngram-size", "3", "--lenpen", "1.0", "--scoring", "rouge",
    "--bpe", "sentencepiece", "--log-format", "simple", "--log-interval", "4",
]  # fmt: skip
EPILOG = """
Stages: prepare (once), then train, generate and score each model; a stage that is done is skipped, training goes on
from its last checkpoint. Give the same --out to continue. Results go to OUT/results, with --publish to docs/results.
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
    add_machine(parser)
    parser.add_argument("--log-interval", type=int, metavar="N", help="updates (default: 10; on CUDA 100)")
    parser.add_argument("--save-interval", type=int, default=50, help="updates (default: %(default)s)")
    add_output(parser, "deep_pyramidion", "{json,md}")
    return parser


@dataclass(frozen=True)
class Plan(ExperimentPlan):
    """Where things are, and what is the same for all models."""

    data: Path

    def folder(self, model: str) -> Path:
        return Path(self.args.out, model)

    def checkpoint(self, model: str) -> Path:
        return self.folder(model) / "checkpoints" / "checkpoint_last.pt"

    def train_flags(self, model: str) -> list[str]:
        """All flags that decide what is learned, but the number of updates."""
        sizes = [
            "--max-source-positions",
            str(self.args.max_source_positions),
            "--batch-size",
            str(self.args.batch_size),
        ]
        return [*TRAIN_FLAGS, *sizes, *MODELS[model], *self.device_flags, *self.precision_flags]

    @property
    def decoding_flags(self) -> list[str]:
        return [*self.device_flags, *(self.precision_flags if self.args.device == "cuda" else [])]


def check(args: argparse.Namespace) -> list[str]:
    """The models asked for; UserError for flags that make no sense."""
    models = chosen_models(args.models, list(MODELS))
    numbers = ("updates", "docs", "batch_size", "generate_batch_size", "threads", "log_interval", "save_interval")
    check_least(args, numbers)
    if (args.data is None) == (args.train is None or args.valid is None):
        raise UserError("give --train and --valid, or --data")
    if args.data is not None and not (args.data / "valid.source.txt").is_file():
        raise UserError(f"--data {args.data}: has no valid.source.txt (prepare it with --keep-text)")
    check_output(args)
    return models


# --- stages ----------------------------------------------------------------------------------------------------------


def first_lines(source: Path, target: Path, count: int) -> Path:
    """Copy the first ``count`` lines of a (compressed) file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_binary(source) as stream:
        content = b"".join(line for _, line in zip(range(count), stream, strict=False))
    if not target.exists() or target.read_bytes() != content:  # an untouched file keeps the preparation valid
        target.write_bytes(content)
    return target


def prepare(args: argparse.Namespace) -> Path:
    """The folder of binarised data."""
    if args.data is not None:
        return Path(args.data)
    files = {"train": args.train, "valid": args.valid}
    for name, file in files.items():
        if not file.is_file():
            raise UserError(f"--{name} {file}: no such file")
        if args.docs:
            files[name] = first_lines(file, args.out / "input" / f"{name}.jsonl", args.docs)
    say("prepare")
    destination = args.out / "data"
    command = [sys.executable, str(ROOT / "scripts" / "prepare_summarization.py"), str(destination), "--keep-text"]
    command += ["--vocab-size", str(args.vocab_size), "--workers", str(args.threads)]
    for name, file in files.items():
        command += ["--split", f"{name}={file}"]
    run(command, args.out / "prepare.log", show=lambda line: f"  {line.rstrip()}" if "%|" not in line else None)
    return Path(destination)


def train(plan: Plan, model: str) -> None:
    """Train, or go on training, up to ``--updates``."""
    updates, path = plan.args.updates, plan.folder(model) / "train.json"
    settings = {"flags": plan.train_flags(model), "data": plan.data.name}
    record = Record.load(path) or Record({**settings, "updates": 0})
    done = record.settings["updates"]
    if {**record.settings, "updates": 0} != {**settings, "updates": 0}:
        raise UserError(f"{plan.folder(model)}: was trained with other flags; give another --out")
    if done > updates:
        raise UserError(f"--updates {updates}: {model} in {plan.args.out} has {done} already; give another --out")
    if done == updates:
        return say(f"{model}: trained already ({done} updates)")
    log = plan.folder(model) / "train.log"
    if not trained(log, updates):  # fairseq, started again after its last update, would do one more
        say(f"{model}: training for {updates} updates")
        command = [*fairseq("train"), str(plan.data), "--user-dir", str(ROOT / "deep_pyramidion"), *settings["flags"]]
        command += ["--save-dir", str(plan.checkpoint(model).parent), "--max-update", str(updates)]
        command += ["--validate-after-updates", str(updates), "--save-interval-updates", str(plan.args.save_interval)]
        interval = plan.args.log_interval or (10 if plan.args.device == "cpu" else 100)  # times are logged in seconds
        command += ["--log-interval", str(min(interval, updates))]
        run(command, log, show_training(model, updates), plan.env, append=True, record=record, record_file=path)
        if not trained(log, updates):
            raise StageFailed(f"{model}: training ended before or after {updates} updates; see {log}")
    record.settings["updates"], record.done = updates, True
    record.save(path)


def generate(plan: Plan, model: str) -> None:
    """Decode the validation set."""
    path, log = plan.folder(model) / "generate.json", plan.folder(model) / "generate.log"
    settings = {"flags": [*GENERATE_FLAGS, *plan.decoding_flags], "updates": plan.args.updates}
    command = [*fairseq("generate"), str(plan.data), "--user-dir", str(ROOT / "deep_pyramidion"), *settings["flags"]]
    command += ["--path", str(plan.checkpoint(model)), "--batch-size", str(plan.args.generate_batch_size)]
    command += ["--sentencepiece-model", str(plan.data / "spm.model")]

    def show(line: str) -> str | None:
        return f"  {line.rstrip()[:150]}" if re.search(r":\s+\d+ / \d+ |Translated", line) else None

    said, already = f"{model}: decoding the validation set", f"{model}: decoded already"
    if once(path, settings, command, log, said, already, show, plan.env) is not None:
        (plan.folder(model) / "rouge.json").unlink(missing_ok=True)


def score(plan: Plan, model: str, floors: bool = False) -> dict[str, Any]:
    """ROUGE of a model; with ``floors`` of what no model is needed for."""
    path = plan.args.out / "floors.json" if floors else plan.folder(model) / "rouge.json"
    if not path.exists():
        say("scoring lead and oracle" if floors else f"{model}: scoring")
        found = path.with_suffix(".part.json")
        command = [sys.executable, str(ROOT / "scripts" / "score_rouge.py"), "--json", str(found)]
        command += ["--generate-log", str(plan.folder(model) / "generate.log")]
        command += ["--floors", str(plan.data / "valid.source.txt")] if floors else []
        run(
            command,
            path.with_suffix(".log"),
            lambda line: f"  {line.rstrip()}" if "ROUGE-1" in line else None,
            plan.env,
        )
        found.replace(path)
    scores: dict[str, Any] = read_json(path)
    return scores


def results(plan: Plan, models: list[str]) -> dict[str, Any]:
    """Rows and provenance of every model that is done; floors too."""
    args, rows, cuts, pairs = plan.args, [], {}, 0
    name = f"{args.name}, first {args.docs:,} documents" if args.docs else args.name
    common = {"data": name, "seed": 1}
    for model in models:
        rouge = score(plan, model)["model"]
        log = read_training_log(plan.folder(model) / "train.log")
        stages = {}
        for stage in ("train", "generate"):
            record = Record.load(plan.folder(model) / f"{stage}.json")
            assert record is not None
            stages[stage] = {"seconds": record.seconds, "peak_mb": record.peak_mb}
        rows += pyramidion_report.model_rows({**common, "model": model, "updates": args.updates}, log, rouge, stages)
        cuts, pairs = log.cuts, rouge["pairs"]
    floors = score(plan, models[0], floors=True)
    for floor in ("lead", "oracle"):
        rows += pyramidion_report.floor_rows({**common, "model": floor}, floors[floor])
    types = len((plan.data / "dict.src.txt").read_text(encoding="utf-8").splitlines()) + 4
    flags = {
        "batch size": args.batch_size,
        "decoding batch size": args.generate_batch_size,
        "precision": args.precision,
        "types": types,
    }
    return {
        **provenance(this_command(), args.threads),
        "data": {
            "name": name,
            "split": "valid",
            "pairs": pairs,
            "max_source_positions": args.max_source_positions,
            "cut": cuts,
        },
        "settings": {**flags, "train": " ".join(TRAIN_FLAGS), "generate": " ".join(GENERATE_FLAGS)},
        "rows": rows,
    }


def stages(args: argparse.Namespace, models: list[str]) -> None:
    folder = results_folder(args)
    plan = Plan(args, prepare(args))
    done: list[str] = []
    for model in models:
        plan.folder(model).mkdir(exist_ok=True)
        train(plan, model)
        generate(plan, model)
        done.append(model)
        pyramidion_report.write(folder, results(plan, done))
        say(f"wrote {folder / 'deep_pyramidion.json'} and .md ({', '.join(done)})")


def main() -> int:
    args = get_parser().parse_args()
    models = check(args)
    return finish(lambda: stages(args, models))


if __name__ == "__main__":
    run_main(main)
