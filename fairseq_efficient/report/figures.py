"""Figures as inline SVG that take their colours from the page, so that they are legible in both themes and in print.

matplotlib draws with stand-in colours; each is then replaced by a CSS variable of ``templates/style.css``. Text stays
text (no embedded font), and nothing in the markup refers outside.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

_ROLES = ("ink", "muted", "line", "paper")
_STAND_INS = {role: f"#0a0b0{i}" for i, role in enumerate(_ROLES)}
WIDTH = 7.2  # inches of a figure as wide as the page
SERIES = 8  # --series-0 ... --series-7 in style.css
_MARKS = "os^DvPX*"  # of series, so that colour is not all that tells them apart
_SERIES_STAND_INS = [f"#0a0c0{i}" for i in range(SERIES)]
STEPS = 8  # shades between --kept-low and --kept-high
_STEP_STAND_INS = [f"#0a0d0{i}" for i in range(STEPS)]
_numbers = itertools.count()


@dataclass(frozen=True)
class Line:
    """One curve; ``dots`` marks its points, ``dashed`` and ``faint`` set it apart.

    ``series`` numbers its colour (default: its place among the lines); without a label it is not in the legend.
    ``notes`` stand beside its points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    dashed: bool = False
    faint: bool = False
    series: int | None = None
    notes: Sequence[str] = ()


def series_color(number: int) -> str:
    """Of a line or bar; they repeat."""
    return _SERIES_STAND_INS[number % SERIES]


def step_color(step: int, steps: int) -> str:
    """Shade of ``step`` (1 to ``steps``, the last one strongest), as the kept tokens of a document are coloured."""
    return _STEP_STAND_INS[round((STEPS - 1) * (step - 1) / max(steps - 1, 1)) if steps > 1 else STEPS - 1]


def _variables() -> dict[str, str]:
    found = {value: f"var(--{role})" for role, value in _STAND_INS.items()}
    found.update({value: f"var(--series-{i})" for i, value in enumerate(_SERIES_STAND_INS)})
    for i, value in enumerate(_STEP_STAND_INS):
        share = round(100 * i / (STEPS - 1))
        found[value] = f"color-mix(in srgb, var(--step-high) {share}%, var(--step-low))"
    return found


def draw(plot: Callable[[Axes], None], description: str, width: float = WIDTH, height: float = 3.0) -> Markup:
    """Let ``plot`` draw into axes of so many inches and return the SVG. ``description`` is read by screen readers."""

    def one(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0)
        plot(axes)

    return draw_canvas(one, description, width, height)


def draw_canvas(plot: Callable[[Canvas], None], description: str, width: float = WIDTH, height: float = 3.0) -> Markup:
    """:func:`draw` for a whole figure, which ``plot`` divides into axes."""
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _STAND_INS["line"],
        "axes.labelcolor": _STAND_INS["muted"],
        "axes.titlecolor": _STAND_INS["ink"],
        "text.color": _STAND_INS["ink"],
        "xtick.color": _STAND_INS["muted"],
        "ytick.color": _STAND_INS["muted"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": _STAND_INS["line"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        canvas.patch.set_alpha(0)
        plot(canvas)
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=True)
    return _inline(file.getvalue(), description, width)


