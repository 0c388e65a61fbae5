"""Draw validation perplexity over updates, latency, and layouts: picture.py RESULTS.json PICTURE.png."""

from pathlib import Path
from typing import Any

from experiment_parts import pictures
from experiment_parts.pictures import GREY, Curve, averaged, label, lines, of_experiment

STYLE = {"interleaved": "#1f2933", "par": "#d1495b", "searched": "#00798c", "random": "#edae49", "original": "#8d6a9f"}
KINDS = {"a": "#d1495b", "f": "#9fb3c8"}


def perplexities(axes: Any, curves: list[Curve], title: str) -> None:
    shown = [curve for curve in curves if curve["model"] != "original"]
    late = lines(axes, averaged(shown, "updates", "valid_ppl"), STYLE, title)
    if late:
        axes.set_ylim(0.98 * min(late), 1.02 * max(late))
        axes.legend(frameon=False, fontsize=8)
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
    label(axes, f"{scored} perplexity over latency", "ms of an evaluation step, batch 1, hidden states")
    axes.set_xlim(left=0)


def layouts(axes: Any, found: list[dict[str, Any]]) -> None:
    """A line of squares for each layout."""
    rows: dict[tuple[str, str], str] = {}
    for one in found:
        fixed = one["model"] in ("interleaved", "par")
        rows.setdefault((one["model"], "" if fixed else f" {one['seed']}"), one["layout"])
    for row, layout in enumerate(rows.values()):
        for place, kind in enumerate(layout):
            axes.barh(row, 0.9, left=place + 0.05, height=0.7, color=KINDS[kind])
    axes.set_yticks(range(len(rows)), [f"{model}{seed}" for model, seed in rows], fontsize=8)
    axes.invert_yaxis()
    label(axes, "attention (red) and feed-forward (blue)", "block")


def draw(document: dict[str, Any], path: Path) -> None:
    def row(panels: Any, name: str) -> None:
        about = document["experiments"][name]
        title = f"{about['data']['name']}, {about['settings']['blocks']} blocks"
        perplexities(panels[0], of_experiment(document, "curves", name), title)
        latencies(panels[1], of_experiment(document, "rows", name), about["data"]["scored"])
        layouts(panels[2], of_experiment(document, "layouts", name))

    pictures.draw(path, list(document["experiments"]), row)


if __name__ == "__main__":
    pictures.main(draw)
