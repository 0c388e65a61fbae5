"""Sections of a report on character language models, one or several side by side: bits, boundaries, time and memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq_efficient.report.eval_log import Evaluation
from fairseq_efficient.report.figures import Line, Panel, panels
from fairseq_efficient.report.parts import Code, Figure, Section, Table, Text, Tiles
from fairseq_efficient.report.stages import Stage, duration
from fairseq_efficient.report.train_log import INNER, TrainLog

AGREEMENTS = {  # metric -> in short, title, what boundaries are compared with
    "spaces": ("spaces", "Agreement with spaces", "spaces and document ends"),
    "unigram": ("tokenizer", "Agreement with the unigram tokenizer", "where the tokenizer's pieces end"),
    "boundary": ("its target", "Agreement with what the predictor is taught", "spikes of the model's own entropy"),
}


@dataclass(frozen=True)
class LanguageModel:
    """What is known of a run; None or "" where it is not."""

    name: str
    log: TrainLog | None = None
    kind: str = ""  # of boundaries
    layers: str = ""
    parameters: int | None = None
    evaluation: Evaluation | None = None
    stages: Sequence[Stage] = ()

    @property
    def valid(self) -> str:
        """The validation set of the log."""
        sets = self.log.valid_sets if self.log else []
        return "valid" if "valid" in sets or not sets else sets[0]

    def series(self, name: str, training: bool = False) -> tuple[list[int], list[float]]:
        return self.log.series(INNER if training else self.valid, name) if self.log else ([], [])

    def bits(self, training: bool = False) -> tuple[list[int], list[float]]:
        """Bits per character; other criteria than ours log them as the loss."""
        found = self.series("bpc", training)
        return found if found[0] else self.series("loss", training)

    def last(self, name: str) -> float | None:
        values = self.series(name)[1] or self.series(name, training=True)[1]
        return values[-1] if values else None

    @property
    def train_stage(self) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == "train"), None)


Series = Callable[[LanguageModel, bool], tuple[Sequence[float], Sequence[float]]]


def _lines(models: Sequence[LanguageModel], series: Series, more: Sequence[tuple[str, Series]] = ()) -> list[Line]:
    """One model: training, validation and ``more``. Several: a colour for each, training faint."""
    lines = []
    if len(models) == 1:
        lines = [Line("training", *series(models[0], True), series=1), Line("validation", *series(models[0], False),
                 dots=True, series=0)]  # fmt: skip
        extra = [(name, one(models[0], False)) for name, one in more]
        lines += [Line(name, *found, dots=True, dashed=True, series=2 + i) for i, (name, found) in enumerate(extra)]
    else:
        for number, model in enumerate(models):
            lines.append(Line("", *series(model, True), faint=True, series=number))
            lines.append(Line(model.name, *series(model, False), dots=True, series=number))
    return [line for line in lines if line.x]


def named(name: str) -> Series:
    """A series that is called what fairseq logs it as."""
    return lambda model, training: model.series(name, training)


FEWEST = 0.01  # boundary rate below which a shortening factor says nothing


def _factor(name: str = "") -> Series:
    """Characters in a segment, where there are segments."""

    def series(model: LanguageModel, training: bool) -> tuple[list[int], list[float]]:
        found = zip(*model.series(f"{name}shortening_factor", training), strict=True)
        pairs = [(update, value) for update, value in found if value <= 1 / FEWEST]
        return [update for update, _ in pairs], [value for _, value in pairs]

    return series


def _bits(model: LanguageModel, training: bool) -> tuple[Sequence[float], Sequence[float]]:
    return model.bits(training)


def _bits_by_minute(model: LanguageModel, training: bool) -> tuple[Sequence[float], Sequence[float]]:
    """Bits over minutes in training steps; validations between two lines of the log stand between their times."""
    known, seconds = model.log.seconds() if model.log else ([], [])
    if not known:
        return [], []
    updates, bits = model.bits(training)
    return list(np.interp(updates, [0, *known], [0, *seconds]) / 60), list(bits)


def settled(lines: Sequence[Line], share: float = 0.1) -> float | None:
    """Where to cut an axis so that the first falls of a loss do not flatten the rest; None: nowhere.

    What is dotted (validation) decides, if anything is.
    """
    telling = [line for line in lines if line.dots] or lines
    late = [y for line in telling for x, y in zip(line.x, line.y, strict=True) if x >= share * max(line.x)]
    top = max(late) + 0.1 * (max(late) - min(late)) if late else 0.0
    return top if late and max(late) > min(late) and max(y for line in lines for y in line.y) > top else None


_KEY = "Dots: validation; faint: training."


def bits_section(models: Sequence[LanguageModel]) -> Section | None:
    """Bits per character over updates and over time."""
    lines = _lines(models, _bits)
    if not lines:
        return None
    parts = [Panel("over updates", lines, "update", "bits per character")]
    timed = _lines(models, _bits_by_minute)
    if any(line.x[-1] for line in timed):
        parts.append(Panel("over time", timed, "minutes in training steps"))
    top = settled(lines)
    ends = "; ".join(f"{model.name} ends at {values[-1]:.3f}" for model in models if (values := model.bits()[1]))
    caption = f"Bits per character, validation: {ends}." if ends else "Bits per character in training."
    caption += f" {_KEY}" if len(models) > 1 else ""
    caption += " The axis leaves out the first updates." if top is not None else ""
    svg = panels(parts, f"Bits per character over updates and over time. {ends}", top=top)
    notes = [Text(f"{sum(m.log.broken for m in models if m.log):,} lines of the logs were broken and left out.")]
    broken = any(model.log and model.log.broken for model in models)
    return Section("Bits per character", [Figure(svg, caption), *(notes if broken else [])])


def boundaries_section(models: Sequence[LanguageModel]) -> Section | None:
    """Shortening factor and boundary rate over updates."""
    factor = _lines(models, _factor(), [("as sampled in training", _factor("sampled_"))])
    rate = _lines(models, named("boundary_rate"), [("mean probability", named("boundary_prob"))])
    if not rate:
        return None
    parts = [
        Panel("shortening factor", factor, y_label="characters per segment"),
        Panel("boundary rate", rate, y_label="share of characters", percent=True),
    ]
    ends = "; ".join(f"{m.name}: {_shortening(m)}" for m in models if m.last("boundary_rate") is not None)
    caption = f"Characters in a segment, at the end {ends}; and the share of characters that end one."
    caption += f" {_SAMPLED}" if "(" in ends else ""
    caption += f" {_KEY}" if len(models) > 1 else ""
    svg = panels(parts, f"Shortening factor and boundary rate over updates. {ends}", share=False, top=settled(factor))
    return Section("Where segments end", [Figure(svg, caption), *_collapsed(models)])


def _collapsed(models: Sequence[LanguageModel]) -> list[Text]:
    """A word on models whose boundaries are there only when they are sampled."""
    found = []
    for model in models:
        rate, sampled = model.last("boundary_rate"), model.last("sampled_shortening_factor")
        if rate is not None and rate < FEWEST:
            few = "no" if rate == 0 else "hardly any"
            text = f"{model.name} ends {few} segment in validation"
            if sampled:
                text += f": {few} boundary is more likely than not. Sampled as in training, segments have "
                text += f"{sampled:.1f} characters (--gumbel-eval sampled evaluates so)"
            found.append(Text(f"{text}.", "note"))
    return found


def _agreement(name: str) -> Series:
    """Series of an agreement; of unigram, which is taught the tokenizer's pieces, not that with its target again."""

    def series(model: LanguageModel, training: bool) -> tuple[list[int], list[float]]:
        twice = name.startswith("boundary") and model.kind == "unigram"
        return ([], []) if twice else model.series(name, training)

    return series


