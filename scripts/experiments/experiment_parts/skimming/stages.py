"""Stages of a quality run of skimming: prepare, train, validate, time. Done ones are skipped."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts import runs
from experiment_parts.runs import once
from experiment_parts.skimming.plan import CORPORA, Data, Plan, Run, Variant, inputs
from experiment_parts.stages import read_json, run, say, script
from fairseq_efficient.files import write_json

FOLDER = Path(__file__).resolve().parent


def converted(args: argparse.Namespace) -> Path:
    """The folder of the checkpoint to start from; a folder of Hugging Face is converted first."""
    if (args.model / "convert.json").is_file():
        return Path(args.model).resolve()
    destination = Path(args.out, "model")
    if not destination.exists():
        say(f"converting {args.model}")
        run(script("convert/from_huggingface.py", args.model, destination), args.out / "convert.log")
    return destination


def prepare(args: argparse.Namespace, start: Path, name: str, path: Path | None) -> Data:
    """A data set, binarised for the model; one that was prepared already is taken as it is."""
    if path is not None and (path / "prepare.json").is_file():
        return Data(name, path.resolve())
    destination = Path(args.out, "data", name)
    destination.parent.mkdir(exist_ok=True)
    command = script("prepare_classification.py", destination)
    command += [*inputs(name, path), "--tokenizer", str(start), "--max-tokens", str(args.max_tokens)]
    command += [] if CORPORA[name].squad else ["--by-length"]
    command += ["--cache-dir", str(args.cache_dir)] if args.cache_dir else []
    say(f"{name}: prepare")
    log = destination.with_name(f"{name}.log")
    told = ("train:", "valid:", "test:")
    run(command, log, show=lambda line: f"  {line.rstrip()}" if line.startswith(told) else None)
    return Data(name, destination)


def budget(one: Run) -> str:
    """What a training will read, for the user to see before it starts."""
    items, tokens = one.data.size("train")
    unit = "questions" if one.data.squad else "texts"
    return (
        f"{one.name}: {one.examples:,} {unit} ({one.examples / max(items, 1):.2g} times the training split), about "
        f"{one.examples * tokens / 1e6:.2g} million tokens"
    )


def train(one: Run) -> None:
    say(budget(one))
    runs.train(one)


def validate_flags(one: Run, threshold: float) -> list[str]:
    """fairseq-validate on the whole split, packed, in fp32, in batches of 32 as they come."""
    overrides = {"skim_inference": "packed", "skim_threshold": threshold, "cpu_bf16": False}
    return [
        "--task", "skim_squad" if one.data.squad else "sentence_prediction", "--valid-subset", one.data.subset,
        "--batch-size", "32", "--required-batch-size-multiple", "1", "--log-format", "json",
        "--model-overrides", str(overrides), *one.plan.workers,
    ]  # fmt: skip


def validate(variant: Variant) -> None:
    one, log = variant.run, validate_log(variant)
    flags = validate_flags(one, variant.threshold)
    said = f"on {one.data.subset}" + (f", threshold {variant.threshold:g}" if variant.threshold else "")
    runs.score(one, log.stem, "validate", flags, log, said, listed=not variant.threshold)


def validate_log(variant: Variant) -> Path:
    end = f"-{variant.threshold:g}" if variant.threshold else ""
    return variant.run.folder / f"validate{end}.log"


def numbers(variant: Variant) -> dict[str, float]:
    """What fairseq-validate found."""
    return runs.validated(validate_log(variant), variant.run.data.subset)


def time_variants(plan: Plan, data: Data, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Seconds of each variant and of the baselines, in turns in one process; see timing.py."""
    path, result = Path(plan.args.out, data.name, "timing.json"), Path(plan.args.out, data.name, "timed.json")
    dense = variants[0].run
    settings = {
        "data": str(data.folder), "subset": data.subset, "squad": data.squad,
        "dense": str(dense.checkpoint), "texts": plan.args.time_texts, "runs": plan.args.time_runs,
        "batches": plan.args.time_batches, "threads": plan.args.threads, "device": plan.args.device,
        "variants": [[one.name, str(one.run.checkpoint), one.threshold] for one in variants if not one.run.kind.dense],
        "trained": [one.run.train_flags for one in variants],
    }  # fmt: skip
    asked = result.with_name("timing-input.json")
    write_json(asked, settings)
    command = [sys.executable, str(FOLDER / "timing.py"), str(asked), str(result)]
    said, already = f"{data.name}: timing {len(variants) + 2} variants, in turns", f"{data.name}: timed already"
    show = lambda line: f"  {line.rstrip()}" if line.startswith("batch") else None  # noqa: E731
    once(path, settings, command, result.with_suffix(".log"), said, already, show, plan.env)
    found: list[dict[str, Any]] = read_json(result)
    return found
