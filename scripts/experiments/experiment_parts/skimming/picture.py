"""Draw quality over speed, a panel for each data set: picture.py RESULTS.json PICTURE.png."""

from pathlib import Path
from typing import Any

from experiment_parts import pictures
from experiment_parts.pictures import GREY, INK, finish, label
from fairseq_efficient.report.speed_quality import LIMIT, SpeedQuality

OURS, THEIRS = "#00798c", "#d1495b"
COLUMNS = 3


def panel(axes: Any, found: SpeedQuality) -> None:
    every = found.points()
    stock = every[0].seconds
    skimmed = sorted(point for point in every if point.name in found.skimmed)
    axes.plot([stock / p.seconds for p in skimmed], [p.quality for p in skimmed], color=OURS, marker="o", ms=5, lw=1.6)
    for point in every:
        x = stock / point.seconds
        if point not in skimmed:
            axes.plot([x], [point.quality], color=THEIRS, marker="s" if point is every[0] else "D", ms=5, ls="")
        axes.annotate(point.name, (x, point.quality), (4, 4), textcoords="offset points", fontsize=7, color=INK)
    dense = found.dense
    if dense is not None:
        axes.axhline(dense, color=GREY, lw=0.8, ls=":")
        axes.axhline(dense - LIMIT, color=GREY, lw=0.8, ls="--")
    x = f"times as fast as fairseq, batch {found.headline[0]}, as texts come"
    label(axes, found.about["title"], x, found.about["metric_title"])
    axes.margins(x=0.12, y=0.12)
    finish(axes)


def draw(document: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    every = [found for name in document["sets"] if (found := SpeedQuality.of(document, name)).points()]
    columns = max(min(len(every), COLUMNS), 1)
    rows = max(-(-len(every) // columns), 1)
    figure = pyplot.figure(figsize=(4.6 * columns, 0.4 + 3.6 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, found in zip(places, every, strict=False):
        panel(axes, found)
    for axes in places[len(every) :]:
        axes.set_visible(False)
    note = f"Dotted: the dense model; dashed: {LIMIT:g} point below."
    figure.suptitle(note, fontsize=8, color=GREY, x=0.01, ha="left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    pictures.main(draw)
