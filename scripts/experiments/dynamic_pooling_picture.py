#!/usr/bin/env python3
"""Draw validation bits over updates and over time: dynamic_pooling_picture.py RESULTS.json PICTURE.png."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
STYLE = {  # model -> colour, marker
    "vanilla": ("#1f2933", "o"), "fixed2": ("#9fb3c8", "s"), "fixed3": ("#7b9ebd", "^"), "fixed4": ("#486581", "D"),
    "whitespaces": ("#d1495b", "v"), "unigram": ("#66a182", "P"), "entropy": ("#edae49", "X"),
    "gumbel": ("#8d6a9f", "*"),
}  # fmt: skip
Curve = dict[str, Any]


def averaged(curves: list[Curve]) -> dict[str, tuple[list[int], list[float], list[float]]]:
    """Model -> updates, seconds and bits, each the mean of the seeds where all of them were validated."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        grouped[curve["model"]].append(curve)
    found = {}
    for model, same in grouped.items():
        points = [dict(zip(c["updates"], zip(c["seconds"], c["valid_bpc"], strict=True), strict=True)) for c in same]
        updates = sorted(set.intersection(*map(set, points)))
        seconds, bits = ([mean(one[update][k] for one in points) for update in updates] for k in (0, 1))
        found[model] = (updates, seconds, bits)
    return found


def panel(axes: Any, curves: dict[str, Any], over: str, title: str, top: float) -> None:
    """One axes; ``over``: updates or minutes."""
    from matplotlib.ticker import MaxNLocator

    for model, (updates, seconds, bits) in curves.items():
        color, marker = STYLE[model]
        x = updates if over == "updates" else [second / 60 for second in seconds]
        axes.plot(x, bits, color=color, marker=marker, ms=4, lw=2.2 if model == "vanilla" else 1.6, label=model)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel(over if over == "updates" else "minutes of updates", color=GREY)
    axes.set_ylim(top=top)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(color=LIGHT)
    axes.spines[["top", "right"]].set_visible(False)


def draw(document: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in document["experiments"] if any(c["experiment"] == name for c in document["curves"])]
    figure = pyplot.figure(figsize=(13, 0.5 + 4.0 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 3, squeeze=False, sharey="row")
    for row, name in zip(grid, names, strict=True):
        about = document["experiments"][name]
        title = f"{about['data']['name']}, layers {about['settings']['layers']}, width {about['settings']['dim']}"
        of = {
            setting: averaged([c for c in document["curves"] if (c["experiment"], c["setting"]) == (name, setting)])
            for setting in ("updates", "time")
        }
        late = [bits for curves in of.values() for one in curves.values() for bits in one[2][len(one[2]) // 5 :]]
        top = max(late, default=1) + 0.1 * (max(late, default=1) - min(late, default=0)) + 1e-3  # not the first falls
        panel(row[0], of["updates"], "updates", f"{title}\nequal updates", top)
        panel(row[1], of["updates"], "minutes", "the same over time", top)
        if len(of["time"]) > 1:
            panel(row[2], of["time"], "minutes", "trained anew for equal time", top)
        else:
            row[2].set_visible(False)
        row[0].set_ylabel("validation bits per character", color=GREY)
        row[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
