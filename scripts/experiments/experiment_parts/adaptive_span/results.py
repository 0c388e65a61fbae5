"""Results of a quality run of attention spans as JSON rows, merged with those of other runs; the page and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts.adaptive_span.page import page
from experiment_parts.adaptive_span.plan import Plan, Run
from experiment_parts.adaptive_span.stages import evaluation
from experiment_parts.language_models import results as shared
from experiment_parts.language_models.results import curve_of, data_facts, experiment_name
from experiment_parts.rows import cost, head_of, metrics
from experiment_parts.runs import step_seconds
from experiment_parts.stages import StageFailed, TrainingLog, read_training_log
from fairseq_efficient.report.span_log import read_spans
from fairseq_efficient.report.train_log import INNER, read_train_log

NAME = "adaptive_span"
KINDS = (*shared.KINDS, "spans")


def write(folder: Path, plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None = None) -> None:
    """Merge the runs into ``folder/adaptive_span.json``, and write the .md and .png anew."""
    shared.write(folder, NAME, new_document(plan, runs, checked), page, KINDS)


def new_document(plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None) -> dict[str, Any]:
    """What these runs say: one experiment, its rows, curves, and spans of each head at the end."""
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    head = head_of(plan, logs)
    experiment = experiment_name(plan.name, plan.settings)
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for one, log in zip(runs, logs, strict=True):
        key = {"experiment": experiment, "data": plan.name, "setting": "updates", "model": one.model, "seed": one.seed}
        spans = spans_of(one)
        found["rows"] += rows_of(one, log, key, spans)
        found["curves"].append({**key, **curve_of(one.folder, log, "bpc"), **span_curve(one)})
        if one.kind.penalty is not None:
            found["spans"].append({**key, "penalty": one.kind.penalty, "by_layer_and_head": spans})
    data = data_facts(plan, ("train", "valid", plan.subset))
    about = {"data": data, "settings": plan.settings, "made": [head]}
    return {**head, "experiments": {experiment: {**about, "checked": [checked] if checked else []}}, **found}


def spans_of(one: Run) -> list[list[float]]:
    """Keys that each head of each layer sees at most after training, as its last validation logged them."""
    if one.kind.penalty is None:
        return [[float(one.kind.span)] * one.plan.args.heads for _ in range(one.plan.args.layers)]
    found = read_spans(read_train_log(one.folder / "train.log"), "valid")
    if found is None:
        raise StageFailed(f"{one.name}: no spans in {one.folder / 'train.log'}")
    return [[float(width) for width in layer] for layer in found.last]


def span_curve(one: Run) -> dict[str, Any]:
    """The mean span over training."""
    updates, spans = read_train_log(one.folder / "train.log").series(INNER, "mean_span")
    return {"span_updates": updates, "mean_span": spans}


def rows_of(one: Run, log: TrainingLog, key: dict[str, Any], spans: list[list[float]]) -> list[dict[str, Any]]:
    """One row for each metric of a run."""
    base = {**key, **cost(one, log)}
    scored, every = evaluation(one), [width for layer in spans for width in layer]
    numbers: dict[str, float | None] = {
        "test_bpc": scored.bits,
        "test_tokens": scored.tokens,
        "eval_seconds": scored.seconds,
        "valid_bpc": log.valid.get("bpc"),
        "mean_span": sum(every) / len(every),
        "max_span": max(every),
        "train_seconds_per_update": log.seconds_per_update,
        "seconds_per_update": step_seconds(one.plan.args.out).get(one.name),
    }
    return metrics(base, numbers)
