"""What results of language models share: rows of several runs in one file, curves, values of several seeds."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from experiment_parts.language_models.plan import LanguageModelPlan
from experiment_parts.pages import draw
from experiment_parts.runs import split_size
from experiment_parts.stages import TrainingLog, read_json
from fairseq_efficient.files import write_json
from fairseq_efficient.report.train_log import read_train_log

KINDS = ("rows", "curves")  # lists of a document; each item knows its experiment, setting, model and seed
Rows = Mapping[tuple[str, int, str], Mapping[str, Any]]  # (model, seed, metric) -> row


def experiment_name(data: str, settings: Mapping[str, Any]) -> str:
    """Names what may share a table: the same data and the same settings."""
    return f"{data}; " + ", ".join(f"{name} {value}" for name, value in settings.items())


def data_facts(plan: LanguageModelPlan, splits: Iterable[str]) -> dict[str, Any]:
    """What the page says of any data."""
    facts: dict[str, Any] = {"name": plan.name, "scored": plan.subset, "splits": {}}
    for split in dict.fromkeys(splits):
        documents, tokens = split_size(plan.data / split)
        facts["splits"][split] = {"documents": documents, "tokens": tokens}
    facts["types"] = len((plan.data / "dict.txt").read_text(encoding="utf-8").splitlines()) + 4
    return facts


def curve_of(folder: Path, log: TrainingLog, metric: str) -> dict[str, Any]:
    """Validation over updates, and over seconds in training steps."""
    updates, found = read_train_log(folder / "train.log").series("valid", metric)
    order = sorted(log.seconds_of)
    times = dict(zip(order, accumulate(log.seconds_of[update] for update in order), strict=True))
    seconds = [round(times.get(update, 0.0), 2) for update in updates]
    return {"updates": updates, "seconds": seconds, f"valid_{metric}": found}


def merge(old: dict[str, Any], new: dict[str, Any], kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Both; of the same experiment, setting, model and seed only what is new."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("experiment", "setting", "model", "seed"))

    merged = {**new, "experiments": {**old.get("experiments", {}), **new["experiments"]}}
    for kind in kinds:
        fresh = {key(row) for row in new[kind]}
        merged[kind] = [row for row in old.get(kind, []) if key(row) not in fresh] + new[kind]
    for name, about in new["experiments"].items():
        before = old.get("experiments", {}).get(name)
        if before is None:
            continue
        here = {made["command"] for made in about["made"]}
        kept = [made for made in before["made"] if made["command"] not in here]
        checks = [one for one in before["checked"] if json.dumps(one) not in map(json.dumps, about["checked"])]
        merged["experiments"][name] = {
            **about, "made": [*kept, *about["made"]], "checked": [*checks, *about["checked"]],
        }  # fmt: skip
    return merged


def write(
    folder: Path, name: str, new: dict[str, Any], page: Callable[[dict[str, Any]], str], kinds: Sequence[str] = KINDS
) -> None:
    """Merge ``new`` into ``folder/NAME.json``; the .md, by ``page``, and the .png, by NAME/picture.py, anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = merge(read_json(path) if path.exists() else {}, new, kinds)
    write_json(path, document)
    (folder / f"{name}.md").write_text(page(document), encoding="utf-8")
    draw(Path(__file__).parents[1] / name / "picture.py", path, folder / f"{name}.png")


def values(found: Rows, model: str, metric: str) -> dict[int, float]:
    """Seed -> value."""
    return {seed: row["value"] for (name, seed, what), row in found.items() if (name, what) == (model, metric)}


def seeds(numbers: Mapping[int, float], digits: int) -> str:
    """The value, or the mean with the values in brackets."""
    if not numbers:
        return "-"
    each = [f"{value:.{digits}f}" for value in numbers.values()]
    return each[0] if len(set(each)) == 1 else f"{mean(numbers.values()):.{digits}f} ({', '.join(each)})"
