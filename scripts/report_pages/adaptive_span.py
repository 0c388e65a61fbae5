"""The page of language models whose heads learn how far they look: bits, spans, time and memory."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json
from fairseq_efficient.report import language_models as lm
from fairseq_efficient.report import spans
from fairseq_efficient.report.eval_log import read_evaluation
from fairseq_efficient.report.figures import Line, Panel, panels
from fairseq_efficient.report.parts import Figure, Page, Section, Table, Tiles
from fairseq_efficient.report.span_log import SpanLog, read_spans
from fairseq_efficient.report.stages import read_stages
from fairseq_efficient.report.train_log import read_train_log
from report_pages.common import RUN, find_files, footer, load_model, run_names, updates_of

HELP = "language models whose heads learn how far they look"
EPILOG = """
Several RUNs are compared on one page, each by its folder's name. Of each is read what is in its folder:
  train.log          fairseq-train --log-format json --log-file RUN/train.log (or its output)
  eval-SUBSET.log    output of fairseq-eval-lm: bits on the test split
  stages.json        time and memory: a list of {"name", "seconds", "peak_mb"}
A RUN that is a checkpoint gives the spans at the end, if there is no log that has them.
Spans are in keys that a head sees at most: the learned span and its ramp.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=RUN)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument("--names", metavar="A,B,...", help="names of the runs (default: by their folders)")
    parser.add_argument("--subset", default="test", help="split of evaluation (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write the numbers and all spans here, too")


@dataclass(frozen=True)
class Run:
    """What is known of a run; ``spans`` of learned ones only."""

    model: lm.LanguageModel
    spans: SpanLog | None

    @property
    def name(self) -> str:
        return self.model.name

    def numbers(self) -> dict[str, Any]:
        """What the table shows, as numbers; None where it is not known."""
        log, stage = self.model.log, self.model.train_stage
        bits = self.model.bits()[1]
        return {
            "updates": log.updates if log else None,
            "valid_bpc": bits[-1] if bits else None,
            "test_bpc": self.model.evaluation.bits if self.model.evaluation else None,
            "test_tokens": self.model.evaluation.tokens if self.model.evaluation else None,
            "mean_span": float(self.spans.last.mean()) if self.spans else None,
            "max_span": float(self.spans.last.max()) if self.spans else None,
            "seconds_per_update": log.step_seconds() if log else None,
            "train_seconds": stage.seconds if stage else None,
            "peak_mb": stage.peak_mb if stage else None,
        }


def build(args: argparse.Namespace) -> Page:
    """The page; UserError for a flag or file that is wrong."""
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: no such folder")
    runs = [read(name, folder, args.subset) for name, folder in zip(run_names(args), args.runs, strict=True)]
    if not any(run.model.log or run.model.evaluation or run.model.stages or run.spans for run in runs):
        raise UserError(f"{args.runs[0]}: nothing to report (see --help for the files that are looked for)")
    if args.json is not None:
        found = {run.name: run.spans for run in runs if run.spans is not None}
        write_json(args.json, spans.exported({run.name: run.numbers() for run in runs}, found))
    models = [run.model for run in runs]
    sections = [results_section(runs, args.subset), lm.bits_section(models), means_section(runs)]
    sections += [span_section(run) for run in runs if run.spans is not None]
    sections.append(lm.stages_section(models))
    names = ", ".join(run.name for run in runs)
    title = "Adaptive spans" + (f": {names}" if len(runs) == 1 else "")
    subtitle = "Language models whose heads learn how far they look" + (f": {names}." if len(runs) > 1 else ".")
    return Page(title, subtitle, [section for section in sections if section], footer())


def read(name: str, named: Path, subset: str) -> Run:
    places = {"train_log": ["train.log"], "evaluation": [f"eval-{subset}.log"], "stages": ["stages.json"]}
    files = find_files(named, places)
    log = read_train_log(files["train_log"]) if files["train_log"] else None
    evaluation = read_evaluation(files["evaluation"]) if files["evaluation"] else None
    stages = read_stages(files["stages"]) if files["stages"] else []
    model = lm.LanguageModel(name, log, evaluation=evaluation, stages=stages)
    found = read_spans(log) if log else None
    if found is None and named.is_file():
        found = spans_of(named)
    return Run(model, found)


