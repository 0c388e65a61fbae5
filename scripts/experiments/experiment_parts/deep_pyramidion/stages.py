"""Stages of a quality run of summaries: prepare, validate, decode, score. Done ones are skipped."""

import argparse
import re
from pathlib import Path
from typing import Any

from experiment_parts.deep_pyramidion.plan import GENERATE_FLAGS, SPLIT, Run
from experiment_parts.runs import once, prepared, score, split_size
from experiment_parts.stages import StageFailed, read_json, script
from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import open_binary


def first_lines(source: Path, target: Path, count: int) -> Path:
    """Copy the first ``count`` lines of a (compressed) file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_binary(source) as stream:
        content = b"".join(line for _, line in zip(range(count), stream, strict=False))
    if not target.exists() or target.read_bytes() != content:  # an untouched file keeps the preparation valid
        target.write_bytes(content)
    return target


def prepare(args: argparse.Namespace) -> Path:
    """The folder of binarised data: ``--data``, or OUT/data, made by scripts/prepare_summarization.py."""
    if args.data is not None:
        return Path(args.data).resolve()
    flags = ["--keep-text", "--vocab-size", str(args.vocab_size), "--workers", str(args.threads)]
    for name, file in (("train", args.train), ("valid", args.valid)):
        if not file.is_file():
            raise UserError(f"--{name} {file}: no such file")
        cut = first_lines(file, args.out / "input" / f"{name}.jsonl", args.docs) if args.docs else file
        flags += ["--split", f"{name}={cut}"]
    return prepared(args.out, "prepare_summarization.py", flags)


def validate(one: Run) -> None:
    """fairseq-validate on the whole split."""
    flags = ["--task", "long_summarization", "--valid-subset", "valid", "--batch-size", str(one.plan.args.batch_size)]
    flags += ["--required-batch-size-multiple", "1", "--log-format", "json", *one.plan.workers]
    score(one, "validate", "validate", flags, validate_log(one), "on valid")


def validate_log(one: Run) -> Path:
    return one.folder / "validate.log"


def generate(one: Run) -> None:
    """Decode the validation set."""
    plan = one.plan
    flags = [*GENERATE_FLAGS, *(plan.precision_flags if plan.args.device == "cuda" else []), *plan.workers]
    flags += ["--batch-size", str(plan.args.generate_batch_size), "--sentencepiece-model", str(plan.data / "spm.model")]

    def show(line: str) -> str | None:
        return f"  {line.rstrip()[:150]}" if re.search(r":\s+\d+ / \d+ |Translated", line) else None

    score(one, "generate", "generate", flags, one.folder / "generate.log", "on valid", show)


def score_summaries(one: Run, floors: bool) -> None:
    """ROUGE of a model; with ``floors`` also of what no model is needed for. StageFailed unless each document of the
    split was decoded once."""
    rouge(one, one.folder / "generate.log", one.plan.data / "valid.source.txt" if floors else None)
    scored, wanted = scores(one)["model"]["pairs"], split_size(one.plan.data / SPLIT.format("valid"))[0]
    if scored != wanted:
        raise StageFailed(f"{one.name}: {scored:,} summaries were scored, but valid has {wanted:,} documents")


def rouge(one: Any, generated: Path, documents: Path | None) -> None:
    """ROUGE of what fairseq-generate wrote into ``generated`` as stage generate, into scores.json of the run's folder;
    of the ``documents`` also that of lead and oracle."""
    command = script("score_rouge.py", "--generate-log", generated, "--json", one.folder / "scores.json")
    command += ["--floors", str(documents)] if documents else []
    settings = {"floors": documents is not None, "generated": read_json(one.folder / "generate.json")["settings"]}
    what = f"{one.name}: ROUGE" + (", also of lead and oracle" if documents else "")
    show = lambda line: f"  {line.rstrip()}" if "ROUGE-1" in line else None  # noqa: E731
    stage, log = one.folder / "rouge.stage.json", one.folder / "rouge.log"
    once(stage, settings, command, log, what, f"{what}: done already", show, one.env)


def scores(one: Any) -> dict[str, Any]:
    """What :func:`rouge` found: of the model, and maybe of lead and oracle; scripts/report.py reads it too."""
    found: dict[str, Any] = read_json(one.folder / "scores.json")
    return found
