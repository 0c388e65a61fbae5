"""Results of a quality run of language models as JSON rows, merged with those of other runs; the page and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts.dynamic_pooling.page import page
from experiment_parts.dynamic_pooling.plan import Plan, Run
from experiment_parts.dynamic_pooling.stages import eval_log, sampled_log, step_seconds, validation
from experiment_parts.language_models import results as shared
from experiment_parts.language_models.results import curve_of, data_facts, experiment_name
from experiment_parts.rows import cost, head_of, metrics
from experiment_parts.stages import TrainingLog, read_training_log
from fairseq_efficient.report.eval_log import read_evaluation

NAME = "dynamic_pooling"
VALIDATED = {  # metric -> what fairseq-validate calls it
    "window_bpc": "bpc", "sampled_window_bpc": "sampled_bpc", "shortening_factor": "shortening_factor",
    "sampled_shortening_factor": "sampled_shortening_factor", "boundary_rate": "boundary_rate",
    "boundary_prob": "boundary_prob",
    **{f"{what}_{share}": f"{what}_{share}" for what in ("spaces", "unigram") for share in ("precision", "recall")},
}  # fmt: skip


def write(folder: Path, plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None = None) -> None:
    """Merge the runs into ``folder/dynamic_pooling.json``, and write the .md and .png anew."""
    shared.write(folder, NAME, new_document(plan, runs, checked), page)


def new_document(plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None) -> dict[str, Any]:
    """What these runs say: one experiment, its rows and its curves."""
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    head = head_of(plan, logs)
    settings, name = plan.settings, plan.name
    experiment = experiment_name(name, settings)
    rows, curves = [], []
    for one, log in zip(runs, logs, strict=True):
        settings_of_one = ["updates", "time"] if one.setting == "updates" and not one.pooled else [one.setting]
        for setting in settings_of_one:  # vanilla is its own measure of time
            key = {"experiment": experiment, "data": name, "setting": setting, "model": one.model, "seed": one.seed}
            rows += rows_of(one, log, key)
            curve = curve_of(one.folder, log, "bpc")
            curves.append({**key, **curve, "seconds": [round(step(one, log) * n, 1) for n in curve["updates"]]})
    about = {"data": facts_of(plan), "settings": settings, "made": [head]}
    return {
        **head,
        "experiments": {experiment: {**about, "checked": [checked] if checked else []}},
        "rows": rows,
        "curves": curves,
    }


def step(one: Run, log: TrainingLog) -> float:
    """Seconds of an update: timed in turns with the other models if that was done, else those of the training, which
    other programs may have slowed down."""
    found = step_seconds(one.plan).get(one.model, log.seconds_per_update)
    assert found is not None, f"{one.folder}: no times in its log"
    return found


def facts_of(plan: Plan) -> dict[str, Any]:
    facts = data_facts(plan, ("train", "valid", plan.subset))
    symbols = (plan.data / "dict.txt").read_text(encoding="utf-8").splitlines()
    options = plan.prepared.get("options", {})
    facts["newlines"] = options.get("newlines") != "space" and any(line.startswith("<0x0A> ") for line in symbols)
    facts["document_ends"] = options.get("eos", True)
    facts["symbols"] = options.get("symbols", "characters")
    facts["clean"] = options.get("clean", "")
    facts["lang"] = options.get("lang")
    facts["tokenizer_types"] = plan.prepared.get("unigram", {}).get("types")
    return facts


def rows_of(one: Run, log: TrainingLog, key: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric of a run."""
    base = {**key, **cost(one, log), "seconds": round(step(one, log) * one.updates, 1)}
    evaluation, validated = read_evaluation(eval_log(one)), validation(one)
    numbers = {
        "test_bpc": evaluation.bits,
        "test_characters": evaluation.tokens,
        "eval_seconds": evaluation.seconds,
        "valid_bpc": log.valid.get("bpc"),
        "seconds_per_update": step(one, log),
        **{name: validated.get(logged) for name, logged in VALIDATED.items()},
    }
    if one.model == "gumbel":
        numbers["sampled_test_bpc"] = read_evaluation(sampled_log(one)).bits
    if not one.pooled:
        numbers["shortening_factor"] = 1.0
    return metrics(base, numbers)
