"""Sections of a report on a summarization system: scores beside floors, learning curves, summaries, stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.report.figures import Line, bars, curves
from fairseq_efficient.report.parts import Code, Figure, Sample, Samples, Section, Table, Text, Tiles
from fairseq_efficient.report.stages import Stage, duration
from fairseq_efficient.report.train_log import EPOCH, INNER, TrainLog
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.sentences import plain
from fairseq_efficient.text.summarization.floors import floors, lead
from fairseq_efficient.text.summarization.rouge import KINDS, LABELS, corpus_rouge, mean_words, score_pair

Scores = Mapping[str, Mapping[str, Any]]  # system -> Rouge.as_dict(), in the order to show


@dataclass(frozen=True)
class Split:
    """Decoded documents in the order of the data; ``documents`` empty if their texts are not at hand."""

    references: Sequence[str]
    hypotheses: Sequence[str]
    documents: Sequence[str] = ()


def read_scores(path: Path) -> Scores:
    """What ``scripts/score_rouge.py --json`` wrote. UserError if it is something else."""
    try:
        found: dict[str, dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
        for scores in found.values():
            for name in ("pairs", "words", "reference_words"):
                float(scores[name])
            for kind in KINDS:
                for bound in ("mean", "low", "high"):
                    float(scores[kind][bound])
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the scores of scripts/score_rouge.py --json") from None
    if not found:
        raise UserError(f"{path}: holds no scores")
    return found


def score_split(split: Split) -> Scores:
    """Scores of the model and, with the documents at hand, of the floors."""
    systems = {"model": split.hypotheses}
    if split.documents:
        systems.update(floors(split.documents, split.references, mean_words(split.references)))
    return {name: corpus_rouge(split.references, texts).as_dict() for name, texts in systems.items()}


_ABOUT = {
    "lead": "Lead: the document's first sentences, about as many words as a reference has.",
    "oracle": "Oracle: the document's best sentences, chosen with the reference in hand.",
}


def score_section(scores: Scores, training_documents: int | None = None, updates: int = 0) -> Section:
    """ROUGE of each system: tiles, table, bars, and a plain word on what they say."""
    first = next(iter(scores.values()))
    names = list(scores)
    tiles = [
        (f"ROUGE-1, {name}", f"{entry['rouge1']['mean']:.1f}", f"{entry['words']:.0f} words a summary")
        for name, entry in scores.items()
    ]
    rows = []
    for name, entry in scores.items():
        cells = [f"{entry[k]['mean']:.2f} [{entry[k]['low']:.1f}, {entry[k]['high']:.1f}]" for k in KINDS]
        rows.append([name, *cells, f"{entry['words']:.0f}"])
    rows.append(["reference", *[""] * len(KINDS), f"{first['reference_words']:.0f}"])
    caption = f"{first['pairs']:,} documents. F1 times 100 with stemming; in brackets the 95 % bootstrap interval. "
    caption += " ".join(text for name, text in _ABOUT.items() if name in scores)
    values = [[entry[kind]["mean"] for kind in KINDS] for entry in scores.values()]
    spans = [[(entry[kind]["low"], entry[kind]["high"]) for kind in KINDS] for entry in scores.values()]
    described = "; ".join(f"{name}: ROUGE-1 {entry['rouge1']['mean']:.1f}" for name, entry in scores.items())
    parts: list[Any] = [Tiles(tiles), *_verdict(scores, training_documents, updates)]
    parts.append(Table(["", *LABELS, "words"], rows, caption, strong=0))
    svg = bars(LABELS, names, values, spans, "F1, 0 to 100", f"ROUGE scores as bars. {described}")
    parts.append(Figure(svg, "The same numbers; whiskers are the 95 % intervals."))
    return Section("Scores", parts)


def _verdict(scores: Scores, training_documents: int | None, updates: int) -> list[Text]:
    if "model" not in scores or "lead" not in scores:
        return []
    model, floor = (scores[name]["rouge1"]["mean"] for name in ("model", "lead"))
    if model > floor:
        return [Text(f"The model is {model - floor:.1f} ROUGE-1 points above the document's first sentences.", "note")]
    learnt = [f"{training_documents:,} documents"] if training_documents else []
    learnt += [f"{updates:,} updates"] if updates else []
    text = f"The model is {floor - model:.1f} ROUGE-1 points below the document's own first sentences."
    if learnt:
        text += f" It was trained on {' for '.join(learnt)}."
    return [Text(text, "note")]


def curves_section(log: TrainLog) -> Section:
    """Loss and ROUGE over the updates."""
    loss = "nll_loss" if log.series(INNER, "nll_loss")[0] or log.series(EPOCH, "nll_loss")[0] else "loss"
    tag = INNER if log.series(INNER, loss)[0] else EPOCH
    lines = [Line("training", *log.series(tag, loss))]
    lines += [Line(name, *log.series(name, loss), dots=True) for name in log.valid_sets if log.series(name, loss)[0]]
    lines = [line for line in lines if line.x]
    parts: list[Any] = []
    if lines:
        ends = "; ".join(f"{line.label} ends at {line.y[-1]:.2f}" for line in lines)
        svg = curves(lines, "update", "bits per token", f"Loss over updates. {ends}")
        parts.append(Figure(svg, f"Negative log-likelihood of the reference, in bits per token: {ends}."))
    for name in log.valid_sets:
        scores = [Line(label, *log.series(name, kind), dots=True) for kind, label in zip(KINDS, LABELS, strict=True)]
        scores = [line for line in scores if line.x]
        if scores:
            count = log.series(name, "rouge_n")[1]
            what = f"ROUGE (F1, 0 to 100) of the {name} set while training"
            what += f", on {count[-1]:,.0f} documents decoded at each point" if count else ""
            svg = curves(scores, "update", "F1, 0 to 100", f"{what}.", height=2.6)
            parts.append(Figure(svg, f"{what}."))
    if log.broken:
        parts.append(Text(f"{log.broken:,} lines of the log were broken and left out."))
    return Section("Learning curves", parts)


def samples_section(split: Split, numbers: Sequence[int], system: str = "model") -> Section:
    """Reference, model and (with the documents at hand) lead side by side."""
    words = mean_words(split.references)
    samples = []
    for number in numbers:
        reference, hypothesis = split.references[number], split.hypotheses[number]
        columns = [("reference", plain(reference), ""), (system, plain(hypothesis), _detail(reference, hypothesis))]
        if split.documents:
            first = lead(split.documents[number], words)
            columns.append(("lead", plain(first), _detail(reference, first)))
        samples.append(Sample(f"Document {number}", columns))
    return Section("Summaries", [Samples(samples)])


def _detail(reference: str, text: str) -> str:
    one, two, _, _ = score_pair(reference, text)
    return f"ROUGE-1 {100 * one:.1f}, ROUGE-2 {100 * two:.1f}"


def stages_section(stages: Sequence[Stage]) -> Section:
    """Time and memory of each stage of the pipeline."""
    rows = [
        [
            stage.name + ("" if stage.done else " (not finished)"),
            duration(stage.seconds),
            f"{stage.peak_mb:,.0f} MB",
            str(stage.runs),
        ]
        for stage in stages
    ]
    rows.append(
        ["all", duration(sum(stage.seconds for stage in stages)), f"{max(s.peak_mb for s in stages):,.0f} MB", ""]
    )
    caption = "Wall-clock, and the resident memory of the largest process. Runs: starts that it took."
    table = Table(["stage", "time", "peak memory", "runs"], rows, caption, strong=len(rows) - 1)
    commands = "\n\n".join(f"# {stage.name}\n{stage.command}" for stage in stages if stage.command)
    return Section("Time and memory", [table, *([Code("Commands", commands)] if commands else [])])
