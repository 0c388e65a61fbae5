"""What a search over architectures has found so far, drawn: probabilities of each block's kind over training."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from PIL import Image

from fairseq_efficient.files import write_bytes
from fairseq_efficient.report.figures import draw_canvas
from fairseq_efficient.report.train_log import INNER, TrainLog

KINDS = {"a": "attention", "f": "feed-forward", "i": "identity"}
_NAME = re.compile(r"block/(\d+)/([afi])$")
_MAP = "viridis"
_SECONDS = 12.0  # of a moving picture, without the time that its last frame stays


@dataclass(frozen=True)
class Probabilities:
    """``values`` (steps, blocks, kinds), fp64, each row a distribution; ``updates`` (steps,) at which it was logged."""

    updates: np.ndarray
    values: np.ndarray

    @property
    def layout(self) -> str:
        """The most probable kind of each block at the end."""
        return "".join(list(KINDS)[choice] for choice in self.values[-1].argmax(-1))

    def last(self, kind: str) -> np.ndarray:
        """(blocks,) at the end."""
        return self.values[-1, :, list(KINDS).index(kind)]


def read_probabilities(log: TrainLog) -> Probabilities | None:
    """Those that training logged as ``block/NN/{a,f,i}``; None if there are none. Steps that lack one are left out."""
    updates: list[int] = []
    rows: list[list[list[float]]] = []
    blocks = 1 + max((int(found[1]) for values in log.entries.get(INNER, {}).values() for name in values
                      if (found := _NAME.match(name))), default=-1)  # fmt: skip
    for update, values in sorted(log.entries.get(INNER, {}).items()):
        row = [[values.get(f"block/{block:02d}/{kind}", np.nan) for kind in KINDS] for block in range(blocks)]
        if blocks and np.isfinite(row).all() and (np.sum(row, 1) > 0).all():
            updates.append(update)
            rows.append(row)
    if not rows:
        return None
    array = np.array(rows, dtype=np.float64)
    return Probabilities(np.array(updates), array / array.sum(-1, keepdims=True))  # they are logged rounded


def frames(found: Probabilities) -> np.ndarray:
    """(steps, kinds, blocks): one picture for each logged step; what stands over a block adds up to 1."""
    return found.values.transpose(0, 2, 1)


def _top(found: Probabilities) -> float:
    """Where the colours end: a search that is undecided is not all of one colour."""
    return float(np.ceil(10 * found.values.max()) / 10)


def _over_training(canvas: Any, found: Probabilities) -> None:
    """A heat map for each kind, blocks from bottom to top, updates from left to right."""
    axes = canvas.subplots(1, len(KINDS), sharey=True, squeeze=False)[0]
    edges = np.concatenate([[0.0], found.updates.astype(float)])
    edges[-1] = max(edges[-1], 1.0)  # of one step, at no known update
    image = None
    for number, (one, name) in enumerate(zip(axes, KINDS.values(), strict=True)):
        image = one.pcolormesh(edges, np.arange(found.values.shape[1] + 1) - 0.5, found.values[:, :, number].T,
                               vmin=0, vmax=_top(found), cmap=_MAP, rasterized=True)  # fmt: skip
        one.set_title(name, loc="left", fontsize=10)
        one.set_xlabel("update")
        one.grid(False)
        one.yaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("block")
    canvas.colorbar(image, ax=list(axes), label="probability", shrink=0.9)


def heat_map(found: Probabilities, description: str) -> Markup:
    """Probabilities over training, for a page."""
    height = 1.6 + 0.12 * found.values.shape[1]
    return draw_canvas(lambda canvas: _over_training(canvas, found), description, height=min(height, 6.0))


def write_png(path: Path, found: Probabilities) -> None:
    """The same as a file."""
    canvas = Canvas(figsize=(9, min(1.6 + 0.12 * found.values.shape[1], 6.0)), layout="constrained", dpi=120)
    _over_training(canvas, found)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def gif(found: Probabilities) -> bytes:
    """A moving picture with as many frames as steps were logged: kinds against blocks, and the likeliest of each."""
    pictures = frames(found)
    blocks = pictures.shape[2]
    canvas = Canvas(figsize=(max(4.0, 0.34 * blocks + 1.6), 2.2), layout="constrained", dpi=80)
    agg = FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    image = axes.imshow(pictures[0], vmin=0, vmax=_top(found), cmap=_MAP, aspect="auto")
    axes.set_yticks(range(len(KINDS)), list(KINDS.values()))
    axes.set_xticks(range(0, blocks, 1 if blocks <= 16 else 4))
    axes.set_xlabel("block")
    title = axes.set_title(" ", loc="left", fontsize=9)
    marks = axes.plot(np.arange(blocks), np.zeros(blocks), "o", color="white", markeredgecolor="black", markersize=5)[0]
    drawn = []
    for update, picture in zip(found.updates, pictures, strict=True):
        image.set_data(picture)
        marks.set_ydata(picture.argmax(0))
        title.set_text(f"update {update:,}: {''.join(list(KINDS)[one] for one in picture.argmax(0))}")
        agg.draw()
        pixels = np.asarray(agg.buffer_rgba())[..., :3]
        drawn.append(Image.fromarray(pixels.copy()).quantize(64, dither=Image.Dither.NONE))
    each = [max(20, round(1000 * _SECONDS / len(drawn)))] * len(drawn)
    each[-1] += 2000
    buffer = io.BytesIO()
    drawn[0].save(buffer, format="GIF", save_all=True, append_images=drawn[1:], duration=each, loop=0)
    return buffer.getvalue()


def write_gif(path: Path, found: Probabilities) -> None:
    """:func:`gif` as a file."""
    write_bytes(path, gif(found))


def embedded_gif(found: Probabilities, description: str) -> Markup:
    """:func:`gif` for a page, inside it."""
    data = base64.b64encode(gif(found)).decode()
    image = Markup('<img alt="{}" style="max-width: 100%" src="data:image/gif;base64,{}">')
    return image.format(description, data)


def share_of_attention(all_found: Sequence[Probabilities]) -> np.ndarray:
    """(blocks,): in how many of several searches of one depth each block ended as attention."""
    layouts = [one.layout for one in all_found]
    return np.array([[kind == "a" for kind in layout] for layout in layouts], dtype=float).mean(0)
