"""Stages of a small model: prepare, floors, search, train, export, measure what was exported. Done ones are skipped."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiment_parts.deep_pyramidion.stages import rouge
from experiment_parts.par_search.stages import search_layout
from experiment_parts.pretrained.plan import LICENSE, SEED, Given, Plan, Run
from experiment_parts.runs import SAVING, eval_told, once, score, split_size, train
from experiment_parts.stages import StageFailed, run, say, script
from fairseq_efficient.report.eval_log import read_evaluation

SUBSET = "test"  # nothing is chosen by it
Show = Callable[[str], str | None]


def prepare(plan: Plan) -> None:
    """Binarised data; the script sees by itself whether they are there."""
    name, *flags = plan.recipe.prepare
    flags += ["--cache-dir", str(plan.args.cache_dir)] if plan.args.cache_dir else []
    plan.folder.mkdir(parents=True, exist_ok=True)
    say(f"{plan.recipe.system}: prepare")
    told = ("train:", "valid:", "test:", "dictionary:")
    show: Show = lambda line: f"  {line.rstrip()}" if line.startswith(told) else None  # noqa: E731
    run(script(name, plan.data, *flags), plan.folder / "prepare.log", show)


def stage(plan: Plan, name: str, command: Sequence[str], settings: Any, said: str, show: Show = lambda _: None) -> None:
    """Run a command unless it was run with the same settings; OUT/SYSTEM/NAME.json remembers it."""
    path, log, what = plan.folder / f"{name}.stage.json", plan.folder / f"{name}.log", f"{plan.recipe.system}: {said}"
    once(path, {"of": settings}, command, log, what, f"{what}: done already", show, plan.env)


def floors(plan: Plan) -> None:
    """What no model is needed for, into floors.json; of summaries it comes with their scores."""
    if plan.recipe.system == "deep_pyramidion":
        return
    command = script("floors.py", plan.data, "--subset", SUBSET, "--json", plan.folder / "floors.json")
    show: Show = lambda line: f"  {line.rstrip()}" if ":" in line else None  # noqa: E731
    stage(plan, "floors", command, plan.fingerprint, "floors", show)


def learn(plan: Plan) -> None:
    """Search, if something is to be searched, and train."""
    one = plan.recipe.search
    if one is not None:
        updates = plan.updates(one)
        tenth = str(max(updates // 10, 1))
        words = [str(plan.data), *one.resolved(updates), "--max-update", str(updates), *SAVING, *plan.precision_flags]
        words += ["--validate-interval-updates", tenth, "--save-interval-updates", tenth, "--max-valid-steps",
                  str(plan.args.valid_batches), "--log-interval", str(max(updates // 50, 1)), *plan.workers,
                  *plan.device_flags]  # fmt: skip
        search_layout(plan.search_folder, SEED, words, "", plan.fingerprint, plan.env)
        if "a" not in plan.layout:
            raise StageFailed(f"{plan.search_folder}: the search found {plan.layout!r}, which never looks back")
    for training in plan.runs():
        train(training)


def export(plan: Plan) -> None:
    """The model as it is given away, without a card's facts: what is measured."""
    last = plan.runs()[-1]
    flags = [last.checkpoint, plan.exported, "--data", plan.data, "--precision", "fp16", "--overwrite"]
    stage(plan, "export", script("export_model.py", *flags), [last.train_flags, last.fingerprint], "export")


def content(folder: Path) -> tuple[Any, str]:
    """What a model's file holds: its header, whose order safetensors leaves to chance, and a digest of the numbers."""
    file = (folder / "model.safetensors").read_bytes()
    numbers = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:numbers]), hashlib.sha256(file[numbers:]).hexdigest()


