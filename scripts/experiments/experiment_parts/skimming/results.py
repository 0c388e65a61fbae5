"""Results of a quality run of skimming as JSON rows, merged with those of other data sets; the page and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts.pages import draw
from experiment_parts.rows import cost, metrics, rounded
from experiment_parts.skimming.page import page
from experiment_parts.skimming.plan import METRICS, Data, Plan, Run, Variant
from experiment_parts.skimming.stages import numbers
from experiment_parts.stages import read_json, read_training_log
from fairseq_efficient.bench.machine import provenance, this_command
from fairseq_efficient.files import write_json
from fairseq_efficient.report.train_log import read_train_log

NAME = "skimming"
REPORTED = ("accuracy", "exact", "f1", "HasAns_f1", "NoAns", "pearson", "spearman", "keep_ratio",
            "flops_ratio_unpadded", "flops_ratio_padded", "flops_ratio_max_length")  # fmt: skip


def write(folder: Path, plan: Plan, data: Data, variants: Sequence[Variant], timings: Sequence[dict[str, Any]]) -> None:
    """Put the data set's results into ``folder/skimming.json`` instead of earlier ones; the .md and .png anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    document = merge(read_json(path) if path.exists() else {}, new_document(plan, data, variants, timings))
    write_json(path, document)
    (folder / f"{NAME}.md").write_text(page(document), encoding="utf-8")
    draw(Path(__file__).with_name("picture.py"), path, folder / f"{NAME}.png")


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both; of a data set only what is new."""
    merged = {**new, "sets": {**old.get("sets", {}), **new["sets"]}}
    for kind in ("rows", "timings", "curves"):
        merged[kind] = [row for row in old.get(kind, []) if row["data"] not in new["sets"]] + new[kind]
    return merged


def new_document(
    plan: Plan, data: Data, variants: Sequence[Variant], timings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    head = provenance(this_command(), plan.args.threads, plan.args.device)
    rows = [row for variant in variants for row in rows_of(variant)]
    trained = [variant.run for variant in variants if not variant.threshold]
    about = {**facts(data), "settings": plan.settings, "made": head}
    return {
        **head,
        "sets": {data.name: about},
        "rows": rows,
        "timings": [{"data": data.name, **_rounded(one)} for one in timings],
        "curves": [{"data": data.name, "model": one.kind.name, "seed": one.seed, **curve(one)} for one in trained],
    }


def facts(data: Data) -> dict[str, Any]:
    """What the page says of a data set."""
    sizes = {}
    for split in dict.fromkeys(("train", data.subset)):
        items, tokens = data.size(split)
        cut = data.report["splits"][split].get("truncated", 0)
        sizes[split] = {"items": items, "mean_tokens": round(tokens, 1), "cut": cut}
    metric = data.corpus.metric
    return {
        "title": data.corpus.title, "subset": data.subset, "metric": metric, "metric_title": METRICS[metric],
        "unit": "questions" if data.squad else "texts", "splits": sizes, "max_tokens": data.report.get("max_tokens"),
        "held_out": data.report["splits"][data.subset].get("held_out_of"),
    }  # fmt: skip


def rows_of(variant: Variant) -> list[dict[str, Any]]:
    """One row for each metric of a model."""
    one, found = variant.run, numbers(variant)
    log = read_training_log(one.folder / "train.log")
    base = {"data": one.data.name, "model": variant.name, "seed": one.seed, **cost(one, log)}
    layers = sorted((name for name in found if name.startswith("keep_l")), key=lambda name: int(name[6:]))
    names = [*(name for name in REPORTED if name in found), *layers]
    return metrics(base, {name: found[name] for name in names})


def curve(one: Run) -> dict[str, Any]:
    """Quality and kept share on the watched split over updates."""
    log = read_train_log(one.folder / "train.log")
    metric = one.data.corpus.metric
    updates, quality = log.series("valid", metric)
    kept = dict(zip(*log.series("valid", "keep_ratio"), strict=True))
    return {"updates": updates, "quality": quality, "kept": [kept.get(update) for update in updates]}


def _rounded(one: dict[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in one.items()}
