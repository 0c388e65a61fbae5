"""Results of a quality run of layouts as JSON rows, merged with those of other runs; the page and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts.language_models import results as shared
from experiment_parts.language_models.results import curve_of, data_facts, experiment_name
from experiment_parts.pages import draw
from experiment_parts.par_search.page import page
from experiment_parts.par_search.plan import ORIGINAL, ORIGINAL_EPOCHS, Plan, Run
from experiment_parts.par_search.stages import evaluation, latencies, what
from experiment_parts.rows import cost, head_of, metrics
from experiment_parts.runs import step_seconds
from experiment_parts.stages import ROOT, TrainingLog, read_training_log
from fairseq_efficient.report.train_log import INNER, read_train_log

NAME = "par_search"
KINDS = (*shared.KINDS, "layouts", "recipe")
EPOCHS = (1, 3, 5, 10, 17, 20)  # of 20: where the published code's table has its rows


def write(folder: Path, plan: Plan, runs: Sequence[Run]) -> None:
    """Merge the runs into ``folder/par_search.json``, and write the .md and .png anew."""
    shared.write(folder, NAME, new_document(plan, runs), page, KINDS)


def draw_search(folder: Path, plan: Plan, seeds: Sequence[int]) -> None:
    """The page of the searches, and the heat map of the first as a still and a moving picture."""
    stem = f"{NAME}_search_{plan.source}"
    pictures = ["--png", folder / f"{stem}.png", "--gif", folder / f"{stem}.gif"]
    runs, page = map(plan.search_folder, seeds), Path(plan.args.out, "search.html")
    draw(ROOT / "scripts" / "report.py", "par_search", *runs, "--out", page, *pictures)


def new_document(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """What these runs say: one experiment, its rows, curves and layouts."""
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    head = head_of(plan, logs)
    experiment = experiment_name(plan.name, plan.settings)
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for one, log in zip(runs, logs, strict=True):
        key = {"experiment": experiment, "data": plan.name, "setting": "updates", "model": one.model, "seed": one.seed}
        found["rows"] += rows_of(one, log, key)
        found["curves"].append({**key, **curve_of(one.folder, log, "ppl")})
        if one.model == ORIGINAL:
            found["recipe"].append({**key, "table": recipe_table(one, log)})
        else:
            found["layouts"].append({**key, "layout": one.layout})
    about = {"data": facts_of(plan), "settings": plan.settings, "made": [head], "checked": []}
    return {**head, "experiments": {experiment: about}, **found}


def facts_of(plan: Plan) -> dict[str, Any]:
    facts = data_facts(plan, ("train", *plan.subsets))
    facts["lower_case"] = bool(plan.prepared.get("options", {}).get("lower_case"))
    return facts


def rows_of(one: Run, log: TrainingLog, key: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric of a run."""
    base = {**key, **cost(one, log)}
    numbers: dict[str, float | None] = {
        "seconds_per_update": step_seconds(one.plan.args.out).get(what(one), log.seconds_per_update),
    }
    for subset in one.plan.subsets:
        scored = evaluation(one, subset)
        numbers[f"{subset}_ppl"], numbers[f"{subset}_bits"] = 2**scored.bits, scored.bits
        numbers[f"{subset}_tokens"], numbers[f"{subset}_seconds"] = scored.tokens, scored.seconds
        if one.model == ORIGINAL:
            numbers[f"argmax_{subset}_ppl"] = 2 ** evaluation(one, subset, "-argmax").bits
    if one.layout:
        numbers.update(attention=one.layout.count("a"), blocks=len(one.layout), **latencies(one.plan, one.layout))
    return metrics(base, numbers)


def recipe_table(one: Run, log: TrainingLog) -> list[dict[str, float]]:
    """Training and validation perplexity, and seconds, after those of 20 epochs that the published table has."""
    found = read_train_log(one.folder / "train.log")
    each = max(one.updates // ORIGINAL_EPOCHS, 1)
    valid, train = (dict(zip(*found.series(tag, "ppl"), strict=True)) for tag in ("valid", INNER))
    curve = curve_of(one.folder, log, "ppl")
    seconds = dict(zip(curve["updates"], curve["seconds"], strict=True))
    rows = []
    for epoch in EPOCHS:
        update = one.updates if epoch == ORIGINAL_EPOCHS else epoch * each
        near = min(train, key=lambda known: abs(known - update), default=None)
        if update in valid and near is not None:
            rows.append({"epoch": epoch, "update": update, "train_ppl": train[near], "valid_ppl": valid[update],
                         "seconds": seconds[update]})  # fmt: skip
    return rows
