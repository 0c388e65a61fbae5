"""The page of dynamic-pooling language models: one run, or several side by side."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least
from fairseq_efficient.report import language_models as lm
from fairseq_efficient.report.eval_log import read_evaluation
from fairseq_efficient.report.parts import Page
from fairseq_efficient.report.segments import Segmentation, lengths_section, text_section
from fairseq_efficient.report.stages import read_stages
from fairseq_efficient.report.train_log import read_train_log
from fairseq_efficient.text.prepared import read_report
from report_pages.common import CHECKPOINTS, RUN, find_files, folder_of, footer, load_model, run_names

HELP = "language models that pool characters to segments"
EPILOG = """
Several RUNs are compared on one page, each by its folder's name. Of each is read what is in its folder:
  train.log                         fairseq-train --log-format json --log-file RUN/train.log (or its output)
  checkpoint_best.pt                or checkpoint_last.pt, also in checkpoints/, or RUN itself: draws its segments
  eval-SUBSET.log                   output of fairseq-eval-lm: bits on the test split
  stages.json                       time and memory: a list of {"name", "seconds", "peak_mb"}
The text is a document of the data that the first model was trained on, or --text FILE, cleaned as that data was.
"""
TOKENIZER = "unigram tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=RUN)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument("--names", metavar="A,B,...", help="names of the runs (default: by their folders)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data (default: RUN/data, or as trained)")
    parser.add_argument("--subset", default="test", help="split of evaluation and text (default: %(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to cut, UTF-8, instead of the split's")
    parser.add_argument("--document", type=int, default=0, metavar="N", help="document to show (default: %(default)s)")
    parser.add_argument(
        "--shown", type=int, default=700, metavar="N", help="characters of it to show (default: %(default)s)"
    )
    parser.add_argument(
        "--characters", type=int, default=20_000, metavar="N", help="characters in the histogram (default: %(default)s)"
    )


@dataclass
class Run:
    """A run's files and, where there is a checkpoint, its model."""

    name: str
    folder: Path
    files: dict[str, Path | None]
    model: Any = None
    task: Any = None
    data: str = ""


@dataclass
class Texts:
    """Documents to cut; the first is shown. ``reference``: the same, cut by the tokenizer of the data."""

    source: str
    documents: list[str] = field(default_factory=list)
    reference: list[list[str]] = field(default_factory=list)


def build(args: argparse.Namespace) -> Page:
    """The page; UserError for a flag or file that is wrong."""
    check_least(args, 0, "document")
    check_least(args, 1, "shown", "characters")
    runs = [Run(name, folder_of(run), find(run, args)) for name, run in zip(run_names(args), args.runs, strict=True)]
    if not any(run.files[name] for run in runs for name in ("train_log", "checkpoint", "evaluation", "stages")):
        raise UserError(f"{args.runs[0]}: nothing to report (see --help for the files that are looked for)")
    for run in runs:
        load(run, args.data)
    models = [described(run) for run in runs]
    sections = [
        lm.results_section(models),
        lm.bits_section(models),
        lm.boundaries_section(models),
        lm.agreement_section(models),
        *segment_sections(runs, args),
        lm.stages_section(models),
    ]
    names = ", ".join(run.name for run in runs)
    title = "Dynamic token pooling" + (f": {names}" if len(runs) == 1 else "")
    subtitle = "Language models that read characters, think in segments and write characters"
    subtitle += f": {names}." if len(runs) > 1 else f" ({models[0].kind})." if models[0].kind else "."
    return Page(title, subtitle, [section for section in sections if section], footer())


def find(run: Path, args: argparse.Namespace) -> dict[str, Path | None]:
    places = {
        "train_log": ["train.log"],
        "checkpoint": CHECKPOINTS,
        "evaluation": [f"eval-{args.subset}.log"],
        "stages": ["stages.json"],
    }
    return find_files(run, places)


def load(run: Run, data: Path | None) -> None:
    """The model of a run's checkpoint, if there is one."""
    path = run.files["checkpoint"]
    if path is None:
        return
    beside = run.folder / "data"
    loaded = load_model(path, "dynamic_pooling", data or (beside if beside.is_dir() else None))
    run.model, run.task, run.data = loaded.model, loaded.task, str(loaded.data)
    if not hasattr(getattr(run.model, "decoder", None), "boundary_rule"):
        raise UserError(f"{path}: not a dynamic_pooling_lm")


def described(run: Run) -> lm.LanguageModel:
    log, evaluation, stages = (run.files[name] for name in ("train_log", "evaluation", "stages"))
    kind, layers, parameters = "", "", None
    if run.model is not None:
        options = run.model.decoder.options
        kind = options.boundaries.type
        kind += f" {options.boundaries.fixed_sf}" if kind == "fixed" else ""
        layers = "-".join(map(str, options.layout)) if options.layout.shortened else str(options.layout.pre)
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return lm.LanguageModel(
        run.name,
        read_train_log(log) if log else None,
        kind,
        layers,
        parameters,
        read_evaluation(evaluation) if evaluation else None,
        read_stages(stages) if stages else [],
    )


