"""The Markdown page of the quality runs of language models: every number of it comes from the rows."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import mean
from typing import Any

from experiment_parts.dynamic_pooling.plan import MODELS
from experiment_parts.language_models.results import Rows, values
from experiment_parts.language_models.results import seeds as each
from experiment_parts.pages import made, table
from fairseq_efficient.report.stages import duration

PAPER = {  # corpus -> model -> test bits per character, shortening factor (Nawrot et al. 2023, table 1)
    "text8": {
        "vanilla": (1.143, 1.0), "fixed2": (1.149, 2.0), "fixed3": (1.155, 3.0), "fixed4": (1.166, 4.0),
        "whitespaces": (1.133, 5.7), "unigram": (1.134, 5.0), "entropy": (1.138, 4.1), "gumbel": (1.136, 4.6),
    },
    "wiki40b Finnish": {
        "vanilla": (0.945, 1.0), "fixed2": (0.946, 2.0), "fixed3": (0.951, 3.0), "fixed4": (0.961, 4.0),
        "whitespaces": (0.955, 7.9), "unigram": (0.937, 2.1), "entropy": (0.949, 4.1), "gumbel": (0.941, 2.6),
    },
}  # fmt: skip
PAPER_PARAMETERS = 41e6
PAPER_CHARACTERS = 200_000 * 8 * 2048
SETTINGS = {"updates": "Equal updates", "time": "Equal time"}
PROSE = """\
Character language models of the same number of layers, from scratch, by `scripts/experiments/dynamic_pooling_lm.py`:

- **vanilla**: every layer sees every character;
- **fixed2, fixed3, fixed4**: the middle layers see segments of so many characters;
- **whitespaces**: segments end after a space (and after newlines, where the data has them, and document ends);
- **unigram**: a predictor learns where a unigram tokenizer's pieces end; **entropy**: where the model's own entropy
  spikes; **gumbel**: it is learned end to end. The predictor's weights come on top of the others'.

Within a table all models have the same data, layers, width, batches and optimizer; each trains with a cosine schedule
over its own updates. *Equal updates*: as many for all. *Equal time*: trained anew for as many updates as fit into the
time of vanilla's, by the median time of an update (with `--time-updates` of some more after the training, the models
in turns; else of those of the training). Seeds change initial weights, the order of data and sampling.

