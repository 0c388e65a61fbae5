"""The page of models that skip tokens: one run, or several side by side."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least
from fairseq_efficient.report import language_models as lm
from fairseq_efficient.report.figures import Line, Panel, curves, panels
from fairseq_efficient.report.parts import Figure, Page, Section, Table, Text, Tiles, kept_document
from fairseq_efficient.report.speed_quality import DENSE, SpeedQuality, read_speed_quality
from fairseq_efficient.report.stages import Stage, duration, read_stages
from fairseq_efficient.report.train_log import INNER, TrainLog, read_train_log
from fairseq_efficient.text.reading import Bad, read_lines
from report_pages.common import CHECKPOINTS, RUN, find_files, footer, run_names

HELP = "classifiers that skip tokens layer by layer"
EPILOG = """
Several RUNs are compared on one page, each by its folder's name. Of each is read what is in its folder:
  train.log                         fairseq-train --log-format json --log-file RUN/train.log (or its output)
  checkpoint_best.pt                or checkpoint_last.pt, also in checkpoints/, or RUN itself: texts are drawn
  stages.json                       time and memory: a list of {"name", "seconds", "peak_mb"}
The texts are those of the split of the data that the model was trained on, or --text FILE, one a line (of a pair: two,
with a tab between). --results draws quality over the clock, of scripts/experiments/skimming_classification.py.
"""
QUALITY = {"accuracy": "accuracy, %", "f1": "F1, %", "pearson": "Pearson correlation, %"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=RUN)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument("--names", metavar="A,B,...", help="names of the runs (default: by their folders)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data (default: as trained)")
    parser.add_argument("--subset", default="valid", help="split whose texts are drawn (default: %(default)s)")
    parser.add_argument("--document", type=int, default=0, metavar="N", help="first to draw (default: %(default)s)")
    parser.add_argument("--documents", type=int, metavar="N", help="texts to draw (default: 3; of several runs 1 each)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="texts to draw, UTF-8, instead of the split's")
    parser.add_argument("--results", type=Path, metavar="FILE.json", help="quality and speed of an experiment")


@dataclass
class Run:
    """A run's log, stages and, where there is a checkpoint, its model."""

    name: str
    log: TrainLog | None = None
    stages: list[Stage] = field(default_factory=list)
    model: Any = None  # a skimming.drawing.Drawer

    def series(self, name: str, training: bool = False) -> tuple[list[int], list[float]]:
        if self.log is None:
            return [], []
        sets = self.log.valid_sets
        return self.log.series(INNER if training else "valid" if "valid" in sets or not sets else sets[0], name)

    def last(self, name: str) -> float | None:
        values = self.series(name)[1] or self.series(name, training=True)[1]
        return values[-1] if values else None

    @property
    def metric(self) -> str:
        """What its quality is measured by; "" if nothing is logged."""
        return next((name for name in QUALITY if self.series(name)[0] or self.series(name, True)[0]), "")

    @property
    def kept(self) -> list[float]:
        """Share of tokens that enters each layer, at the end."""
        found: list[float] = []
        while (share := self.last(f"keep_l{len(found)}")) is not None:
            found.append(share)
        return found


def build(args: argparse.Namespace) -> Page:
    """The page; UserError for a flag or file that is wrong."""
    documents = args.documents if args.documents is not None else 3 if len(args.runs) == 1 else 1
    check_least(args, 0, "document")
    check_least(args, 1, "documents")
    results = read_speed_quality(args.results) if args.results else []
    runs = [read(name, folder, args.data) for name, folder in zip(run_names(args), args.runs, strict=True)]
    if not any(run.log or run.stages or run.model for run in runs):
        raise UserError(f"{args.runs[0]}: nothing to report (see --help for the files that are looked for)")
    sections = [
        results_section(runs),
        *text_sections(runs, args, documents),
        layers_section(runs),
        clock_section(results),
        learning_section(runs),
        lm.stages_section([lm.LanguageModel(run.name, stages=run.stages) for run in runs]),
    ]
    names = ", ".join(run.name for run in runs)
    title = "Skimming" + (f": {names}" if len(runs) == 1 else "")
    subtitle = "Transformers that skip tokens layer by layer" + (f": {names}." if len(runs) > 1 else ".")
    return Page(title, subtitle, [section for section in sections if section], footer())


