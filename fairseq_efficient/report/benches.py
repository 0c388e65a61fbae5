"""The page of several benchmarks: what is faster and what is slower than what it is measured against."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from fairseq_efficient.bench.machine import describe
from fairseq_efficient.bench.rows import Row, read_rows, seconds, summary
from fairseq_efficient.report import figures
from fairseq_efficient.report.parts import Code, Figure, Page, Section, Table, Text, Tiles

GAIN, LOSS = 1, 0  # series
HEAD = ("row", "ours", "baseline", "times faster", "goal", "bound", "MB")


def bars(rows: Sequence[Row]) -> Markup:
    """Ratios as bars from 1, on a logarithmic scale: to the right ours is faster. A stroke is a goal."""

    def plot(axes: Axes) -> None:
        places = range(len(rows))
        colors = [figures.series_color(GAIN if row.ratio >= 1 else LOSS) for row in rows]
        axes.set_xscale("log")
        axes.barh(places, [row.ratio - 1 for row in rows], left=1, color=colors, height=0.62)
        for place, row in zip(places, rows, strict=True):
            axes.text(max(row.ratio, row.goal or 1, 1), place, f"  {row.ratio:.3g}x", va="center", fontsize=8)
        goals = [(row.goal, place) for place, row in zip(places, rows, strict=True) if row.goal is not None]
        if goals:
            where, at = [goal for goal, _ in goals], [place for _, place in goals]
            axes.scatter(where, at, marker="|", s=160, color=figures.series_color(3), label="goal")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
        axes.set_yticks(places, [row.name for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        values = [row.ratio for row in rows] + [goal for goal, _ in goals if goal is not None]
        axes.set_xlim(0.9 * min(1.0, *values), 1.3 * max(1.2, *values))
        ticks = [scale * step for scale in (0.01, 0.1, 1, 10, 100, 1000) for step in (1, 2, 5)]
        axes.set_xticks([tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")

    return figures.draw(plot, "how many times faster than its baseline each row is", height=0.28 * len(rows) + 0.9)


def _compares(row: Row) -> bool:
    """Whether a row measures ours against something else that does the same work."""
    return row.unit == "x" and not row.at_most and not row.name.rpartition("/vs_")[2].isdigit()


def _cells(row: Row) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"{'<=' if row.at_most else '>='} {row.goal:g}{row.unit}"
    verdict = {None: "", True: ", met", False: ", missed"}[row.met]
    memory = [row.ours_mb, row.baseline_mb]
    return (
        row.name,
        seconds(row.ours_s),
        seconds(row.baseline_s),
        f"{row.ratio:.2f}x" if row.value == row.ratio else f"{row.ratio:.2f}x ({row.value:.3g}{row.unit})",
        goal + verdict,
        "" if row.bound is None else f"{row.bound:.2f}x",
        "" if memory == [None, None] else " / ".join("-" if one is None else f"{one:,.0f}" for one in memory),
    )


def section(title: str, document: dict[str, Any]) -> Section:
    """Of one benchmark's JSON."""
    rows = read_rows(document)
    drawn = [row for row in rows if _compares(row)]
    notes = (
        [] if document.get("settings", {}).get("complete", True) else [Text("Interrupted: rows are missing.", "note")]
    )
    figure = (
        [Figure(bars(drawn), "Times faster than the baseline, on a logarithmic scale; left of 1: slower.")]
        if drawn
        else []
    )
    table = Table(HEAD, [_cells(row) for row in rows], f"{summary(rows)}. bound: ratio of FLOPs; MB: ours / baseline.")
    return Section(title, [*notes, *figure, table, Code("command", str(document.get("command", "")))])


def page(documents: dict[str, dict[str, Any]], failed: Sequence[str] = ()) -> Page:
    """``documents``: title -> what a benchmark wrote. ``failed``: titles of those that wrote nothing."""
    rows = {title: read_rows(document) for title, document in documents.items()}
    everything = [row for found in rows.values() for row in found]
    judged = [row for row in everything if row.met is not None]
    slower = [row for row in everything if row.ratio < 1 and _compares(row)]
    first = next(iter(documents.values()), {})
    machine = describe(first["machine"]) if first else "nothing was measured"
    tiles = [
        ("rows", str(len(everything)), f"{len(documents)} benchmarks"),
        ("goals met", f"{sum(row.met is True for row in judged)} of {len(judged)}", ""),
        ("rows where ours is slower", str(len(slower)), ", ".join(row.name for row in slower[:3])),
    ]
    parts: list[Any] = [Tiles(tiles)]
    parts += [Text(f"Failed, see the output: {', '.join(failed)}.", "note")] if failed else []
    sections = [Section("In short", parts), *(section(title, document) for title, document in documents.items())]
    versions = ", ".join(f"{name} {version}" for name, version in first.get("versions", {}).items())
    footer = [("machine", machine), ("versions", versions), ("commit", str(first.get("commit", ""))[:10]),
              ("date", str(first.get("date", "")))]  # fmt: skip
    return Page("Benchmarks", machine, sections, footer)