def agreement_section(models: Sequence[LanguageModel]) -> Section | None:
    """Precision and recall of boundaries against spaces, a tokenizer and the predictor's target."""
    parts: list[Any] = []
    head, cells = [""], [[model.name] for model in models]
    for metric, (short, title, what) in AGREEMENTS.items():
        series = {share: _agreement(f"{metric}_{share}") for share in ("precision", "recall")}
        drawn = [Panel(f"{short}: {share}", _lines(models, one), percent=True) for share, one in series.items()]
        if not all(panel.lines for panel in drawn):
            continue
        svg = panels(drawn, f"{title}, over updates", height=2.9)
        caption = f"{title}: precision is the share of boundaries that are {what}, recall the share of those found."
        parts.append(Figure(svg, caption + (f" {_KEY}" if len(models) > 1 else "")))
        for share, one in series.items():
            head.append(f"{short}: {share}")
            for row, model in zip(cells, models, strict=True):
                values = one(model, False)[1] or one(model, True)[1]
                row.append(f"{100 * values[-1]:.1f} %" if values else "")
    if not parts:
        return None
    rows = [row for row in cells if any(row[1:])]
    return Section("Agreement", [*parts, Table(head, rows, "At the end, on the validation set.")])


def results_section(models: Sequence[LanguageModel]) -> Section:
    """One row for each model, and the headline in tiles."""
    columns: list[tuple[str, Callable[[LanguageModel], str]]] = [
        ("boundaries", lambda m: m.kind),
        ("layers", lambda m: m.layers),
        ("parameters", lambda m: f"{m.parameters:,}" if m.parameters else ""),
        ("updates", lambda m: f"{m.log.updates:,}" if m.log else ""),
        ("valid bits", lambda m: _number(m.bits()[1][-1] if m.bits()[1] else None, 3)),
        ("test bits", lambda m: _number(m.evaluation.bits if m.evaluation else None, 4)),
        ("shortening", _shortening),
        ("s / update", lambda m: _number(m.log.step_seconds() if m.log else None, 3)),
        ("training", lambda m: duration(m.log.seconds()[1][-1]) if m.log and m.log.seconds()[1] else ""),
        ("memory", lambda m: f"{m.train_stage.peak_mb:,.0f} MB" if m.train_stage else ""),
    ]
    cells = [[model.name, *(make(model) for _, make in columns)] for model in models]
    kept = [0] + [i for i in range(1, len(columns) + 1) if any(row[i] for row in cells)]
    if all(model.kind in ("", "none") or model.kind.replace(" ", "") == model.name for model in models):
        kept = [i for i in kept if i != 1]  # the names say it
    head = ["", *(name for name, _ in columns)]
    caption = "Bits per character; shortening: characters in a segment (validation)"
    caption += f". {_SAMPLED}" if any("(" in row[7] for row in cells) else "."
    tokens = sorted({model.evaluation.tokens for model in models if model.evaluation})
    if tokens:
        counts = " or ".join(f"{count:,}" for count in tokens)
        caption += f" Test bits are over {counts} characters, document ends among them."
    best = min(range(len(models)), key=lambda i: _rank(models[i])) if len(models) > 1 else None
    table = Table([head[i] for i in kept], [[row[i] for i in kept] for row in cells], caption, strong=best)
    tiles = _tiles(sorted(models, key=_rank)[:4]) if len(models) > 1 else _tiles_of_one(models[0])
    return Section("Results", [*([Tiles(tiles)] if tiles else []), table])


