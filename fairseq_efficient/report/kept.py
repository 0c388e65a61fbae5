"""Section of a report on systems that select tokens: what is kept, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_efficient.report.figures import kept_by_place
from fairseq_efficient.report.parts import Figure, KeptDocument, Section, Table, kept_document

PLACES = 20


@dataclass(frozen=True)
class Selection:
    """What one document keeps. ``kept[layer]``: positions that survive it, each within the one before.

    ``scores[layer]`` go with the positions; nan where a layer did not score.
    """

    pieces: Sequence[str]
    kept: Sequence[Sequence[int]]
    scores: Sequence[Sequence[float]]


def levels(selection: Selection) -> list[int]:
    """For each token the number of layers it survives."""
    found = [0] * len(selection.pieces)
    for depth, positions in enumerate(selection.kept, start=1):
        for position in positions:
            found[position] = depth
    return found


def document_part(selection: Selection, layers: Sequence[str], name: str, caption: str = "") -> KeptDocument:
    """The document with its tokens coloured; those that survive everything tell position and score on hover."""
    hints = [""] * len(selection.pieces)
    for position, score in zip(selection.kept[-1], selection.scores[-1], strict=True):
        hints[position] = f"token {position}" + ("" if math.isnan(score) else f", score {score:.3f}")
    return kept_document(name, selection.pieces, levels(selection), hints, layers, caption)


def shares_by_place(selections: Sequence[Selection], places: int = PLACES) -> tuple[list[list[float]], list[float]]:
    """Share of tokens that survive each layer, by place in the document (in ``places`` equal parts) and overall."""
    depth = len(selections[0].kept)
    totals = [0] * places
    kept = [[0] * places for _ in range(depth)]
    for selection in selections:
        length = len(selection.pieces)
        for position in range(length):
            totals[position * places // length] += 1
        for counts, positions in zip(kept, selection.kept, strict=True):
            for position in positions:
                counts[position * places // length] += 1
    shares = [[count / max(total, 1) for count, total in zip(counts, totals, strict=True)] for counts in kept]
    return shares, [sum(counts) / max(sum(totals), 1) for counts in kept]


def kept_section(selections: Sequence[Selection], layers: Sequence[str], shown: KeptDocument, title: str) -> Section:
    """One document in colour, and where in all ``selections`` the kept tokens lie."""
    shares, even = shares_by_place(selections)
    many = f"{len(selections):,} document{'s' if len(selections) > 1 else ''}"
    ends = "; ".join(f"{layer}: {100 * mean:.1f} % kept" for layer, mean in zip(layers, even, strict=True))
    svg = kept_by_place(layers, shares, even, f"Share of tokens kept over the place in the document. {ends}")
    caption = f"Where the kept tokens lie in {many}, each cut into {PLACES} parts. Dotted: the layer's mean."
    tokens = [sum(len(s.kept[depth]) for s in selections) / len(selections) for depth in range(len(layers))]
    before = sum(len(s.pieces) for s in selections) / len(selections)
    rows = [["source", f"{before:,.0f}", "100 %"]]
    rows += [
        [layer, f"{count:,.0f}", f"{100 * count / before:.1f} %"] for layer, count in zip(layers, tokens, strict=True)
    ]
    table = Table(["", "tokens (mean)", "of the source"], rows)
    return Section(title, [shown, Figure(svg, caption), table])
