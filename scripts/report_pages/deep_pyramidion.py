"""The page of a Pyramidion run."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least
from fairseq_efficient.report import kept, stages, summaries, train_log
from fairseq_efficient.report.parts import Page, Section
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.summarization.generate_log import read_generate_log, read_texts
from report_pages.common import CHECKPOINTS, RUN, find_files, folder_of, footer, load_model

HELP = "summaries of long documents"
EPILOG = """
RUN, a folder, is read as scripts/quickstart.sh writes it; flags say what is elsewhere; what is missing is left out:
  train.log                         fairseq-train --log-format json --log-file RUN/train.log
  checkpoint_best.pt                or checkpoint_last.pt, also in checkpoints/, or RUN itself
  data/                             the data folder; SPLIT.source.txt in it (--keep-text) gives the lead summaries
  generate-SPLIT.txt                fairseq-generate --results-path RUN
  scores.json                       scripts/score_rouge.py --json (computed here if missing)
  stages.json                       time and memory: a list of {"name", "seconds", "peak_mb"}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help=RUN)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument("--train-log", type=Path, metavar="FILE", help="training log")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint whose selection is drawn")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data")
    parser.add_argument("--subset", default="test", help="split that was decoded (default: %(default)s)")
    parser.add_argument("--generate-log", type=Path, metavar="FILE", help="output of fairseq-generate")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores of scripts/score_rouge.py")
    parser.add_argument("--stages", type=Path, metavar="FILE", help="time and memory of the stages")
    parser.add_argument("--document", type=int, default=0, metavar="N", help="document to draw (default: %(default)s)")
    parser.add_argument(
        "--documents", type=int, default=32, metavar="N", help="documents in the histogram (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="summaries to show (default: %(default)s)")


def resolve(args: argparse.Namespace) -> None:
    """Fill in what flags leave out from the run's folder; None for what is not there. UserError for a wrong path."""
    places = {
        "train_log": ["train.log"],
        "checkpoint": CHECKPOINTS,
        "data": ["data"],
        "generate_log": [f"generate-{args.subset}.txt", f"generate/generate-{args.subset}.txt"],
        "scores": ["scores.json"],
        "stages": ["stages.json"],
    }
    for name, path in find_files(args.run, places, {name: getattr(args, name) for name in places}).items():
        setattr(args, name, path)
    if not (args.data or args.run.is_file()):
        args.checkpoint = None  # nothing to draw
    if not any((args.train_log, args.checkpoint, args.generate_log, args.scores, args.stages)):
        raise UserError(f"{args.run}: nothing to report (see --help for the files that are looked for)")
    check_least(args, 0, "document", "samples")
    check_least(args, 1, "documents")


def read_split(args: argparse.Namespace) -> summaries.Split | None:
    """References, hypotheses and texts of the decoded split. UserError if their numbers differ."""
    if args.generate_log is None:
        return None
    references, hypotheses = read_generate_log(args.generate_log)
    texts = args.data / f"{args.subset}.source.txt" if args.data else None
    documents = read_texts(texts) if texts is not None and texts.exists() else []
    if documents and len(documents) != len(references):
        raise UserError(f"{texts}: {len(documents):,} documents, but {args.generate_log} has {len(references):,}")
    return summaries.Split(references, hypotheses, documents)


def training_documents(data: Path | None) -> int | None:
    if data is None:
        return None
    try:
        prepared = parse_json((data / "prepare.json").read_bytes())
        return int(prepared["splits"]["train"]["documents"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(args: argparse.Namespace) -> Page:
    """The page of a run; UserError for a flag or file that is wrong."""
    resolve(args)
    log = train_log.read_train_log(args.train_log) if args.train_log else None
    split = read_split(args)
    scores = summaries.read_scores(args.scores) if args.scores else summaries.score_split(split) if split else None
    documents = training_documents(args.data)
    sections: list[Section] = []
    facts: list[str] = []
    if scores:
        sections.append(summaries.score_section(scores, documents, log.updates if log else 0))
    if log:
        sections.append(summaries.curves_section(log))
        facts.append(f"{log.updates:,} updates" + (f" on {documents:,} documents" if documents else ""))
    if args.checkpoint:
        model, found = select(args)
        facts.insert(0, describe(model))
        if found:
            sections.append(kept_tokens_section(model, found, args.document, args.subset))
    if split:
        numbers = [number for number in range(args.samples) if number < len(split.references)]
        sections.append(summaries.samples_section(split, numbers))
    if args.stages:
        sections.append(summaries.stages_section(stages.read_stages(args.stages)))
    subtitle = "; ".join(["Summaries of long documents by an encoder that keeps fewer and fewer tokens", *facts]) + "."
    return Page(f"Pyramidion: {folder_of(args.run).resolve().name}", subtitle, sections, footer())


def describe(model: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = model.encoder.pooler.widths if model.encoder.pooler else {}
    tokens = [model.encoder.source_limit, *(widths[layer] for layer in sorted(widths))]
    shape = " → ".join(f"{count:,}" for count in tokens)
    return f"{parameters / 1e6:.1f} million parameters, {len(model.encoder.layers)} encoder layers, tokens {shape}"


def select(args: argparse.Namespace) -> tuple[Any, list[kept.Selection]]:
    """The model, and what it keeps of the first ``--documents`` documents and of ``--document`` (last in the list).

    Nothing for a model without pooling.
    """
    model, cfg, task, _ = load_model(args.checkpoint, "deep_pyramidion", args.data)
    from deep_pyramidion.selection import kept_tokens

    if not hasattr(model.encoder, "pooler"):
        raise UserError(f"{args.checkpoint}: not a pyramidion model")
    try:
        task.load_dataset(args.subset, task_cfg=cfg.task)
    except FileNotFoundError:
        raise UserError(f"{args.data}: no split {args.subset!r}") from None
    dataset = task.datasets[args.subset]
    if args.document >= len(dataset):
        raise UserError(f"--document {args.document}: {args.subset} has {len(dataset):,} documents, counted from 0")
    if model.encoder.pooler is None:
        return model, []
    numbers = [*range(min(args.documents, len(dataset))), args.document]
    return model, [one_selection(model, task, dataset[number]["source"], kept_tokens) for number in numbers]


def one_selection(model: Any, task: Any, source: Any, kept_tokens: Callable[..., Any]) -> kept.Selection:
    limit = model.encoder.source_limit
    if len(source) > limit:  # as the model cuts it
        source = source[:limit].clone()
        source[-1] = task.source_dictionary.eos()
    found = kept_tokens(model, source)
    words = task.source_dictionary
    pieces = ["▁■" if token == words.eos() else words[token] for token in source.tolist()]
    if not any(piece.startswith("▁") for piece in pieces[:-1]):  # words, not sentencepiece's pieces
        pieces = [f"▁{piece}" for piece in pieces[:-1]] + pieces[-1:]
    positions = [layer.positions[0].tolist() for layer in found]
    return kept.Selection(pieces, positions, [layer.scores[0].tolist() for layer in found])


def kept_tokens_section(model: Any, selections: Sequence[kept.Selection], number: int, subset: str) -> Section:
    layers = [f"layer {layer}" for layer in sorted(model.encoder.pooler.widths)]
    caption = "The stronger the colour, the deeper a token gets; ■ ends what the model reads of the document."
    shown = kept.document_part(selections[-1], layers, f"Document {number} of {subset}", caption)
    return kept.kept_section(selections[:-1], layers, shown, "What the pyramid keeps")