def _inline(svg: str, description: str, width: float) -> Markup:
    """Only the ``<svg>`` element: no namespace or metadata addresses, ids made unique, colours from the page; narrow
    ones stay narrow, so that letters have one size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    prefix = f"f{next(_numbers)}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', lambda m: m[1] or m[2], svg, count=1)
    for stand_in, variable in _variables().items():
        svg = svg.replace(stand_in, variable)
    narrow = Markup('style="max-width: {:.1f}%" ').format(100 * width / WIDTH) if width < WIDTH else Markup("")
    label = Markup('<svg role="img" aria-label="{}" {}').format(description, narrow)
    return Markup(svg.replace("<svg ", label, 1).strip())


def _plot_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        series = number if line.series is None else line.series
        marks: dict[str, Any] = {}
        if line.dots or len(line.x) < 3:
            marks = {"marker": _MARKS[series % SERIES] if line.series is not None else "o", "markersize": 4}
        faint: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.45} if line.faint else {}
        label = line.label or "_"  # which matplotlib leaves out of legends
        dash = "--" if line.dashed else "-"
        axes.plot(line.x, line.y, color=series_color(series), label=label, linestyle=dash, **marks, **faint)
        for x, y, note in zip(line.x, line.y, line.notes, strict=False):
            axes.annotate(note, (x, y), (4, 4), textcoords="offset points", fontsize=8, color=_STAND_INS["ink"])
    if any(line.notes for line in lines):
        axes.margins(x=0.25, y=0.12)  # room for them


def _scale(axes: Axes, top: float | None, percent: bool) -> None:
    if percent:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    elif top is not None and top > axes.get_ylim()[0]:
        axes.set_ylim(top=top)


def curves(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    description: str,
    height: float = 3.0,
    top: float | None = None,
    percent: bool = False,
) -> Markup:
    """Lines over updates. ``top`` cuts the axis; ``percent``: values are shares of one."""

    def plot(axes: Axes) -> None:
        _plot_lines(axes, lines)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        _scale(axes, top, percent)
        if sum(bool(line.label) for line in lines) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), labelcolor="linecolor")

    return draw(plot, description, height=height)


@dataclass(frozen=True)
class Panel:
    """One of several axes side by side; ``percent``: its values are shares of one."""

    title: str
    lines: Sequence[Line]
    x_label: str = "update"
    y_label: str = ""
    percent: bool = False


def panels(
    parts: Sequence[Panel], description: str, height: float = 3.2, top: float | None = None, share: bool = True
) -> Markup:
    """Panels side by side with one legend below; they ``share`` the y axis, which ``top`` cuts, or not."""

    def plot(canvas: Canvas) -> None:
        every = canvas.subplots(1, len(parts), sharey=share, squeeze=False)[0]
        shown: dict[str, Any] = {}
        for axes, part in zip(every, parts, strict=True):
            axes.patch.set_alpha(0)
            _plot_lines(axes, part.lines)
            axes.set_title(part.title, loc="left", fontsize=10)
            axes.set_xlabel(part.x_label)
            axes.set_ylabel(part.y_label)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            _scale(axes, top, part.percent)
            handles, labels = axes.get_legend_handles_labels()
            for handle, label in zip(handles, labels, strict=True):
                shown.setdefault(label, handle)
        if len(shown) > 1:
            handles, labels = list(shown.values()), list(shown)
            canvas.legend(handles, labels, loc="outside lower center", ncols=4, labelcolor="linecolor")

    return draw_canvas(plot, description, height=height)


def histograms(
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    means: Sequence[float],
    series: Sequence[int],
    x_label: str,
    description: str,
) -> Markup:
    """A small panel for each name: ``shares[name][i]`` (0 to 1) of length i + 1, the last one "or more"; its mean."""
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    longest = max(map(len, shares))

    def plot(canvas: Canvas) -> None:
        every = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for number, axes in enumerate(every):
            axes.patch.set_alpha(0)
            if number >= len(names):
                axes.set_visible(False)
                continue
            color = series_color(series[number])
            axes.bar(range(1, len(shares[number]) + 1), shares[number], 0.86, color=color)
            axes.axvline(means[number], color=_STAND_INS["ink"], linewidth=1, linestyle=(0, (1, 2)))
            axes.set_title(f"{names[number]}\nmean {means[number]:.1f}", loc="left", fontsize=9)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axes.set_xlim(0.3, longest + 0.7)
            if number + columns >= len(names):
                axes.set_xlabel(x_label)
                axes.tick_params(axis="x", labelbottom=True)

    return draw_canvas(plot, description, height=0.5 + 1.6 * rows if columns > 1 else 2.4)


def bars(
    groups: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    intervals: Sequence[Sequence[tuple[float, float]]],
    y_label: str,
    description: str,
) -> Markup:
    """Groups of bars, one bar per name: ``values[name][group]`` and its interval (low, high)."""

    def plot(axes: Axes) -> None:
        wide = 0.8 / len(names)
        for number, name in enumerate(names):
            at = [group + (number - (len(names) - 1) / 2) * wide for group in range(len(groups))]
            axes.bar(at, values[number], 0.92 * wide, color=series_color(number), label=name)
            pairs = list(zip(values[number], intervals[number], strict=True))
            errors = [[value - low for value, (low, _) in pairs], [high - value for value, (_, high) in pairs]]
            if any(map(any, errors)):
                axes.errorbar(at, values[number], errors, fmt="none", ecolor=_STAND_INS["ink"], elinewidth=1, capsize=2)
            for x, (value, (_, high)) in zip(at, pairs, strict=True):
                axes.annotate(f"{value:.1f}", (x, high), (0, 2), textcoords="offset points", ha="center", fontsize=9)
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(y_label)
        axes.margins(y=0.12)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(names))

    return draw(plot, description)


def kept_by_place(
    layers: Sequence[str], shares: Sequence[Sequence[float]], even: Sequence[float], description: str
) -> Markup:
    """Share of tokens kept (0 to 1) over the place in the document, a step line per layer; ``even``: kept overall."""

    def plot(axes: Axes) -> None:
        for number, (layer, share, mean) in enumerate(zip(layers, shares, even, strict=True)):
            color = step_color(number + 1, len(layers))
            edges = [100 * i / len(share) for i in range(len(share) + 1)]
            axes.stairs(share, edges, baseline=None, color=color, linewidth=1.8, label=layer)
            axes.axhline(mean, color=color, linewidth=1, linestyle=(0, (1, 3)))
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("place in the document")
        axes.set_ylabel("tokens kept")
        axes.xaxis.set_major_formatter(PercentFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return draw(plot, description, height=3.2)
