"""The Markdown page of the quality run of summaries: every number of it comes from the rows."""

from collections.abc import Mapping
from typing import Any

from experiment_parts.pages import table
from fairseq_efficient.bench.machine import describe
from fairseq_efficient.report.stages import duration

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
LABELS = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum")
NAMES = {
    "full": "full attention",
    "blockwise": "blockwise attention",
    "pyramidion": "Pyramidion",
    "lead": "lead (no model)",
    "oracle": "oracle (no model)",
}

PROSE = """\
Three models of the same size, from scratch, on the same batches for the same number of updates:

- **full attention**: every source token attends to every other;
- **blockwise attention**: tokens attend within chunks, no pooling (the paper's baseline);
- **Pyramidion**: the same chunks, and trainable pooling that halves the document after each encoder layer. Its scorers
  are its only extra parameters.

All are `pyramidion_tiny`, differ in two flags only, and start from the same seed. Documents are cut to the length that
the table's heading gives, for every model alike. Summaries are decoded by `fairseq-generate` with the same beam search
and scored against whole references. *Lead* is the first sentences of the whole document, as many as a reference is
long; *oracle* takes the sentences that match the reference best, with the reference in hand. Brackets are 95 %
bootstrap intervals over documents.

Models this small, trained this briefly and without pretraining, learn the form of a summary more than its content: read
the table for what pooling costs or gains at equal training, not as the quality of the architecture. The paper trained
far larger models on far more documents.

Training time is the sum of fairseq's `train_wall` (steps only: no validation, no start, no saving). Seconds per update
are the median of the logged intervals and, in brackets, the fastest of them: the machine was not idle otherwise, so
compare the fastest; `bench_deep_pyramidion.json` has speeds measured side by side. Memory is the largest resident set
of the process (on a GPU, for training: the most that torch allocated).
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of ``document``, which has at least one row."""
    rows: list[dict[str, Any]] = document["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row["metric"]): row for row in rows}
    quality = [["", *LABELS, "words"]]
    cost = [
        ["", "parameters", "updates", "training", "s / update", "training MB", "decoding", "decoding MB", "valid nll"]
    ]
    for model in models:
        name = NAMES.get(model, model)
        quality.append(
            [name, *(_interval(cells.get((model, kind))) for kind in KINDS), _value(cells, model, "summary_words")]
        )
        first = next(row for row in rows if row["model"] == model)
        if first["updates"]:
            cost.append([name, *_cost(cells, model, first)])
    data = document["data"]
    return "\n".join(
        [
            "# Pyramidion: quality at equal parameters and equal updates",
            "",
            PROSE,
            f"## Scores ({data['name']}: {data['split']}, {data['pairs']:,} documents, "
            f"cut to {data['max_source_positions']:,} tokens)",
            "",
            table(quality),
            "",
            "## Cost",
            "",
            table(cost),
            "",
            *[f"- {split}: {text}" for split, text in data["cut"].items()],
            "",
            "## Made with",
            "",
            f"- `{document['command']}`",
            f"- {document['date']}, {describe(document['machine'])}",
            f"- commit `{document['commit']}`{' with local changes' if document['dirty'] else ''}, "
            + ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
            "- settings: " + ", ".join(f"{name} {value}" for name, value in document["settings"].items()),
            "",
        ]
    )


def _cost(cells: Mapping[Any, Any], model: str, row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['params']:,}" if row["params"] else "-",
        f"{row['updates']:,}",
        duration(row["seconds"]),
        _value(cells, model, "seconds_per_update", 2) + f" ({_value(cells, model, 'seconds_per_update_fastest', 2)})",
        f"{row['peak_mb']:,}",
        duration(cells[model, "generate_seconds"]["value"]),
        f"{cells[model, 'generate_peak_mb']['value']:,.0f}",
        _value(cells, model, "valid_nll_loss", 3),
    ]


def _interval(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _value(cells: Mapping[Any, Any], model: str, metric: str, digits: int = 0) -> str:
    row = cells.get((model, metric))
    return "-" if row is None else f"{row['value']:,.{digits}f}"
