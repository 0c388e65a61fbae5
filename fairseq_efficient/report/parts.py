"""What a section of a report is made of. Each part is plain data; ``templates/<kind>.html`` draws it.

A new kind of part is a dataclass with a ``kind`` and a template of that name. Text is escaped by the templates; only
:class:`Figure` carries markup, made by :mod:`fairseq_efficient.report.figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from markupsafe import Markup

_WORD_START = "\u2581"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``tone`` "note" sets it apart."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Tiles:
    """Headline numbers: (label, value, detail)."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text; columns from the second on are set as numbers. ``strong``: index of a row to stress."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: int | None = None


@dataclass(frozen=True)
class Figure:
    """An inline SVG and what it shows."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Code:
    """Commands or other text to be shown as it is, folded away under ``title``."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Sample:
    """Texts side by side: (name, text, detail)."""

    title: str
    columns: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Samples:
    """Texts side by side, one group after another."""

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one level. ``space``: a blank goes before them; ``hint``: shown on hover."""

    text: str
    level: int
    space: bool
    hint: str = ""


@dataclass(frozen=True)
class KeptDocument:
    """A document whose tokens are coloured by how many selecting layers they survive.

    Args:
        layers: names of the layers, first one first.
        counts: tokens before the first layer, then after each.
    """

    kind: ClassVar[str] = "kept_document"
    name: str
    runs: Sequence[Run]
    layers: Sequence[str]
    counts: Sequence[int]
    caption: str = ""


def kept_document(
    name: str,
    pieces: Sequence[str],
    levels: Sequence[int],
    hints: Sequence[str],
    layers: Sequence[str],
    caption: str = "",
) -> KeptDocument:
    """Join sentencepiece ``pieces`` to runs by level (0: gone at the first layer); a token with a hint stands alone."""
    keys = [(level, i if hint else -1) for i, (level, hint) in enumerate(zip(levels, hints, strict=True))]
    runs: list[Run] = []
    for (level, number), group in groupby(range(len(pieces)), key=lambda i: keys[i]):
        text = "".join(pieces[i] for i in group)
        hint = hints[number] if number >= 0 else ""
        runs.append(Run(text.replace(_WORD_START, " ").strip(" "), level, text.startswith(_WORD_START), hint))
    counts = [sum(level >= depth for level in levels) for depth in range(len(layers) + 1)]
    return KeptDocument(name, runs, list(layers), counts, caption)


@dataclass(frozen=True)
class SegmentedText:
    """A text whose segments are coloured in turn; the segments joined are the text."""

    kind: ClassVar[str] = "segmented_text"
    name: str
    segments: Sequence[str]
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    title: str
    parts: Sequence[Any]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report. ``footer``: name and value pairs about how it was made."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: Sequence[tuple[str, str]] = field(default_factory=list)
