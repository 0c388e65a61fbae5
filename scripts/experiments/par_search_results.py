"""Results of a quality run of layouts as JSON rows, merged with those of other runs; the page and pictures."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import par_search_page
from experiment_runs import split_size
from experiment_stages import Record, TrainingLog, read_json, read_training_log, write_json
from language_model_results import curve_of, experiment_name, merge, rounded
from par_search_plan import ORIGINAL, ORIGINAL_EPOCHS, Plan, Run
from par_search_stages import evaluation, latencies, step_seconds, what

from fairseq_efficient.bench.machine import provenance, this_command
from fairseq_efficient.report.train_log import INNER, read_train_log

NAME = "par_search"
FOLDER = Path(__file__).resolve().parent
KINDS = ("rows", "curves", "layouts", "recipe")
EPOCHS = (1, 3, 5, 10, 17, 20)  # of 20: where the published code's table has its rows


def write(folder: Path, plan: Plan, runs: Sequence[Run]) -> None:
    """Merge the runs into ``folder/par_search.json``, and write the .md and .png anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    document = merge(read_json(path) if path.exists() else {}, new_document(plan, runs), KINDS)
    write_json(path, document)
    (folder / f"{NAME}.md").write_text(par_search_page.page(document), encoding="utf-8")
    draw([sys.executable, str(FOLDER / "par_search_picture.py"), str(path), str(folder / f"{NAME}.png")])


def draw(command: Sequence[str]) -> None:
    """In a process of its own: see experiment_stages.run."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def draw_search(folder: Path, plan: Plan, seeds: Sequence[int]) -> None:
    """The page of the searches, and the heat map of the first as a still and a moving picture."""
    runs = [str(plan.search_folder(seed)) for seed in seeds]
    script = str(FOLDER.parent / "report.py")
    pictures = ["--png", str(folder / f"{NAME}_search.png"), "--gif", str(folder / f"{NAME}_search.gif")]
    page = str(Path(plan.args.out, "search.html"))
    draw([sys.executable, script, "par_search", *runs, "--out", page, *pictures])


def new_document(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """What these runs say: one experiment, its rows, curves and layouts."""
    head = provenance(this_command(), plan.args.threads)
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    head["machine"]["gpu"] = next((log.gpu for log in logs if log.gpu), head["machine"]["gpu"])
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
    about = {"data": data_facts(plan), "settings": plan.settings, "made": [head], "checked": []}
    return {**head, "experiments": {experiment: about}, **found}


def data_facts(plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": plan.name, "scored": plan.subset, "splits": {}}
    for split in ("train", *plan.subsets):
        documents, tokens = split_size(plan.data / split)
        facts["splits"][split] = {"documents": documents, "tokens": tokens}
    facts["types"] = len((plan.data / "dict.txt").read_text(encoding="utf-8").splitlines()) + 4
    facts["lower_case"] = bool(plan.prepared.get("options", {}).get("lower_case"))
    return facts


def rows_of(one: Run, log: TrainingLog, key: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric of a run."""
    record = Record.load(one.folder / "train.json")
    assert record is not None
    base = {
        **key, "params": log.parameters, "updates": one.updates, "seconds": round(log.seconds, 1),
        "peak_mb": round(log.gpu_peak_mb or record.peak_mb),
    }  # fmt: skip
    numbers: dict[str, float | None] = {
        "seconds_per_update": step_seconds(one.plan).get(what(one), log.seconds_per_update),
    }
    for subset in one.plan.subsets:
        scored = evaluation(one, subset)
        numbers[f"{subset}_ppl"], numbers[f"{subset}_bits"] = 2**scored.bits, scored.bits
        numbers[f"{subset}_tokens"], numbers[f"{subset}_seconds"] = scored.tokens, scored.seconds
        if one.model == ORIGINAL:
            numbers[f"argmax_{subset}_ppl"] = 2 ** evaluation(one, subset, "-argmax").bits
    if one.layout:
        numbers.update(attention=one.layout.count("a"), blocks=len(one.layout), **latencies(one.plan, one.layout))
    return [{**base, "metric": name, "value": rounded(value)} for name, value in numbers.items() if value is not None]


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