# --- text -----------------------------------------------------------------------------------------------------------


def segment_sections(runs: Sequence[Run], args: argparse.Namespace) -> list[Any]:
    """The text cut by each model, and how long the segments are; nothing without a model that has segments."""
    cutting = [run for run in runs if run.model is not None and run.model.decoder.boundary_rule is not None]
    if not cutting:
        return []
    from dynamic_pooling.segmentation import TextSegmenter

    texts = file_texts(cutting[0], args) if args.text else split_texts(cutting[0], args)
    found, notes = [], []
    for run in cutting:
        segmenter, series = TextSegmenter(run.model, run.task.source_dictionary), runs.index(run)
        documents = [segmenter.segments(text) for text in texts.documents]
        found.append(segmentation(run.name, documents, args.shown, series))
        if segmenter.unknown:
            notes.append(f"{segmenter.unknown:,} characters are unknown to {run.name}.")
    if texts.reference:
        found.append(segmentation(TOKENIZER, texts.reference, args.shown, len(runs)))
    characters = sum(map(len, texts.documents))
    return [text_section(found, texts.source, notes), lengths_section(found, characters)]


def segmentation(name: str, documents: list[list[str]], shown: int, series: int) -> Segmentation:
    """The first ``shown`` characters, and the lengths of all segments but each document's last, which may be cut."""
    segments: list[str] = []
    for document in documents:
        for segment in document:
            left = shown - sum(map(len, segments))
            if left > 0:
                segments.append(segment[:left])
        if document is not documents[-1] and sum(map(len, segments)) < shown:
            segments[-1] += "\n"
    return Segmentation(name, segments, [len(one) for document in documents for one in document[:-1]], series)


def file_texts(run: Run, args: argparse.Namespace) -> Texts:
    """The beginning of ``--text``, cleaned as the data was."""
    from fairseq_efficient.text.language_models.clean import clean_text

    try:
        text = args.text.read_bytes().decode("utf-8-sig")
    except OSError as err:
        raise UserError(f"--text {args.text}: {err.strerror}") from None
    except UnicodeDecodeError as err:
        raise UserError(f"--text {args.text}: not UTF-8 (byte {err.start + 1})") from None
    options = (read_report(Path(run.data)) or {}).get("options") or {}
    text = text[: 8 * args.characters].replace("\0", " ")
    if options.get("newlines") == "space":
        text = text.replace("\n", " ")
    text = clean_text(text, options.get("clean") or "none", options.get("lang") or "en")[: args.characters]
    if not text:
        raise UserError(f"--text {args.text}: no text in it")
    return Texts(f"The beginning of {args.text.name}", [text])


def split_texts(run: Run, args: argparse.Namespace) -> Texts:
    """Documents of the split from ``--document`` on, up to ``--characters``."""
    try:
        run.task.load_dataset(args.subset)
    except FileNotFoundError:
        raise UserError(f"{run.data}: no split {args.subset!r} (--subset)") from None
    dataset = run.task.dataset(args.subset)
    stream, sizes = dataset.stream, dataset.stream.sizes
    if args.document >= len(sizes):
        raise UserError(f"--document {args.document}: {args.subset} has {len(sizes):,} documents, counted from 0")
    texts = Texts(f"The beginning of document {args.document} of {args.subset}")
    start = int(sizes[: args.document].sum())
    end = min(start + args.characters, len(stream))
    words = run.task.source_dictionary
    symbols = [words[index] for index in stream.slice(start, end).tolist()]
    closed = [] if dataset.sides is None else dataset.sides.slice(start, end).tolist()
    place = 0
    for size in sizes[args.document :].tolist():
        if place >= len(symbols):
            break
        part, ends = symbols[place : place + size], closed[place : place + size]
        length = len(part) - (part[-1] == words[words.eos()])
        if length:
            texts.documents.append(decode(part[:length], words))
            if ends:
                texts.reference.append(cut(part[:length], ends[:length], words))
        place += size
    if not texts.documents:
        raise UserError(f"--document {args.document}: has no text")
    return texts


def decode(symbols: list[str], words: Any) -> str:
    from dynamic_pooling.segmentation import is_of_bytes
    from fairseq_efficient.text.symbols import decode_bytes, decode_characters

    shown = " ".join("\ufffd" if symbol == words[words.unk()] else symbol for symbol in symbols)
    return decode_bytes(shown) if is_of_bytes(words) else decode_characters(shown)


def cut(symbols: list[str], closed: list[int], words: Any) -> list[str]:
    """Text of the segments that end where ``closed`` is 1."""
    found, start = [], 0
    for place, ends in enumerate(closed, start=1):
        if ends or place == len(symbols):
            found.append(decode(symbols[start:place], words))
            start = place
    return found
