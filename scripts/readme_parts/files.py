"""The files of results, and how their numbers are written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
Document = Mapping[str, Any]


def load(name: str) -> Document | None:
    """A file of results; None where there is none yet."""
    path = RESULTS / name
    if not path.is_file():
        return None
    found: Document = json.loads(path.read_text(encoding="utf-8"))
    return found


def experiments(results: Document) -> Iterator[tuple[Document, list[Document]]]:
    """(facts, rows) of each experiment of a file."""
    for name, about in results["experiments"].items():
        yield about, [row for row in results["rows"] if row["experiment"] == name]


def first_experiment(results: Document) -> tuple[Document, list[Document]]:
    """Of the first one alone."""
    return next(experiments(results))


def value(rows: Iterable[Document], model: str, metric: str, setting: str = "updates") -> float | None:
    """The mean over seeds."""
    key = (model, metric, setting)
    found = [row["value"] for row in rows if (row["model"], row["metric"], row["setting"]) == key]
    return mean(found) if found else None


def shown(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:,.{digits}f}"


def models_of(rows: Iterable[Document]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def seeds_of(rows: Iterable[Document]) -> int:
    return len({row["seed"] for row in rows})


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    """Markdown."""
    rows = [list(head), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return ["|" + "|".join(row) + "|" if row[0] == "---" else "| " + " | ".join(row) + " |" for row in rows]