def publish(plan: Plan, folder: Path, results: Sequence[tuple[str, str]]) -> None:
    """Export into ``folder`` with its card; StageFailed if that is not what was measured."""
    recipe, last = plan.recipe, plan.runs()[-1]
    flags = [last.checkpoint, folder, "--data", plan.data, "--precision", "fp16", "--overwrite"]
    flags += ["--title", recipe.title, "--trained-on", recipe.corpus.title, "--notes", notes(plan)]
    flags += ["--license", f"weights: {LICENSE}; texts: {recipe.corpus.license}"]
    for name, value in results:
        flags += ["--result", f"{name}={value}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    run(script("export_model.py", *flags), plan.folder / "publish.log", env=plan.env)
    if content(folder) != content(plan.exported):
        raise StageFailed(f"{folder}: is not the model that was measured, {plan.exported}; delete that and start again")


def notes(plan: Plan) -> str:
    """For the card: what to know, and how it was made."""
    made = f"Trained from scratch by `scripts/experiments/pretrained.py {plan.recipe.system}`"
    searched = f"; the search found the layout `{plan.layout}`" if plan.layout else ""
    return f"{plan.recipe.notes}\n\n{made}{searched}. Measured as the file here, on the whole {SUBSET} split."


# --- what the exported model can do -----------------------------------------------------------------------------------


def measure(plan: Plan) -> None:
    """fairseq's own tools on the exported file, over the whole split."""
    MEASURES[plan.recipe.system](plan.given())


def log_of(one: Run) -> Path:
    return one.folder / "measured.log"


def _summaries(one: Given) -> None:
    """fairseq-generate, then ROUGE of its summaries and of the floors."""
    plan, log = one.plan, log_of(one)
    flags = [
        "--task", "long_summarization", "--gen-subset", SUBSET, "--batch-size", "32", "--beam", "4", "--min-len", "5",
        "--max-len-b", "60", "--no-repeat-ngram-size", "3", "--bpe", "sentencepiece", "--sentencepiece-model",
        str(plan.data / "spm.model"), "--scoring", "rouge", "--log-format", "simple", "--log-interval", "4",
        *plan.workers,
    ]  # fmt: skip
    score(one, "generate", "generate", flags, log, f"on {SUBSET}")
    rouge(one, log, plan.data / f"{SUBSET}.source.txt")


def _letters(one: Given) -> None:
    """fairseq-eval-lm over windows with context, and fairseq-validate for the segments."""
    plan = one.plan
    flags = [
        "--task", "dynamic_pooling_lm", "--gen-subset", SUBSET, "--tokens-per-sample", "512", "--context-window", "256",
        "--batch-size", "8", "--max-tokens", "36000", "--log-format", "none", *plan.workers,
    ]  # fmt: skip
    score(one, "eval", "eval-lm", flags, log_of(one), f"on {SUBSET}", eval_told)
    _all_scored(one, 0)
    flags = ["--task", "dynamic_pooling_lm", "--valid-subset", SUBSET, "--batch-size", "8", "--log-format", "json"]
    flags += ["--required-batch-size-multiple", "1", *plan.workers]
    score(one, "validate", "validate", flags, one.folder / "validate.log", f"on {SUBSET}", listed=False)


def _mails(one: Given) -> None:
    """fairseq-validate on the buffer of live tokens; also of the dense model that it comes from."""
    flags = [
        "--task", "sentence_prediction", "--valid-subset", SUBSET, "--batch-size", "32", "--log-format", "json",
        "--required-batch-size-multiple", "1", "--model-overrides", "{'skim_inference': 'packed'}", *one.plan.workers,
    ]  # fmt: skip
    score(one, "validate", "validate", flags, log_of(one), f"on {SUBSET}")
    dense = one.plan.runs()[0]
    score(dense, "validate", "validate", flags, log_of(dense), f"on {SUBSET}")


def _stream(one: Given) -> None:
    """fairseq-eval-lm with memory."""
    flags = ["--task", "segment_lm", "--gen-subset", SUBSET, "--batch-size", "8", "--log-format", "none"]
    score(one, "eval", "eval-lm", [*flags, *one.plan.workers], log_of(one), f"on {SUBSET}", eval_told)
    _all_scored(one, 1)


def _all_scored(one: Given, left_out: int) -> None:
    """StageFailed unless each token of the split, but for the first ones, was scored once."""
    scored = read_evaluation(log_of(one)).tokens
    wanted = split_size(one.plan.data / SUBSET)[1] - left_out
    if scored != wanted:
        raise StageFailed(f"{one.name}: {scored:,} tokens were scored, but {SUBSET} has {wanted:,}")


MEASURES: dict[str, Callable[[Given], None]] = {
    "deep_pyramidion": _summaries,
    "dynamic_pooling": _letters,
    "skimming": _mails,
    "par_search": _stream,
    "adaptive_span": _stream,
}
