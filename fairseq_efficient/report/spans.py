"""How far heads looked over a training, drawn and written down."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from fairseq_efficient.report.figures import draw_canvas, series_color
from fairseq_efficient.report.span_log import SpanLog

_MAP = "viridis"


def over_training(found: SpanLog, description: str) -> Markup:
    """A small panel for each layer: a faint line for each head, and their mean."""
    layers = found.last.shape[0]
    columns = min(layers, 4)
    rows = -(-layers // columns)

    def plot(canvas: Any) -> None:
        every = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for layer, axes in enumerate(every):
            axes.patch.set_alpha(0)
            if layer >= layers:
                axes.set_visible(False)
                continue
            values = found.values[:, layer]
            axes.plot(found.updates, values, color=series_color(0), linewidth=0.9, alpha=0.5)
            axes.plot(found.updates, values.mean(1), color=series_color(1))
            axes.set_title(f"layer {layer + 1}: {values[-1].mean():,.0f}", loc="left", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.set_ylim(bottom=0)
            if layer % columns == 0:
                axes.set_ylabel("tokens")
            if layer + columns >= layers:
                axes.set_xlabel("update")
                axes.tick_params(axis="x", labelbottom=True)

    return draw_canvas(plot, description, height=0.6 + 1.5 * rows)


def heat_map(found: SpanLog, description: str) -> Markup:
    """Spans at the end, layers from bottom to top, heads from left to right, on a logarithmic scale."""
    layers, heads = found.last.shape

    def plot(canvas: Any) -> None:
        axes = canvas.add_subplot()
        low, high = max(found.last.min(), 1.0), max(found.last.max(), 2.0)
        edges = np.arange(heads + 1) + 0.5, np.arange(layers + 1) + 0.5
        norm = LogNorm(vmin=min(low, high / 2), vmax=high)
        image = axes.pcolormesh(*edges, np.maximum(found.last, 1.0), norm=norm, cmap=_MAP, rasterized=True)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.grid(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        bar = canvas.colorbar(image, ax=axes, label="tokens", shrink=0.9)
        for place in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
            place("{x:,.0f}")

    return draw_canvas(plot, description, width=max(3.2, 1.8 + 0.3 * heads), height=min(1.4 + 0.16 * layers, 6.0))


def exported(runs: Mapping[str, Mapping[str, Any]], spans: Mapping[str, SpanLog]) -> dict[str, Any]:
    """What ``--json`` writes: the numbers of each run, and its spans over training."""
    document: dict[str, Any] = {"runs": []}
    for name, numbers in runs.items():
        one: dict[str, Any] = {"name": name, **numbers}
        if name in spans:
            found = spans[name]
            one["spans"] = {
                "unit": "keys that a head sees at most",
                "updates": found.updates.tolist(),
                "by_layer_and_head": found.values.tolist(),
                "last": found.last.tolist(),
                "mean": float(found.last.mean()),
                "max": float(found.last.max()),
                "mean_of_layers": found.last.mean(1).tolist(),
                "max_of_layers": found.last.max(1).tolist(),
            }
        document["runs"].append(one)
    return document


def rows_of(found: SpanLog) -> tuple[list[str], Sequence[Sequence[str]]]:
    """Head and rows of the table of spans at the end: a row for each layer, and all layers together."""
    layers, heads = found.last.shape
    head = ["layer", *(str(number + 1) for number in range(heads)), "mean", "max"]
    rows = [
        [str(layer + 1), *(f"{one:,.0f}" for one in found.last[layer]), f"{found.last[layer].mean():,.1f}",
         f"{found.last[layer].max():,.0f}"]
        for layer in range(layers)
    ]  # fmt: skip
    both = [f"{found.last.mean():,.1f}", f"{found.last.max():,.0f}"]
    by_head = [f"{one:,.1f}" for one in found.last.mean(0)]
    return head, [*rows, ["all", *by_head, *both]]
