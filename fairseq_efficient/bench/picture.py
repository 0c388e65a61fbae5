"""Rows as a picture: time over size, and each ratio with its goal and FLOP bound."""

from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

from fairseq_efficient.bench.rows import Row
from fairseq_efficient.errors import UserError

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
COLORS = ("#d1495b", "#edae49", "#66a182", "#2e4057", "#8d6a9f")
OURS = "#00798c"
SHADES = (OURS, "#5bc0be", "#0b3954")
DASHES = ("--", ":", "-.")


def draw(path: Path, rows: list[Row], ours: str, subtitle: str = "", sizes: str = "source tokens") -> None:
    """Write a PNG (or whatever the file's ending says). UserError if it cannot be written.

    Args:
        ours: what the lines of ours begin with.
        sizes: what the rows' sizes are.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = {what: found for what, found in time_series(rows, ours).items() if _points(found) > 2}  # two are no curve
    bars = [row for row in rows if row.unit == "x" and not row.at_most]
    if not bars and not series:
        return
    tops = max(len(series), 1)
    height = 0.3 * len(bars) + 1.2
    figure = pyplot.figure(figsize=(5.2 * max(tops, 2), (4.2 if series else 0) + height), layout="constrained")
    both: Any = figure.subfigures(2, 1, height_ratios=[4.2, height]) if series and bars else [figure, figure]
    if series:
        axes = both[0].subplots(1, tops, squeeze=False)[0]
        for axis, (what, found) in zip(axes, series.items(), strict=True):
            _draw_lines(axis, what, found, ours, sizes)
    if bars:
        _draw_bars(both[1].subplots(), bars)
    if subtitle:
        figure.suptitle(subtitle, fontsize=9, color=GREY)
    try:
        figure.savefig(path, dpi=144)
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: {err}") from None
    finally:
        pyplot.close(figure)


Series = dict[str, dict[int, float]]


def time_series(rows: list[Row], ours: str) -> dict[str, Series]:
    """what -> line -> {size: seconds}, for rows whose baseline is a model (not another size or an operator).

    Rows that time a single step stay out: their neighbours on the axis time a whole summary. So do rows whose ``lines``
    have no name.
    """
    found: dict[str, Series] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        what, size, *variant, baseline = row.name.split("/")
        baseline = baseline.removeprefix("vs_")
        if row.unit != "x" or row.at_most or baseline.isdigit() or "one step" in row.note:
            continue
        lines = row.lines or (" ".join([ours, *variant]), baseline)
        for line, seconds in zip(lines, (row.ours_s, row.baseline_s), strict=True):
            if line:
                found[what][line][int(size)] = seconds
    return {what: dict(lines) for what, lines in found.items()}


def _points(lines: Series) -> int:
    return max(len(points) for points in lines.values())


def _draw_lines(axis: Any, what: str, lines: Series, ours: str, label: str) -> None:
    others, variants = cycle(COLORS), cycle((shade, dash) for shade in SHADES for dash in DASHES)
    for name, points in lines.items():
        mine = name.startswith(ours)
        color, dash = (OURS, "-") if mine else (next(others), "-")
        if mine and " " in name:
            color, dash = next(variants)
        style = {"color": color, "ls": dash, "lw": 2.2 if mine else 1.6}
        axis.plot(sorted(points), [points[size] for size in sorted(points)], marker="o", ms=4, label=name, **style)
    sizes = sorted({size for points in lines.values() for size in points})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(what.replace("_", " "), loc="left", color=INK)
    axis.set_xlabel(label, color=GREY)
    axis.set_ylabel("seconds", color=GREY)
    axis.grid(color=LIGHT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


def _draw_bars(axis: Any, rows: list[Row]) -> None:
    """Bars to the right of 1 are gains, to the left losses; a logarithmic scale."""
    from matplotlib.ticker import NullLocator

    places = range(len(rows))
    shades = [OURS if row.met is not False else COLORS[0] for row in rows]
    axis.set_xscale("log")
    axis.barh(places, [row.ratio - 1 for row in rows], left=1, color=shades, height=0.62)
    for place, row in zip(places, rows, strict=True):
        end = max(row.ratio, row.goal or 0.0, row.bound or 0.0, 1.0)
        axis.text(end, place, f"  {row.ratio:.3g}x", va="center", fontsize=8, color=INK)
    goals = [(place, row.goal) for place, row in zip(places, rows, strict=True) if row.goal is not None]
    bounds = [(place, row.bound) for place, row in zip(places, rows, strict=True) if row.bound is not None]
    if goals:
        axis.scatter([g for _, g in goals], [p for p, _ in goals], marker="|", s=160, color=INK, label="goal", zorder=3)
    if bounds:
        axis.scatter(
            [b for _, b in bounds],
            [p for p, _ in bounds],
            marker="d",
            s=18,
            color=COLORS[1],
            label="FLOP bound",
            zorder=3,
        )
    axis.set_yticks(places, [row.name for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)  # the first on top, without matplotlib's margins
    values = [row.ratio for row in rows] + [value for _, value in goals + bounds]
    axis.set_xlim(0.9 * min(1.0, *values), 1.25 * max(1.2, *values))
    ticks = [scale * step for scale in (0.01, 0.1, 1, 10, 100, 1000) for step in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]])
    axis.xaxis.set_major_formatter("{x:g}x")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.axvline(1, color=GREY, lw=1)
    axis.set_title("times faster than the baseline", loc="left", color=INK)
    axis.grid(axis="x", color=LIGHT)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    if goals or bounds:
        axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
