#!/usr/bin/env python3
"""Draw validation bits and mean spans over updates, and bits over time: adaptive_span_picture.py RESULTS.json PNG."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from adaptive_span_page import ordered

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
FIXED, LEARNED, OTHER = ("#9fb3c8", "#627d98", "#1f2933"), ("#edae49", "#d1495b", "#8d6a9f"), "#00798c"
Curve = dict[str, Any]


def colors(models: list[str]) -> dict[str, str]:
    """Greys for fixed spans, warm ones for learned ones; the last of each repeats if there are more."""
    found = {}
    for kind, palette in (("fixed", FIXED), ("adaptive-", LEARNED), ("all", (OTHER,))):
        same = [model for model in models if model.startswith(kind)]
        found.update({model: palette[min(place, len(palette) - 1)] for place, model in enumerate(same)})
    return found


def averaged(curves: list[Curve], x: str, y: str) -> dict[str, tuple[list[int], list[float]]]:
    """Model -> updates and values, the mean of the seeds where all of them have one."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        if curve[x]:
            grouped[curve["model"]].append(curve)
    found = {}
    for model, same in grouped.items():
        points = [dict(zip(one[x], one[y], strict=True)) for one in same]
        updates = sorted(set.intersection(*map(set, points)))
        found[model] = (updates, [mean(one[update] for one in points) for update in updates])
    return found


def bits(axes: Any, curves: list[Curve], color: dict[str, str], title: str) -> None:
    found = averaged(curves, "updates", "valid_bpc")
    for model in ordered(found):
        axes.plot(*found[model], color=color[model], label=model, linewidth=1.6)
    late = [one for _, values in found.values() for one in values[len(values) // 4 :]]
    if late:
        room = 0.05 * (max(late) - min(late)) + 1e-3
        axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel("updates", color=GREY)
    axes.set_ylabel("validation bits per byte", color=GREY)


def spans(axes: Any, curves: list[Curve], color: dict[str, str], longest: int) -> None:
    found = averaged(curves, "span_updates", "mean_span")
    for model in ordered(found):
        axes.plot(*found[model], color=color[model], linewidth=1.6)
    axes.axhline(longest / 6, color=GREY, linewidth=0.8, linestyle="--")
    axes.text(0, longest / 6, f" 1/6 of {longest:,}", color=GREY, fontsize=8, va="bottom")
    axes.set_yscale("log")
    axes.set_title("mean of what heads see, tokens", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("updates", color=GREY)


def pairs(axes: Any, rows: list[dict[str, Any]], color: dict[str, str], scored: str) -> None:
    """Bits over seconds of an update, a point for each model (mean of its seeds)."""
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        grouped[row["model"], row["metric"]].append(row["value"])
    for model in color:
        seconds, found = (grouped.get((model, name)) for name in ("seconds_per_update", "test_bpc"))
        if seconds and found:
            axes.scatter([mean(seconds)], [mean(found)], color=color[model], s=36)
            axes.annotate(model, (mean(seconds), mean(found)), fontsize=8, color=GREY, xytext=(5, 3),
                          textcoords="offset points")  # fmt: skip
    axes.set_title(f"{scored} bits over time", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("seconds of an update", color=GREY)
    axes.set_xlim(left=0)
    axes.margins(x=0.25, y=0.15)


def draw(document: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in document["experiments"] if any(c["experiment"] == name for c in document["curves"])]
    figure = pyplot.figure(figsize=(13, 0.5 + 4.0 * len(names)), layout="constrained")
    for row, name in zip(figure.subplots(len(names), 3, squeeze=False), names, strict=True):
        about = document["experiments"][name]
        rows, curves = ([one for one in document[kind] if one["experiment"] == name] for kind in ("rows", "curves"))
        color = colors(ordered({one["model"]: 0 for one in curves}))
        settings = about["settings"]
        bits(row[0], curves, color, f"{about['data']['name']}, {settings['layers']} layers, width {settings['dim']}")
        spans(row[1], curves, color, settings["longest"])
        pairs(row[2], rows, color, about["data"]["scored"])
        for axes in row:
            axes.grid(color=LIGHT)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
