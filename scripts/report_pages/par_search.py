"""The page of PAR searches: which kind each block came to be, and the nets that were trained from that."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.report import architecture
from fairseq_efficient.report.eval_log import Evaluation, read_evaluation
from fairseq_efficient.report.figures import Line, Panel, panels
from fairseq_efficient.report.parts import Figure, Page, Section, Table, Text, Tiles
from fairseq_efficient.report.train_log import INNER, TrainLog, read_train_log
from report_pages.common import RUN, find_files, folder_of, footer, load_model, run_names, updates_of

HELP = "searches for the place of attention, and language models with the layouts found"
EPILOG = """
Several RUNs are compared on one page, each by its folder's name. Of each is read what is in its folder:
  train.log          fairseq-train --log-format json --log-file RUN/train.log (or its output)
  eval-SUBSET.log    output of fairseq-eval-lm
A RUN that is a checkpoint gives the probabilities at the end, or the layout, if there is no log that has them.
A run whose log has probabilities of blocks is a search; --png and --gif draw those of the first search.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=RUN)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument("--names", metavar="A,B,...", help="names of the runs (default: by their folders)")
    parser.add_argument("--subset", default="test", help="split of evaluation (default: %(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="write the heat map of the first search here, too")
    parser.add_argument("--gif", type=Path, metavar="FILE.gif", help="write its moving picture here, too")


@dataclass
class Run:
    """What is known of a run; ``found`` of a search only, ``layout`` of a net whose checkpoint was read."""

    name: str
    log: TrainLog | None
    evaluation: Evaluation | None
    found: architecture.Probabilities | None
    layout: str = ""

    def series(self, name: str, training: bool = False) -> tuple[list[int], list[float]]:
        if self.log is None:
            return [], []
        sets = self.log.valid_sets
        tag = INNER if training else "valid" if "valid" in sets or not sets else sets[0]
        return self.log.series(tag, name)

    def last(self, name: str) -> float | None:
        values = self.series(name)[1]
        return values[-1] if values else None


def build(args: argparse.Namespace) -> Page:
    """The page; UserError for a flag or file that is wrong."""
    runs = [read(name, folder, args.subset) for name, folder in zip(run_names(args), args.runs, strict=True)]
    if not any(run.log or run.evaluation or run.found or run.layout for run in runs):
        raise UserError(f"{args.runs[0]}: nothing to report (see --help for the files that are looked for)")
    searches = [run for run in runs if run.found is not None]
    for flag, path in (("--png", args.png), ("--gif", args.gif)):
        if path is not None and not searches:
            raise UserError(f"{flag} {path}: none of the runs is a search (its log has no probabilities of blocks)")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{flag} {path}: no such folder")
    if args.png is not None:
        architecture.write_png(args.png, searches[0].found)  # type: ignore[arg-type]
    if args.gif is not None:
        architecture.write_gif(args.gif, searches[0].found)  # type: ignore[arg-type]
    sections = [results_section(runs, args.subset), loss_section(runs)]
    sections += [search_section(run) for run in searches]
    sections += [schedule_section(searches), agreement_section(searches)]
    names = ", ".join(run.name for run in runs)
    title = "PAR search" + (f": {names}" if len(runs) == 1 else "")
    subtitle = "Where a Transformer-XL needs attention" + (f": {names}." if len(runs) > 1 else ".")
    return Page(title, subtitle, [section for section in sections if section], footer())


def read(name: str, named: Path, subset: str) -> Run:
    train_log = find_files(named, {"train_log": ["train.log"]})["train_log"]
    log = read_train_log(train_log) if train_log else None
    found, layout = architecture.read_probabilities(log) if log else None, ""
    if found is None and named.is_file():
        found, layout = learned(named)
    scored = folder_of(named) / f"eval-{subset}.log"
    if found is not None and not scored.exists():  # of a search, whose layout is trained, and evaluated, elsewhere
        return Run(name, log, None, found)
    file = find_files(named, {"evaluation": [scored.name]})["evaluation"]
    return Run(name, log, read_evaluation(file) if file else None, found, layout)


def learned(checkpoint: Path) -> tuple[architecture.Probabilities | None, str]:
    """What a search found, as its weights have it, or the layout of a net. UserError for another model."""
    decoder: Any = getattr(load_model(checkpoint, "par_search").model, "decoder", None)
    if hasattr(decoder, "alpha"):
        values = decoder.probabilities().detach().double().numpy()[None]
        return architecture.Probabilities(np.array([updates_of(checkpoint)]), values), ""
    layout = getattr(decoder, "layout", None)
    if not isinstance(layout, str):
        raise UserError(f"{checkpoint}: neither a par_supernet nor a par_lm")
    return None, layout


# --- sections -------------------------------------------------------------------------------------------------------


def results_section(runs: Sequence[Run], subset: str) -> Section:
    """One row for each run; perplexities are of tokens, whatever these are."""
    rows = []
    for run in runs:
        step = run.log.step_seconds() if run.log else None
        rows.append([
            run.name,
            run.found.layout if run.found else run.layout,
            f"{run.log.updates:,}" if run.log else "",
            _number(run.last("ppl"), 2),
            _number(2**run.evaluation.bits if run.evaluation else None, 2),
            _number(step, 3),
        ])  # fmt: skip
    layouts = "layout" if any(run.layout for run in runs) else "most probable layout"
    head = ["", layouts, "updates", "valid ppl", f"{subset} ppl", "s / update"]
    kept = [0] + [i for i in range(1, len(head)) if any(row[i] for row in rows)]
    tokens = sorted({run.evaluation.tokens for run in runs if run.evaluation})
    caption = "Perplexity of a token."
    if tokens:
        caption += f" {subset}: over {' or '.join(f'{count:,}' for count in tokens)} tokens."
    table = Table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], caption)
    tiles = [(run.name, _number(run.last("ppl"), 2), "validation perplexity") for run in runs[:4] if run.last("ppl")]
    return Section("Results", [*([Tiles(tiles)] if tiles else []), table])


