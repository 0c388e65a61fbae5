"""Sections of a report on systems that cut text into segments: the same text cut by each, and how long segments are."""

from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_efficient.report.figures import histograms
from fairseq_efficient.report.parts import Figure, Section, SegmentedText, Table, Text

LONGEST = 24  # of the histogram; longer segments are counted there
FEWEST = 20  # segments that make a histogram


@dataclass(frozen=True)
class Segmentation:
    """``segments`` of the text that is shown, ``lengths`` of those of a longer one; ``series``: its colour."""

    name: str
    segments: Sequence[str]
    lengths: Sequence[int]
    series: int = 0

    @property
    def mean(self) -> float:
        return sum(self.lengths) / max(len(self.lengths), 1)


def text_section(found: Sequence[Segmentation], source: str, notes: Sequence[str] = ()) -> Section:
    """The text of ``source`` once for each segmentation."""
    blocks = [
        SegmentedText(
            one.name,
            one.segments,
            f"{len(one.segments):,} {'segment' if len(one.segments) == 1 else 'segments'}",
        )
        for one in found
    ]
    lead = f"{source}. Segments are coloured in turn: each ends where the colour changes."
    lead += (
        " ↵ is the end of a line or document." if any("\n" in part for one in found for part in one.segments) else ""
    )
    return Section("The text in segments", [*(Text(note, "note") for note in notes), *blocks], lead)


def shares(lengths: Sequence[int], longest: int) -> list[float]:
    """Share of segments of each length from 1 to ``longest``, which counts those beyond it too."""
    counts = [0] * longest
    for length in lengths:
        counts[min(length, longest) - 1] += 1
    return [count / max(len(lengths), 1) for count in counts]


def lengths_section(found: Sequence[Segmentation], characters: int, unit: str = "characters") -> Section:
    """How long segments are."""
    found = [one for one in found if one.lengths]
    if not found:
        return Section("Lengths of segments", [Text("No segment ends in the text.")])
    drawn = [one for one in found if len(one.lengths) >= FEWEST] or found
    longest = max(min(max(max(one.lengths) for one in drawn), LONGEST), 6)
    described = "; ".join(f"{one.name}: {one.mean:.2f} {unit}" for one in found)
    svg = histograms(
        [one.name for one in drawn],
        [shares(one.lengths, longest) for one in drawn],
        [one.mean for one in drawn],
        [one.series for one in drawn],
        unit,
        f"Share of segments by length. On average {described}",
    )
    cut = any(max(one.lengths) > longest for one in drawn)
    caption = f"Share of segments by length, in {characters:,} {unit}; dotted: the mean."
    caption += f" The last bar counts all from {longest} on." if cut else ""
    rows = []
    for one in found:
        ordered = sorted(one.lengths)
        middle, nine = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9))
        rows.append([one.name, f"{len(ordered):,}", f"{one.mean:.2f}", str(middle), str(nine), str(ordered[-1])])
    table = Table(["", "segments", "mean length", "median", "9 of 10 up to", "longest"], rows)
    return Section("Lengths of segments", [Figure(svg, caption), table])
