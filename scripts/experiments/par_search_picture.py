#!/usr/bin/env python3
"""Draw validation perplexity over updates, latency, and layouts: par_search_picture.py RESULTS.json PICTURE.png."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
STYLE = {"interleaved": "#1f2933", "par": "#d1495b", "searched": "#00798c", "random": "#edae49", "original": "#8d6a9f"}
KINDS = {"a": "#d1495b", "f": "#9fb3c8"}
Curve = dict[str, Any]


def averaged(curves: list[Curve]) -> dict[str, tuple[list[int], list[float]]]:
    """Model -> updates and perplexities, the mean of the seeds where all of them were validated."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        grouped[curve["model"]].append(curve)
    found = {}
    for model, same in grouped.items():
        points = [dict(zip(one["updates"], one["valid_ppl"], strict=True)) for one in same]
        updates = sorted(set.intersection(*map(set, points)))
        found[model] = (updates, [mean(one[update] for one in points) for update in updates])
    return found


def perplexities(axes: Any, curves: list[Curve], title: str) -> None:
    found = {model: one for model, one in averaged(curves).items() if model != "original"}
    for model, (updates, ppl) in found.items():
        axes.plot(updates, ppl, color=STYLE[model], label=model, linewidth=1.6)
    late = [one for _, ppl in found.values() for one in ppl[len(ppl) // 4 :]]
    if late:
        axes.set_ylim(0.98 * min(late), 1.02 * max(late))
        axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel("updates", color=GREY)
    axes.set_ylabel("validation perplexity", color=GREY)


def latencies(axes: Any, rows: list[dict[str, Any]], scored: str) -> None:
    """Perplexity over milliseconds, a point for each seed."""
    of = {(row["model"], row["seed"], row["metric"]): row["value"] for row in rows}
    for model, color in STYLE.items():
        points = [
            (of[model, seed, "latency_ms_hidden_batch1"], of[model, seed, f"{scored}_ppl"])
            for name, seed, metric in of
            if (name, metric) == (model, "latency_ms_hidden_batch1")
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), color=color, label=model, s=26)
    axes.set_title(f"{scored} perplexity over latency", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("ms of an evaluation step, batch 1, hidden states", color=GREY)
    axes.set_xlim(left=0)


def layouts(axes: Any, found: list[dict[str, Any]]) -> None:
    """A line of squares for each layout."""
    lines: dict[tuple[str, str], str] = {}
    for one in found:
        fixed = one["model"] in ("interleaved", "par")
        lines.setdefault((one["model"], "" if fixed else f" {one['seed']}"), one["layout"])
    for row, layout in enumerate(lines.values()):
        for place, kind in enumerate(layout):
            axes.barh(row, 0.9, left=place + 0.05, height=0.7, color=KINDS[kind])
    axes.set_yticks(range(len(lines)), [f"{model}{seed}" for model, seed in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set_title("attention (red) and feed-forward (blue)", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("block", color=GREY)


def draw(document: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(document["experiments"])
    figure = pyplot.figure(figsize=(13, 0.5 + 4.0 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 3, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        about = document["experiments"][name]
        mine = {
            kind: [one for one in document[kind] if one["experiment"] == name] for kind in ("rows", "curves", "layouts")
        }
        perplexities(row[0], mine["curves"], f"{about['data']['name']}, {about['settings']['blocks']} blocks")
        latencies(row[1], mine["rows"], about["data"]["scored"])
        layouts(row[2], mine["layouts"])
        for axes in row:
            axes.grid(color=LIGHT)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
