"""What the pictures of quality runs of language models share: colours, means of seeds, a row of three panels for each
experiment."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
Curve = dict[str, Any]


def averaged(curves: Iterable[Curve], x: str, *names: str) -> dict[str, tuple[list[Any], ...]]:
    """Model -> x and each of ``names``, the mean of the seeds where all of them have one."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        if curve[x]:
            grouped[curve["model"]].append(curve)
    found = {}
    for model, same in grouped.items():
        points = [dict(zip(one[x], zip(*(one[name] for name in names), strict=True), strict=True)) for one in same]
        places = sorted(set.intersection(*map(set, points)))
        each = ([mean(one[place][k] for one in points) for place in places] for k in range(len(names)))
        found[model] = (places, *each)
    return found


def lines(axes: Any, found: Mapping[str, tuple[list[Any], ...]], color: Mapping[str, str], title: str) -> list[float]:
    """A line for each model; its values without those of the first quarter, which fall too fast to be looked at."""
    for model, (x, y) in found.items():
        axes.plot(x, y, color=color[model], label=model, linewidth=1.6)
    label(axes, title, "updates")
    return [value for _, y in found.values() for value in y[len(y) // 4 :]]


def label(axes: Any, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel(x, color=GREY)
    if y:
        axes.set_ylabel(y, color=GREY)


def finish(axes: Any) -> None:
    """Grid and frame."""
    axes.grid(color=LIGHT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def of_experiment(document: Mapping[str, Any], kind: str, name: str) -> list[dict[str, Any]]:
    return [one for one in document[kind] if one["experiment"] == name]


def draw(path: Path, names: Sequence[str], row: Callable[[Any, str], None], **more: Any) -> None:
    """A figure in which ``row`` fills the three panels of each experiment. more: for matplotlib's ``subplots``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(13, 0.5 + 4.0 * len(names)), layout="constrained")
    for panels, name in zip(figure.subplots(len(names), 3, squeeze=False, **more), names, strict=True):
        row(panels, name)
        for axes in panels:
            finish(axes)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(draw_document: Callable[[dict[str, Any], Path], None]) -> None:
    """``python picture.py RESULTS.json PICTURE.png``"""
    draw_document(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
