"""Draw validation bits and mean spans over updates, and bits over time: picture.py RESULTS.json PNG."""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from experiment_parts import pictures
from experiment_parts.adaptive_span.page import ordered
from experiment_parts.pictures import GREY, Curve, averaged, label, lines, of_experiment

FIXED, LEARNED, OTHER = ("#9fb3c8", "#627d98", "#1f2933"), ("#edae49", "#d1495b", "#8d6a9f"), "#00798c"


def colors(models: list[str]) -> dict[str, str]:
    """Greys for fixed spans, warm ones for learned ones; the last of each repeats if there are more."""
    found = {}
    for kind, palette in (("fixed", FIXED), ("adaptive-", LEARNED), ("all", (OTHER,))):
        same = [model for model in models if model.startswith(kind)]
        found.update({model: palette[min(place, len(palette) - 1)] for place, model in enumerate(same)})
    return found


def in_order(curves: list[Curve], x: str, y: str) -> dict[str, tuple[list[Any], ...]]:
    found = averaged(curves, x, y)
    return {model: found[model] for model in ordered(found)}


def bits(axes: Any, curves: list[Curve], color: dict[str, str], title: str) -> None:
    late = lines(axes, in_order(curves, "updates", "valid_bpc"), color, title)
    if late:
        room = 0.05 * (max(late) - min(late)) + 1e-3
        axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel("validation bits per byte", color=GREY)


def spans(axes: Any, curves: list[Curve], color: dict[str, str], longest: int) -> None:
    lines(axes, in_order(curves, "span_updates", "mean_span"), color, "mean of what heads see, tokens")
    axes.axhline(longest / 6, color=GREY, linewidth=0.8, linestyle="--")
    axes.text(0, longest / 6, f" 1/6 of {longest:,}", color=GREY, fontsize=8, va="bottom")
    axes.set_yscale("log")


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
    label(axes, f"{scored} bits over time", "seconds of an update")
    axes.set_xlim(left=0)
    axes.margins(x=0.25, y=0.15)


def draw(document: dict[str, Any], path: Path) -> None:
    def row(panels: Any, name: str) -> None:
        about = document["experiments"][name]
        rows, curves = (of_experiment(document, kind, name) for kind in ("rows", "curves"))
        color = colors(ordered({one["model"]: 0 for one in curves}))
        settings = about["settings"]
        title = f"{about['data']['name']}, {settings['layers']} layers, width {settings['dim']}"
        bits(panels[0], curves, color, title)
        spans(panels[1], curves, color, settings["longest"])
        pairs(panels[2], rows, color, about["data"]["scored"])

    pictures.draw(path, [name for name in document["experiments"] if of_experiment(document, "curves", name)], row)


if __name__ == "__main__":
    pictures.main(draw)