def read(name: str, folder: Path, data: Path | None) -> Run:
    places = {"train_log": ["train.log"], "checkpoint": CHECKPOINTS, "stages": ["stages.json"]}
    files = find_files(folder, places)
    run = Run(name)
    if files["train_log"]:
        run.log = read_train_log(files["train_log"])
    if files["stages"]:
        run.stages = read_stages(files["stages"])
    if files["checkpoint"]:
        logging.disable(logging.INFO)
        from skimming.drawing import Drawer

        run.model = Drawer.load(files["checkpoint"], data)
    return run


# --- numbers ---------------------------------------------------------------------------------------------------------


def results_section(runs: Sequence[Run]) -> Section | None:
    """One row for each run: quality, kept tokens, FLOPs, time."""
    rows = []
    for run in runs:
        seconds = run.log.seconds()[1] if run.log else []
        rows.append([
            run.name, f"{run.log.updates:,}" if run.log else "", _number(run.last(run.metric), "{:.2f}"),
            _number(run.last("keep_ratio"), "{:.1%}"),
            *(_number(run.last(f"flops_ratio_{name}"), "{:.2f}x") for name in ("unpadded", "padded", "max_length")),
            _number(run.log.step_seconds() if run.log else None, "{:.3f}"), duration(seconds[-1]) if seconds else "",
        ])  # fmt: skip
    titles = list(dict.fromkeys(QUALITY[run.metric] for run in runs if run.metric))
    head = ["", "updates", " or ".join(titles), "kept", "FLOPs", "padded", "to max length", "s / update", "training"]
    kept = [0] + [i for i in range(1, len(head)) if any(row[i] for row in rows)]
    if len(kept) == 1:
        return None
    caption = "At the end, on the validation set. Kept: tokens that enter a layer, of all real ones. FLOPs: those of a "
    caption += "dense model over ours; against texts without padding, padded to the batch's longest, to the longest."
    tiles = [
        (run.name, _number(run.last("keep_ratio"), "{:.1%}"), "of the tokens kept"
         + (f"; {QUALITY[run.metric].replace(',', f' {run.last(run.metric):.2f}')}" if run.metric else ""))
        for run in runs[:4] if run.last("keep_ratio") is not None
    ]  # fmt: skip
    table = Table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], caption)
    return Section("Results", [*([Tiles(tiles)] if tiles else []), table])


def layers_section(runs: Sequence[Run]) -> Section | None:
    """Share of tokens that enters each layer."""
    found = [(number, run, run.kept) for number, run in enumerate(runs) if run.kept]
    if not found:
        return None
    depth = max(len(kept) for _, _, kept in found)
    lines = [Line(run.name, list(range(len(kept))), kept, dots=True, series=number) for number, run, kept in found]
    described = "; ".join(f"{run.name}: {', '.join(f'{share:.0%}' for share in kept)}" for _, run, kept in found)
    svg = curves(lines, "layer", "tokens that enter", f"Share of tokens by layer. {described}", percent=True)
    rows = [[run.name, *(f"{share:.1%}" for share in kept)] for _, run, kept in found]
    table = Table(["", *(f"layer {layer}" for layer in range(depth))], rows)
    caption = "Share of real tokens that enters each layer, at the end, on the validation set."
    return Section("Tokens by layer", [Figure(svg, caption), table])


def learning_section(runs: Sequence[Run]) -> Section | None:
    """Quality, loss and kept share over updates."""
    metrics = [run.metric for run in runs if run.metric]
    wanted = [(metrics[0], QUALITY[metrics[0]], False)] if metrics else []
    wanted += [("loss", "loss of the task, bits", False), ("keep_ratio", "tokens kept", True)]
    drawn = []
    for name, title, percent in wanted:
        lines = []
        for number, run in enumerate(runs):
            training = Line("", *run.series(name, training=True), faint=True, series=number)
            valid = Line(run.name, *run.series(name), dots=True, series=number)
            lines += [line for line in (training, valid) if line.x]
        if lines:
            drawn.append(Panel(title, lines, percent=percent))
    if not drawn:
        return None
    caption = "Over updates. Dots: validation; faint: training, where it is drawn by lot which tokens are skipped."
    broken = sum(run.log.broken for run in runs if run.log)
    notes = [Text(f"{broken:,} lines of the logs were broken and left out.")] if broken else []
    described = "; ".join(f"{run.name}: {_number(run.last('keep_ratio'), '{:.1%}')} kept" for run in runs)
    svg = panels(drawn, f"Learning curves. At the end {described}", share=False)
    return Section("Learning curves", [Figure(svg, caption), *notes])


