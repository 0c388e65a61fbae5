"""Results of a quality run of attention spans as JSON rows, merged with those of other runs; the page and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adaptive_span_page
from adaptive_span_plan import Plan, Run
from adaptive_span_stages import evaluation, step_seconds
from experiment_pages import draw
from experiment_runs import split_size
from experiment_stages import Record, StageFailed, TrainingLog, read_json, read_training_log, write_json
from language_model_results import curve_of, experiment_name, merge, rounded

from fairseq_efficient.bench.machine import provenance, this_command
from fairseq_efficient.report.span_log import read_spans
from fairseq_efficient.report.train_log import INNER, read_train_log

NAME = "adaptive_span"
FOLDER = Path(__file__).resolve().parent
KINDS = ("rows", "curves", "spans")


def write(folder: Path, plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None = None) -> None:
    """Merge the runs into ``folder/adaptive_span.json``, and write the .md and .png anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    document = merge(read_json(path) if path.exists() else {}, new_document(plan, runs, checked), KINDS)
    write_json(path, document)
    (folder / f"{NAME}.md").write_text(adaptive_span_page.page(document), encoding="utf-8")
    draw(FOLDER / "adaptive_span_picture.py", path, folder / f"{NAME}.png")


def new_document(plan: Plan, runs: Sequence[Run], checked: dict[str, Any] | None) -> dict[str, Any]:
    """What these runs say: one experiment, its rows, curves, and spans of each head at the end."""
    head = provenance(this_command(), plan.args.threads)
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    head["machine"]["gpu"] = next((log.gpu for log in logs if log.gpu), head["machine"]["gpu"])
    experiment = experiment_name(plan.name, plan.settings)
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for one, log in zip(runs, logs, strict=True):
        key = {"experiment": experiment, "data": plan.name, "setting": "updates", "model": one.model, "seed": one.seed}
        spans = spans_of(one)
        found["rows"] += rows_of(one, log, key, spans)
        found["curves"].append({**key, **curve_of(one.folder, log, "bpc"), **span_curve(one)})
        if one.kind.penalty is not None:
            found["spans"].append({**key, "penalty": one.kind.penalty, "by_layer_and_head": spans})
    about = {"data": data_facts(plan), "settings": plan.settings, "made": [head]}
    return {**head, "experiments": {experiment: {**about, "checked": [checked] if checked else []}}, **found}


def data_facts(plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": plan.name, "scored": plan.subset, "splits": {}}
    for split in dict.fromkeys(("train", "valid", plan.subset)):
        documents, tokens = split_size(plan.data / split)
        facts["splits"][split] = {"documents": documents, "tokens": tokens}
    facts["types"] = len((plan.data / "dict.txt").read_text(encoding="utf-8").splitlines()) + 4
    return facts


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
    record = Record.load(one.folder / "train.json")
    assert record is not None
    base = {
        **key, "params": log.parameters, "updates": one.updates, "seconds": round(log.seconds, 1),
        "peak_mb": round(log.gpu_peak_mb or record.peak_mb),
    }  # fmt: skip
    scored, every = evaluation(one), [width for layer in spans for width in layer]
    numbers: dict[str, float | None] = {
        "test_bpc": scored.bits,
        "test_tokens": scored.tokens,
        "eval_seconds": scored.seconds,
        "valid_bpc": log.valid.get("valid_bpc"),
        "mean_span": sum(every) / len(every),
        "max_span": max(every),
        "train_seconds_per_update": log.seconds_per_update,
        "seconds_per_update": step_seconds(one.plan).get(one.name),
    }
    return [{**base, "metric": name, "value": rounded(value)} for name, value in numbers.items() if value is not None]