def _rank(model: LanguageModel) -> float:
    if model.evaluation:
        return model.evaluation.bits
    return model.bits()[1][-1] if model.bits()[1] else float("inf")


def _tiles(models: Sequence[LanguageModel]) -> list[tuple[str, str, str]]:
    tiles = []
    for model in models:
        if _rank(model) == float("inf"):
            continue
        split = "test" if model.evaluation else "validation"
        factor = _shortening(model)
        detail = f"{factor} characters a segment" if factor and factor[0] != "n" else "no segments"
        tiles.append((model.name, f"{_rank(model):.3f}", f"bits per character ({split}); {detail}"))
    return tiles


def _tiles_of_one(model: LanguageModel) -> list[tuple[str, str, str]]:
    tiles = []
    if _rank(model) < float("inf"):
        tiles.append(("bits per character", f"{_rank(model):.3f}", "test" if model.evaluation else "validation"))
    factor = _shortening(model)
    if factor:
        tiles.append(("characters a segment", factor.split(" (")[0], "validation"))
    step = model.log.step_seconds() if model.log else None
    if step is not None:
        tiles.append(("an update", f"{step:.3g} s", "median, training"))
    if model.train_stage:
        tiles.append(("memory", f"{model.train_stage.peak_mb:,.0f} MB", "peak, training"))
    return tiles


_SAMPLED = "In brackets: as boundaries are sampled in training."


def _shortening(model: LanguageModel) -> str:
    rate = model.last("boundary_rate")
    factor, sampled = (model.last(f"{name}shortening_factor") for name in ("", "sampled_"))
    if rate is None or factor is None:
        return ""
    return (f"{factor:.2f}" if rate >= FEWEST else "none") + (f" ({sampled:.2f})" if sampled else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def stages_section(models: Sequence[LanguageModel]) -> Section | None:
    """Time and memory of each stage of each run, with the commands."""
    rows = [
        [model.name, stage.name + ("" if stage.done else " (not finished)"), duration(stage.seconds),
         f"{stage.peak_mb:,.0f} MB", str(stage.runs)]
        for model in models for stage in model.stages
    ]  # fmt: skip
    if not rows:
        return None
    if len(models) == 1:
        rows = [row[1:] for row in rows]
    head = ["run", "stage", "time", "peak memory", "runs"][len(models) == 1 :]
    table = Table(head, rows, "Wall-clock, and the memory of the largest process. Runs: starts that it took.")
    told = [f"# {m.name}: {stage.name}\n{stage.command}" for m in models for stage in m.stages if stage.command]
    return Section("Time and memory", [table, *([Code("Commands", "\n\n".join(told))] if told else [])])
