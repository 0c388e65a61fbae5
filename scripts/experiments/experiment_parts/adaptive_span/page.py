"""The Markdown page of the quality runs of attention spans: every number of it comes from the rows."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from experiment_parts.adaptive_span.plan import ALL_ATTENTION, fixed
from experiment_parts.language_models.results import Rows, seeds, values
from experiment_parts.pages import made, table
from fairseq_efficient.report.stages import duration

BITS, SHARE, SPEED = 0.01, 1 / 6, 1.6  # wanted: so many bits more and that mean span at most, so much faster at least
PUBLISHED = [  # published runs, about 1,000 times as long: model, parameters, dev and test bits per byte of enwik8
    ("12 layers", "38M", "1.04", "1.02"), ("24 layers", "209M", "1.00", "0.98"),
    ("18 layers, all-attention", "39M", "1.03", "1.01"), ("36 layers, all-attention", "114M", "1.00", "0.98"),
]  # fmt: skip
PROSE = f"""\
Language models of bytes, from scratch, by `scripts/experiments/adaptive_span_lm.py`:

- **fixedS**: every head sees S tokens;
- **adaptive-P**: every head learns how far it looks, up to the longest of the fixed spans, with a penalty P on spans;
- **{ALL_ATTENTION}**: the same with the middle penalty, and persistent vectors in the place of feed-forward layers.

All have the same data, layers, batches and optimizer, and as many parameters: where fewer distances have a position,
the feed-forward is wider; as many persistent vectors as weigh the same replace it. Seeds change initial weights.

Bits are those of `fairseq-eval-lm` on the last checkpoint, over the whole split in one pass with memory, every token
but the first scored once (the run fails if the count is another). The end of each document counts as a byte. No
checkpoint, model or setting was chosen by that split. Validation in training, which the picture shows, is over the
first blocks of its split in one lane, the same for all. A span is what a head sees at most, its ramp included. Seconds
per update are of more updates of the trained models, with their spans and full caches, all models in turns on one
machine; times of training (its steps, without validation, start or saving) and of evaluation are those of runs that may
have had others beside them, and say little. Memory is the largest resident set of the
training (on a GPU: the most that torch allocated). Where there are several seeds, the mean is given with the values in
brackets.
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of all experiments."""
    parts = ["# Adaptive spans: bits per byte", "", PROSE]
    for name, about in document["experiments"].items():
        rows = [row for row in document["rows"] if row["experiment"] == name]
        if rows:
            parts += _experiment(about, rows, [one for one in document["spans"] if one["experiment"] == name])
    lines = [["published, enwik8", "parameters", "dev", "test"], *map(list, PUBLISHED)]
    parts += ["## What was published", "", "With spans up to 8,192 and full-size trainings:", "", table(lines), ""]
    return "\n".join([*parts, "![Validation bits and mean spans over updates, bits over time](adaptive_span.png)", ""])


def _experiment(about: Mapping[str, Any], rows: Sequence[Any], spans: Sequence[Any]) -> list[str]:
    settings, data = about["settings"], about["data"]
    found: Rows = {(row["model"], row["seed"], row["metric"]): row for row in rows}
    models = ordered(dict.fromkeys(row["model"] for row in rows))
    title = f"{settings['layers']} layers, width {settings['dim']}, {settings['updates']:,} updates"
    parts = [f"## {data['name']}: {title}", "", *_facts(data, settings), ""]
    parts += [_results(found, models, data["scored"], settings["longest"]), ""]
    if spans:
        parts += ["### How far heads look", "", _spans(spans), ""]
    parts += ["### What was found", "", *findings(found, models, settings["longest"]), ""]
    parts += _honest(rows, data, settings)
    for one in about["checked"]:
        parts += [
            f"The bits of {one['model']} (seed {one['seed']}) a second and third time: {one['bits']:.5f}, added up "
            f"from the weights over {one['tokens']:,} tokens in one lane with blocks of another length; "
            f"{one['validated']:.4f} by `fairseq-validate`; reported {one['reported']:.4f}.",
            "",
        ]
    return [*parts, "Made with:", "", *(made(head) for head in about["made"]), ""]


def ordered(models: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Fixed spans by length, penalties from small to large, all-attention."""

    def key(model: str) -> tuple[int, float]:
        if model.startswith("fixed"):
            return 0, float(model.removeprefix("fixed"))
        return (2, 0.0) if model == ALL_ATTENTION else (1, float(model.removeprefix("adaptive-")))

    return sorted(models, key=key)