def clock_section(results: Sequence[SpeedQuality]) -> Section | None:
    """Quality over the time of a text, a panel for each data set that was timed."""
    drawn = []
    for found in results:
        points, skimmed = found.points(), set(found.skimmed)
        if not points:
            continue
        ours = sorted(point for point in points if point.name in skimmed)
        others = [point for point in points if point.name not in skimmed]
        lines = [_line("skimmed", ours, 0), _line("dense: in fairseq, packed", others, 1, dashed=True)]
        title = f"{found.about['title']}, batch {found.headline[0]}"
        lines = [line for line in lines if line.x]
        drawn.append(Panel(title, lines, "milliseconds a text", str(found.about["metric_title"])))
    if not drawn:
        return None
    figures = []
    for start in range(0, len(drawn), 2):
        some = drawn[start : start + 2]
        told = "; ".join(panel.title for panel in some)
        figures.append(panels(some, f"Quality over milliseconds of a text: {told}", share=False))
    caption = "Upper left is better. Texts in batches as they come, on the machine that the results name."
    parts: list[Any] = [Figure(svg, caption if svg is figures[-1] else "") for svg in figures]
    rows = [
        [found.about["title"], model, _number(found.loss(model), "{:+.2f}"), *(
            _number(found.faster(model, than), "{:.2f}x") for than in ("stock", DENSE, "max_length")
        )]
        for found in results for model in found.skimmed
    ]  # fmt: skip
    head = ["", "", "points lost", "over fairseq", "over dense packed", "over max length"]
    return Section("Quality and the clock", [*parts, Table(head, rows, "How many times faster, and at what cost.")])


def _line(label: str, points: Sequence[Any], series: int, dashed: bool = False) -> Line:
    x, y = [1e3 * point.seconds for point in points], [point.quality for point in points]
    return Line(label, x, y, dots=True, dashed=dashed, series=series, notes=[point.name for point in points])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


# --- texts -----------------------------------------------------------------------------------------------------------


def text_sections(runs: Sequence[Run], args: argparse.Namespace, count: int) -> list[Section]:
    """Texts as each model that skips sees them, tokens shaded by the layers they enter."""
    parts: list[Any] = []
    for run in runs:
        if run.model is None or not run.model.skips:
            continue
        for found in inspected(run, args, count):
            layers = [f"layer {number}" for number in range(len(found.kept))]
            name = f"{run.name}: {found.title}" if len(runs) > 1 else found.title
            levels = [len(layers) if layer is None else layer for layer in found.skipped]
            kept = ", ".join(f"{share:.0%}" for share in found.kept)
            caption = f"Tokens that enter each layer: {kept}."
            parts.append(kept_document(name, found.pieces, levels, [""] * len(levels), layers, caption))
    if not parts:
        return []
    lead = "The stronger the colour, the more layers a token enters; grey ones enter none. ■ is a special token, the "
    lead += "first of which stands for the text and is never skipped."
    return [Section("What is read and what is skipped", parts, lead)]


def inspected(run: Run, args: argparse.Namespace, count: int) -> list[Any]:
    if args.text is None:
        return run.model.of_split(args.subset, args.document, count)
    texts = []
    for line in read_lines(args.text):
        if isinstance(line, Bad):
            raise line.error()
        if line.text.strip():
            texts.append(tuple(line.text.split("\t")))
    if args.document >= len(texts):
        raise UserError(f"--document {args.document}: {args.text} has {len(texts):,} texts, counted from 0")
    return run.model.of_texts(texts[args.document : args.document + count])
