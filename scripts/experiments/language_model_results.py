"""What results of language models share: rows of several runs in one file, curves, values of several seeds."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from experiment_stages import TrainingLog

from fairseq_efficient.report.train_log import read_train_log

Rows = Mapping[tuple[str, int, str], Mapping[str, Any]]  # (model, seed, metric) -> row


def experiment_name(data: str, settings: Mapping[str, Any]) -> str:
    """Names what may share a table: the same data and the same settings."""
    return f"{data}; " + ", ".join(f"{name} {value}" for name, value in settings.items())


def rounded(value: Any) -> float:
    return float(f"{float(value):.7g}")


def curve_of(folder: Path, log: TrainingLog, metric: str) -> dict[str, Any]:
    """Validation over updates, and over seconds in training steps."""
    updates, found = read_train_log(folder / "train.log").series("valid", metric)
    order = sorted(log.seconds_of)
    times = dict(zip(order, accumulate(log.seconds_of[update] for update in order), strict=True))
    seconds = [round(times.get(update, 0.0), 2) for update in updates]
    return {"updates": updates, "seconds": seconds, f"valid_{metric}": found}


def merge(old: dict[str, Any], new: dict[str, Any], kinds: Sequence[str] = ("rows", "curves")) -> dict[str, Any]:
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


def values(found: Rows, model: str, metric: str) -> dict[int, float]:
    """Seed -> value."""
    return {seed: row["value"] for (name, seed, what), row in found.items() if (name, what) == (model, metric)}


def seeds(numbers: Mapping[int, float], digits: int) -> str:
    """The value, or the mean with the values in brackets."""
    if not numbers:
        return "-"
    each = [f"{value:.{digits}f}" for value in numbers.values()]
    return each[0] if len(set(each)) == 1 else f"{mean(numbers.values()):.{digits}f} ({', '.join(each)})"