def _facts(data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(
        f"{split} {size['tokens']:,} bytes in {size['documents']:,} documents" for split, size in data["splits"].items()
    )
    schedule = "cosine" if settings["optimizer"] == "adam" else "constant after warm-up"
    return [
        f"- data: {sizes} (one end each included); {data['types'] - 4} symbols and fairseq's 4 special types",
        f"- model: width {settings['dim']}, feed-forward {settings['ffn']:,}, {settings['heads']} heads, dropout "
        f"{settings['dropout']:g}; learned spans: at most {settings['longest']:,}, at first {settings['init']:.0%} of "
        f"that, ramp {settings['ramp']}",
        f"- training: {settings['batch_size']} lanes, blocks of {settings['tokens_per_sample']:,}, "
        f"{settings['optimizer']}, peak learning rate {settings['lr']:g}, {schedule}, warm-up "
        f"{settings['warmup']:.0%}, clip {settings['clip']:g}, {settings['precision']} on {settings['device']}, "
        f"{settings['threads']} CPU threads",
        f"- {ALL_ATTENTION}: penalty {settings['all_attention_penalty']:g}",
    ]


def _results(found: Rows, models: Sequence[str], scored: str, longest: int) -> str:
    head = ["", f"{scored} bits", "mean span", "longest", "parameters", "s / update", f"against {fixed(longest)}",
            "training", "memory", "evaluation"]  # fmt: skip
    lines = [head]
    for model in models:
        rows = {seed: row for (name, seed, metric), row in found.items() if (name, metric) == (model, "test_bpc")}
        faster = speed(found, model, longest)
        lines.append([
            model, seeds(values(found, model, "test_bpc"), 4), seeds(values(found, model, "mean_span"), 0),
            seeds(values(found, model, "max_span"), 0), ", ".join({f"{r['params']:,}": 0 for r in rows.values()}),
            seeds(values(found, model, "seconds_per_update"), 3), "-" if faster is None else f"{faster:.2f}x",
            duration(mean(row["seconds"] for row in rows.values())),
            f"{max(row['peak_mb'] for row in rows.values()):,} MB",
            duration(mean(values(found, model, "eval_seconds").values())),
        ])  # fmt: skip
    return table(lines)


def speed(found: Rows, model: str, longest: int) -> float | None:
    """How many times faster than the longest fixed span, by updates timed in turns; None if they were not."""
    base, mine = (values(found, name, "seconds_per_update") for name in (fixed(longest), model))
    return mean(base.values()) / mean(mine.values()) if base and mine else None


def _spans(spans: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run: mean and longest of each layer's heads."""
    layers = max(len(one["by_layer_and_head"]) for one in spans)
    lines = [["mean (longest) of a layer's heads", *(f"layer {number + 1}" for number in range(layers))]]
    places = {model: place for place, model in enumerate(ordered({one["model"]: 0 for one in spans}))}
    for one in sorted(spans, key=lambda one: (places[one["model"]], one["seed"])):
        cells = [f"{mean(heads):,.0f} ({max(heads):,.0f})" for heads in one["by_layer_and_head"]]
        lines.append([f"{one['model']}, seed {one['seed']}", *cells])
    return table(lines)


def findings(found: Rows, models: Sequence[str], longest: int) -> list[str]:
    """One line for each model of learned spans: bits against the best fixed span, mean span, speed, and what of this
    was wanted."""
    bits = {model: values(found, model, "test_bpc") for model in models}
    known = {model: mean(bits[model].values()) for model in models if model.startswith("fixed")}
    if not known:
        return ["No fixed span to compare with."]
    best = min(known, key=lambda model: known[model])
    lines = [f"- The best fixed span is {best.removeprefix('fixed')}: {known[best]:.4f} bits."]
    for model in models:
        if model in known:
            continue
        more = mean(bits[model].values()) - known[best]
        each = [bits[model][seed] - bits[best][seed] for seed in bits[model] if seed in bits[best]]
        brackets = f" ({', '.join(f'{one:+.4f}' for one in each)})" if len(each) > 1 else ""
        share = mean(values(found, model, "mean_span").values()) / longest
        text = f"- {model}: {more:+.4f} bits{brackets} against it, {_wanted(more <= BITS, f'at most {BITS:+g}')}"
        text += f"; mean span 1/{1 / share:.1f} of {longest:,}, {_wanted(share <= SHARE, f'at most 1/{1 / SHARE:.0f}')}"
        faster = speed(found, model, longest)
        if faster is not None and model != ALL_ATTENTION:
            text += f"; {faster:.2f} times as fast as {fixed(longest)}, "
            text += _wanted(faster >= SPEED, f"at least {SPEED:g}")
        lines.append(text + ".")
    if len(bits[best]) > 1:
        spread = max(bits[best].values()) - min(bits[best].values())
        lines.append(f"- The seeds of {best} are {spread:.4f} apart: smaller differences say nothing.")
    return lines


def _wanted(reached: bool, what: str) -> str:
    return f"{'as' if reached else 'not as'} wanted ({what})"


def _honest(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    read = settings["updates"] * settings["batch_size"] * settings["tokens_per_sample"]
    share = read / data["splits"]["train"]["tokens"]
    size = max(row["params"] or 0 for row in rows)
    return [
        f"Size: {size / 1e6:.2g} million parameters, {read / 1e6:,.3g} million bytes read ({share:.2g} times the "
        f"training split), {len({row['seed'] for row in rows})} seed(s). What small models show after a short training "
        "need not hold for large ones: long spans pay late.",
        "",
    ]