def spans_of(checkpoint: Path) -> SpanLog | None:
    """Spans that the weights have; None where they are fixed. UserError for another model."""
    model = load_model(checkpoint, "adaptive_span").model
    if not hasattr(getattr(model, "decoder", None), "span_widths"):
        raise UserError(f"{checkpoint}: not a sequential_lm")
    if all(layer.self_attn.spans is None for layer in model.decoder.layers):
        return None
    return SpanLog(np.array([updates_of(checkpoint)]), np.array([model.decoder.span_widths()], dtype=np.float64))


# --- sections -------------------------------------------------------------------------------------------------------


def results_section(runs: Sequence[Run], subset: str) -> Section:
    """One row for each run: bits, spans, time and memory side by side."""
    columns = (
        ("updates", "updates", 0), ("valid bits", "valid_bpc", 3), (f"{subset} bits", "test_bpc", 4),
        ("mean span", "mean_span", 1), ("max span", "max_span", 0), ("s / update", "seconds_per_update", 3),
        ("memory, MB", "peak_mb", 0),
    )  # fmt: skip
    numbers = [run.numbers() for run in runs]
    kept = [column for column in columns if any(one[column[1]] is not None for one in numbers)]
    rows = []
    for run, one in zip(runs, numbers, strict=True):
        cells = ["" if one[key] is None else f"{one[key]:,.{digits}f}" for _, key, digits in kept]
        rows.append([run.name, *cells])
    caption = "Bits per token of the data. Spans: keys that a head sees at most, over all heads and layers."
    tokens = sorted({one["test_tokens"] for one in numbers if one["test_tokens"]})
    if tokens:
        caption += f" {subset}: over {' or '.join(f'{count:,}' for count in tokens)} tokens."
    ranked = [one["test_bpc"] or one["valid_bpc"] or float("inf") for one in numbers]
    best = ranked.index(min(ranked)) if len(runs) > 1 and min(ranked) < float("inf") else None
    table = Table(["", *(title for title, _, _ in kept)], rows, caption, strong=best)
    tiles = []
    for run, one in list(zip(runs, numbers, strict=True))[:4]:
        bits = one["test_bpc"] or one["valid_bpc"]
        if bits is not None:
            what = f"bits ({subset if one['test_bpc'] else 'validation'})"
            detail = f"{what}; mean span {one['mean_span']:,.0f}" if one["mean_span"] else what
            tiles.append((run.name, f"{bits:.3f}", detail))
    return Section("Results", [*([Tiles(tiles)] if tiles else []), table])


def means_section(runs: Sequence[Run]) -> Section | None:
    """Mean and longest span of each run over updates."""
    learned = [(number, run) for number, run in enumerate(runs) if run.spans is not None]
    if not learned:
        return None
    parts = []
    for title, name in (("mean over all heads", "mean_span"), ("longest of all heads", "max_span")):
        lines = [Line(run.name, *run.model.series(name, training=True), series=number) for number, run in learned]
        parts.append(Panel(title, [line for line in lines if line.x], "update", "tokens"))
    if not all(part.lines for part in parts):
        return None
    svg = panels(parts, "Mean and longest span over updates.", share=False)
    return Section("How far heads look", [Figure(svg, "Keys that a head sees at most, over training.")])


def span_section(run: Run) -> Section:
    """Spans of one run: over training, and at the end as a picture and as a table."""
    found = run.spans
    assert found is not None
    head, rows = spans.rows_of(found)
    about = f"Spans of {run.name}"
    over: list[Figure] = []
    when = f"after {found.updates[-1]:,} updates" if found.updates[-1] else "in the checkpoint"
    if len(found.updates) > 1:
        svg = spans.over_training(found, f"{about}: each head of each layer over {found.updates[-1]:,} updates")
        over = [Figure(svg, "Each head (faint) and the mean of each layer's heads, over updates; the mean at the end.")]
    heat = spans.heat_map(found, f"{about} at the end, layers against heads")
    return Section(
        about,
        [
            *over,
            Figure(heat, "Spans at the end, layer by layer (the first at the bottom), on a logarithmic scale."),
            Table(head, rows, f"Keys that each head sees at most, {when}."),
        ],
    )