Bits are those of `fairseq-eval-lm` on the last checkpoint, over the whole split, with left context; no checkpoint,
model or setting was chosen by that split. Every character is scored once, and so is the end of each document, which
counts as a character; the run fails if the count is not that of the corpus. fairseq adds 4 special types to the
symbols, so that the softmax is slightly larger than the alphabet. The shortening factor is characters for each
segment on that split by `fairseq-validate`. Training time is that of an update times their number (no validation,
start or saving). Memory is the largest resident set of the process (on a GPU: the most that torch allocated). Where
there are several seeds, the mean is given with the values in brackets.
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of all experiments."""
    parts = ["# Dynamic token pooling: bits per character", "", PROSE, *_paper()]
    for name, about in document["experiments"].items():
        rows = [row for row in document["rows"] if row["experiment"] == name]
        if rows:
            parts += _experiment(about, rows)
    parts += ["![Validation bits over updates and over time](dynamic_pooling.png)", ""]
    return "\n".join(parts)


def _paper() -> list[str]:
    rows = [["bits (shortening factor)", *MODELS]]
    rows += [[name, *("{:.3f} ({:.1f})".format(*found[model]) for model in MODELS)] for name, found in PAPER.items()]
    return [
        "## What the paper found",
        "",
        f"With {PAPER_PARAMETERS / 1e6:.0f} million parameters after 200,000 updates "
        f"({PAPER_CHARACTERS / 1e9:.2f} billion characters, mean of 3 seeds): on text8 whitespaces, unigram, gumbel "
        "and entropy are better than vanilla with segments of 4 to 6 characters, and fixed segments are worse the "
        "longer they are.",
        "",
        table(rows),
        "",
    ]


def _experiment(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    settings, data = about["settings"], about["data"]
    size = f"layers {settings['layers']}, width {settings['dim']}, {settings['updates']:,} updates"
    parts = [f"## {data['name']}: {size}", "", *_facts(data, settings), ""]
    like = "wiki40b Finnish" if data["lang"] == "fi" else "text8"
    for setting, title in SETTINGS.items():
        found: Rows = {(r["model"], r["seed"], r["metric"]): r for r in rows if r["setting"] == setting}
        models = [m for m in MODELS if any(key[0] == m for key in found)]
        if not any(model != "vanilla" for model in models) and setting == "time":
            continue
        parts += [f"### {title}", "", _results(found, models), "", *_gumbel(found), *_agreement(found, models)]
        parts += [f"What was found at {title.lower()}: {sentence}" for sentence in findings(found, models, like)]
        parts.append("")
    parts += _honest(rows, data, settings)
    for check in about["checked"]:
        parts += [
            f"The bits of {check['model']} (seed {check['seed']}) were added up a second time, from the dumped "
            f"log-probability of each of the {check['tokens']:,} characters: {check['bits']:.5f}, reported "
            f"{check['reported']:.4f}.",
            "",
        ]
    return [*parts, "Made with:", "", *(made(head) for head in about["made"]), ""]


def _facts(data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    symbols = "bytes" if data["symbols"] == "bytes" else "characters"
    sizes = ", ".join(
        f"{split} {size['tokens']:,} {symbols} in {size['documents']:,} documents"
        for split, size in data["splits"].items()
    )
    ends = "one document end each included" if data["document_ends"] else "no document ends"
    cleaned = f"cleaned as {data['clean']} ({data['lang']})" if data["clean"] == "text8" else "text as it is"
    cleaned = cleaned if data["clean"] else "prepared elsewhere"
    newlines = "newlines are characters" if data["newlines"] else "newlines are spaces"
    lines = [
        f"- data: {sizes} ({ends}); {cleaned}, {newlines}; {data['types'] - 4} symbols and fairseq's 4 special types",
        f"- scored: the whole of {data['scored']}, windows of {settings['tokens_per_sample']:,} of which the first "
        f"{settings['context_window']:,} are context",
        f"- model: layers {settings['layers']} (vanilla: their sum), width {settings['dim']}, feed-forward "
        f"{settings['ffn']:,}, {settings['heads']} heads, {settings['position_encoding']} positions, dropout "
        f"{settings['dropout']:g} (attention {settings['attention_dropout']:g}), gumbel prior {settings['prior']:g}",
        f"- training: {settings['batch_size']} windows of {settings['tokens_per_sample']:,}, Adam, peak learning rate "
        f"{settings['lr']:g}, warm-up {settings['warmup']:.0%}, clip {settings['clip_norm']:g}, "
        f"{settings['precision']} on {settings['device']}, {settings['threads']} CPU threads",
    ]
    if data["tokenizer_types"]:
        lines.append(f"- unigram tokenizer: {data['tokenizer_types']:,} types, trained on train")
    return lines


def _results(found: Rows, models: Sequence[str]) -> str:
    head = ["", "bits", "shortening", "parameters", "updates", "s / update", "training", "memory", "evaluation"]
    lines = [head]
    for model in models:
        first = next(row for (name, _, _), row in found.items() if name == model)
        rows = {seed: row for (name, seed, metric), row in found.items() if (name, metric) == (model, "test_bpc")}
        lines.append([
            model, each(values(found, model, "test_bpc"), 4), _shortening(found, model),
            f"{first['params']:,}" if first["params"] else "-", f"{first['updates']:,}",
            each(values(found, model, "seconds_per_update"), 3), duration(mean(r["seconds"] for r in rows.values())),
            f"{max(row['peak_mb'] for row in rows.values()):,} MB",
            duration(mean(values(found, model, "eval_seconds").values())),
        ])  # fmt: skip
    return table(lines)


def _gumbel(found: Rows) -> list[str]:
    factor, sampled = (_shortening(found, "gumbel", name) for name in ("", "sampled_"))
    bits, drawn = (each(values(found, "gumbel", f"{name}test_bpc"), 4) for name in ("", "sampled_"))
    if drawn == "-":
        return []
    return [
        f"gumbel: with boundaries where p > 0.5, as in the table, {bits} bits and a shortening factor of {factor}; "
        f"with boundaries sampled as in training, which is how the original evaluates, {drawn} bits and {sampled}.",
        "",
    ]


def _shortening(found: Rows, model: str, how: str = "") -> str:
    """Characters for each segment; "none" where hardly any segment ends."""
    numbers = values(found, model, f"{how}shortening_factor")
    return each({seed: value if value < 100 else inf for seed, value in numbers.items()}, 2).replace("inf", "none")


def _agreement(found: Rows, models: Sequence[str]) -> list[str]:
    metrics = [f"{what}_{share}" for what in ("spaces", "unigram") for share in ("precision", "recall")]
    lines = [["", "spaces: precision", "recall", "tokenizer: precision", "recall"]]
    for model in models:
        cells = [values(found, model, metric) for metric in metrics]
        if any(cells):
            lines.append([model, *(f"{100 * mean(cell.values()):.1f} %" if cell else "-" for cell in cells)])
    if len(lines) == 1:
        return []
    text = "Precision and recall of boundaries, against spaces and document ends, and against the unigram tokenizer's"
    return [f"{text} pieces (means of the seeds):", "", table(lines), ""]


def findings(found: Rows, models: Sequence[str], like: str = "text8") -> list[str]:
    """What is better than vanilla and what is not, beside what the paper found on the corpus ``like``."""
    base = values(found, "vanilla", "test_bpc")
    if not base or len(models) < 2:
        return []
    better: list[tuple[float, str, str]] = []
    worse: list[tuple[float, str, str]] = []
    for model in models[1:]:
        mine = values(found, model, "test_bpc")
        gaps = [mine[seed] - base[seed] for seed in mine if seed in base]
        if not gaps:
            continue
        side = better if mean(gaps) < 0 else worse
        agree = sum((gap < 0) == (mean(gaps) < 0) for gap in gaps)
        seeds = f", {agree} of {len(gaps)} seeds" if len(gaps) > 1 else ""
        side.append((mean(gaps), model, f"{model} ({mean(gaps):+.4f}{seeds})"))
    named = [", ".join(text for _, _, text in sorted(side)) or "none" for side in (better, worse)]
    text = f"fewer bits than vanilla: {named[0]}; not fewer: {named[1]}."
    paper = PAPER[like]
    expected = {model for model in models[1:] if paper[model][0] < paper["vanilla"][0]}
    seen = {model for _, model, _ in better}
    both = [model for model in models[1:] if (model in expected) == (model in seen)]
    other = [model for model in models[1:] if model not in both]
    text += f" On the same side of vanilla as in the paper ({like}): {', '.join(both) or 'none'}"
    text += f"; on the other: {', '.join(other)}." if other else "."
    spread = max(base.values()) - min(base.values())
    return [text + (f" Vanilla's own seeds are {spread:.4f} apart." if len(base) > 1 else "")]


def _honest(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    parameters = max(row["params"] or 0 for row in rows)
    read = settings["updates"] * settings["batch_size"] * settings["tokens_per_sample"]
    seeds = len({row["seed"] for row in rows})
    return [
        f"Size: {parameters / 1e6:.2g} million parameters, where the paper has {PAPER_PARAMETERS / 1e6:.0f}; "
        f"{read / 1e6:,.3g} million {'bytes' if data['symbols'] == 'bytes' else 'characters'} read at equal updates "
        f"({read / data['splits']['train']['tokens']:.2g} times the training split), "
        f"{100 * read / PAPER_CHARACTERS:.2g} % of the paper's; {seeds} seed{'s' if seeds > 1 else ''}. A difference "
        "smaller than that between seeds says nothing, and what small models show after a short training need not hold "
        "for large ones.",
        "",
    ]