def loss_section(runs: Sequence[Run]) -> Section | None:
    """Bits per token over updates: training faint, validation dotted."""
    lines = []
    for number, run in enumerate(runs):
        lines.append(Line("", *run.series("loss", training=True), faint=len(runs) > 1, series=number))
        lines.append(Line(run.name, *run.series("loss"), dots=True, series=number))
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    svg = panels([Panel("", lines, "update", "bits per token")], "Bits per token over updates.")
    return Section("Loss", [Figure(svg, "Bits per token over updates. Dots: validation; lines without: training.")])


def search_section(run: Run) -> Section:
    """The probabilities of one search, standing and moving."""
    found = run.found
    assert found is not None
    layout = found.layout
    count = layout.count("a")
    places = [place + 1 for place, kind in enumerate(layout) if kind == "a"]
    when = f"at update {found.updates[-1]:,}" if found.updates[-1] else "in the checkpoint"
    text = f"Most probable {when}: {layout}, {count} of {len(layout)} blocks are attention"
    text += f", the last one is block {places[-1]}." if places else "."
    sure = found.values[-1].max(-1)
    text += f" The surest block is {sure.max():.0%} sure, the least sure one {sure.min():.0%}."
    described = f"Probability of each kind for each block over {found.updates[-1]:,} updates of {run.name}"
    heat = architecture.heat_map(found, described)
    caption = "How probable each kind is, block by block (the first at the bottom)"
    if len(found.updates) == 1:
        return Section(f"What {run.name} found", [Text(text), Figure(heat, f"{caption}, {when}.")])
    moving = architecture.embedded_gif(found, f"{described}, step by step")
    return Section(
        f"What {run.name} found",
        [
            Text(text),
            Figure(heat, f"{caption}, over training."),
            Figure(moving, f"The same, one frame for each of the {len(found.updates):,} steps that were logged."),
        ],
    )


def schedule_section(searches: Sequence[Run]) -> Section | None:
    """Temperature, entropy and expected cost over updates."""
    parts = []
    for name, title, label in (("tau", "temperature", ""), ("arch_entropy", "entropy of a block", "nats"),
                               ("arch_cost", "expected cost of all blocks", "GFLOP or ms")):  # fmt: skip
        lines = [Line(run.name, *run.series(name, training=True), series=i) for i, run in enumerate(searches)]
        lines = [line for line in lines if line.x]
        if lines:
            parts.append(Panel(title, lines, "update", label))
    if not parts:
        return None
    svg = panels(parts, "Temperature, entropy and expected cost over updates.", share=False)
    return Section("The search itself", [Figure(svg, "What went down during the search.")])


def agreement_section(searches: Sequence[Run]) -> Section | None:
    """In how many of several searches each block is attention."""
    found = [run.found for run in searches if run.found is not None]
    if len(found) < 2 or len({len(one.layout) for one in found}) > 1:
        return None
    shares = architecture.share_of_attention(found)
    rows = [[run.name, run.found.layout, str(run.found.layout.count("a"))] for run in searches if run.found]
    rows.append(
        ["share with attention", "".join("·123456789█"[round(10 * one)] for one in shares), f"{shares.sum():.1f}"]
    )
    table = Table(["", "layout", "attention"], rows, "Last row, in tenths: · none, 5 half, █ all of the searches.")
    return Section("Where several searches agree", [table])


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
