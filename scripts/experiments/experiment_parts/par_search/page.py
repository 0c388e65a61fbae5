"""The Markdown page of the quality runs of layouts: every number of it comes from the rows."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from experiment_parts.language_models.results import Rows, seeds, values
from experiment_parts.pages import made, table
from experiment_parts.par_search.plan import LAYOUTS, ORIGINAL
from fairseq_efficient.report.stages import duration

CACHES = {"hidden": "hidden states, projected anew", "keys": "keys and values"}
PUBLISHED = {  # epochs of 20 -> training and validation perplexity, minutes of the published code on WikiText-2
    1: (163.9, 114.4, "1:58"), 3: (78.56, 62.33, "5:37"), 5: (65.71, 51.88, "9:28"), 10: (48.52, 42.61, "18:40"),
    17: (41.85, 39.57, "31:51"), 20: (42.12, 39.41, "37:14"),
}  # fmt: skip
SHARE, SPEED = 0.01, 1.5  # what we want: at most so much more perplexity, at least so much less time
PREDICTED = 0.1  # and predictions so near to what is measured
PROSE = """\
Language models of the same number of blocks, each block attention (a), feed-forward (f) or nothing, trained alike from
scratch by `scripts/experiments/par_search_lm.py`:

- **interleaved**: afaf..., a plain Transformer-XL;
- **par**: the rule of the PAR paper: one block in so many is attention, spread over the first two thirds;
- **searched**: a supernet is trained with each seed (`scripts/search_layout.py`), and the layout read out of it is
  trained from scratch with that seed. Blocks that became nothing are left out;
- **random**: the blocks of the searched layout of that seed in an order that was drawn.

Perplexity is exp(total nll / tokens) of `fairseq-eval-lm` on the last checkpoint, over the whole split in one pass with
memory, every token but the first scored once (the run fails if the count is another). No checkpoint, model or setting
was chosen by the test split. Latency is that of an evaluation step: the loss of so many tokens after so many
remembered ones and the next memory, by nets of that layout with random weights, all layouts in turns in one process.
Memory is remembered as hidden states, whose keys and values are made anew (as published), or as keys and values.
Predicted is the sum of single blocks' times. Where there are several seeds, the mean is given with the values in
brackets.
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of all experiments."""
    parts = ["# PAR search: where a Transformer-XL needs attention", "", PROSE]
    for name, about in document["experiments"].items():
        rows = [row for row in document["rows"] if row["experiment"] == name]
        if rows:
            layouts = [one for one in document["layouts"] if one["experiment"] == name]
            recipes = [one for one in document["recipe"] if one["experiment"] == name]
            parts += _experiment(about, rows, layouts, recipes)
    parts += ["![Validation perplexity over updates, latency, and layouts](par_search.png)", ""]
    return "\n".join(parts)


def _experiment(
    about: Mapping[str, Any], rows: Sequence[Any], layouts: Sequence[Any], recipes: Sequence[Any]
) -> list[str]:
    settings, data = about["settings"], about["data"]
    size = f"{settings['blocks']} blocks, width {settings['dim']}, {settings['updates']:,} updates"
    found: Rows = {(row["model"], row["seed"], row["metric"]): row for row in rows}
    models = [model for model in LAYOUTS if any(key[0] == model for key in found)]
    parts = [f"## {data['name']}: {size}", "", *_facts(data, settings), ""]
    if models:
        parts += ["### Quality and size", "", _quality(found, models, data["scored"]), ""]
        if any("_ms_" in key[2] for key in found):
            parts += ["### Latency of an evaluation step", "", _latency(found, models, settings), ""]
        parts += ["### Where attention went", "", _layouts(layouts), ""]
        parts += ["### What was found", "", *findings(found, models, data["scored"]), ""]
    for one in recipes:
        parts += _recipe(one, found)
    return [*parts, "Made with:", "", *(made(head) for head in about["made"]), ""]


def _facts(data: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(
        f"{split} {size['tokens']:,} tokens in {size['documents']:,} documents"
        for split, size in data["splits"].items()
    )
    softmax = f"adaptive softmax and input, cutoffs {settings['cutoffs']}" if settings["cutoffs"] else "full softmax"
    return [
        f"- data: {sizes} (document ends are tokens); {data['types']:,} types{', lower case' * data['lower_case']}; "
        f"{softmax}",
        f"- model: width {settings['dim']}, feed-forward {settings['ffn']:,}, {settings['heads']} heads, memory "
        f"{settings['mem_len']}, dropout {settings['dropout']:g}",
        f"- training: {settings['batch_size']} lanes, blocks of {settings['tokens_per_sample']} tokens, Adam, peak "
        f"learning rate {settings['lr']:g}, cosine, warm-up {settings['warmup']:.0%}, clip {settings['clip_norm']:g}, "
        f"{settings['precision']} on {settings['device']}, {settings['threads']} CPU threads",
        f"- search: {settings['search_updates']:,} updates; {settings['search_flags'] or 'as the flags default'}; the "
        + (f"layout by `derive_layout.py {settings['derive']}`" if settings.get("derive") else "most probable layout"),
        f"- evaluation: blocks of {settings['eval_tokens']} tokens, memory {settings['eval_mem_len']}",
    ]


def _quality(found: Rows, models: Sequence[str], scored: str) -> str:
    subsets = list(dict.fromkeys(("valid", scored)))
    head = ["", *(f"{subset} ppl" for subset in subsets), "attention", "parameters", "s / update", "training", "memory"]
    lines = [head]
    for model in models:
        rows = {seed: row for (name, seed, metric), row in found.items() if (name, metric) == (model, "attention")}
        parameters = sorted({row["params"] for row in rows.values() if row["params"]})
        lines.append([
            model, *(seeds(values(found, model, f"{subset}_ppl"), 2) for subset in subsets),
            _counts(found, model), " to ".join(f"{one:,}" for one in (parameters[:1] + parameters[1:][-1:])) or "-",
            seeds(values(found, model, "seconds_per_update"), 3), duration(mean(r["seconds"] for r in rows.values())),
            f"{max(row['peak_mb'] for row in rows.values()):,} MB",
        ])  # fmt: skip
    return table(lines)


def _counts(found: Rows, model: str) -> str:
    have, of = values(found, model, "attention"), values(found, model, "blocks")
    return ", ".join(dict.fromkeys(f"{have[seed]:.0f} of {of[seed]:.0f}" for seed in have))


def _latency(found: Rows, models: Sequence[str], settings: Mapping[str, Any]) -> str:
    lines = [["milliseconds (predicted), times faster than interleaved", *models]]
    for cache, told in CACHES.items():
        for batch in sorted({int(key[2].rpartition("batch")[2]) for key in found if "_ms_" in key[2]}):
            name = f"ms_{cache}_batch{batch}"
            base = values(found, "interleaved", f"latency_{name}")
            cells = []
            for model in models:
                mine, said = (values(found, model, f"{kind}_{name}") for kind in ("latency", "predicted"))
                if not mine:
                    cells.append("-")
                    continue
                faster = (
                    f", {mean(base.values()) / mean(mine.values()):.2f}x" if base and model != "interleaved" else ""
                )
                cells.append(f"{mean(mine.values()):.2f} ({mean(said.values()):.2f}){faster}")
            lines.append([f"batch {batch}, {told}", *cells])
    where = f"{settings['eval_tokens']} tokens after {settings['eval_mem_len']} remembered ones"
    return f"{where}:\n\n{table(lines)}"


def _layouts(layouts: Sequence[Mapping[str, Any]]) -> str:
    lines = [["model", "seed", "layout", "attention"]]
    seen = set()
    for one in sorted(layouts, key=lambda one: (LAYOUTS.index(one["model"]), one["seed"])):
        fixed = one["model"] in ("interleaved", "par")
        if (one["model"], one["layout"]) in seen and fixed:
            continue
        seen.add((one["model"], one["layout"]))
        count = f"{one['layout'].count('a')} of {len(one['layout'])}"
        lines.append([one["model"], "all" if fixed else str(one["seed"]), f"`{one['layout']}`", count])
    return table(lines)


def findings(found: Rows, models: Sequence[str], scored: str) -> list[str]:
    """One line for each layout, how far it is from interleaved in perplexity and in time; seeds; predictions."""
    lines = []
    base = values(found, "interleaved", f"{scored}_ppl")
    base_ms = values(found, "interleaved", "latency_ms_hidden_batch1")
    for model in models:
        mine, ms = values(found, model, f"{scored}_ppl"), values(found, model, "latency_ms_hidden_batch1")
        if model == "interleaved" or not base or not mine:
            continue
        more = mean(mine.values()) / mean(base.values()) - 1
        agree = [mine[seed] / base[seed] - 1 for seed in mine if seed in base]
        each = f" ({', '.join(f'{one:+.1%}' for one in agree)})" if len(agree) > 1 else ""
        text = f"- {model}: {scored} perplexity {more:+.1%}{each} against interleaved"
        text += f", {'within' if more <= SHARE else 'not within'} the {SHARE:.0%} that was wanted"
        if base_ms and ms:
            faster = mean(base_ms.values()) / mean(ms.values())
            text += f"; {faster:.2f} times faster at batch 1 with hidden states"
            text += f" ({'reaching' if faster >= SPEED else 'below'} the {SPEED:g} that was wanted)"
        lines.append(text + ".")
    spread = max(base.values()) - min(base.values()) if len(base) > 1 else None
    if spread is not None:
        lines.append(f"- The seeds of interleaved are {spread:.2f} apart: smaller differences say nothing.")
    return [*lines, *_predictions(found)]


def _predictions(found: Rows) -> list[str]:
    """How far the sums of blocks' times are from measured nets."""
    gaps = [
        abs(row["value"] / found[model, seed, metric.replace("predicted_", "latency_")]["value"] - 1)
        for (model, seed, metric), row in found.items()
        if metric.startswith("predicted_ms_")
    ]
    if not gaps:
        return []
    within = sum(gap <= PREDICTED for gap in gaps)
    return [
        f"- Predicted latencies are {mean(gaps):.1%} off in the mean and {max(gaps):.1%} at most; {within} of "
        f"{len(gaps)} are within the {PREDICTED:.0%} that was wanted."
    ]


def _recipe(one: Mapping[str, Any], found: Rows) -> list[str]:
    lines = [["epochs", "updates", "train ppl", "valid ppl", "time", "published: train", "valid", "time"]]
    for row in one["table"]:
        train, valid, minutes = PUBLISHED[row["epoch"]]
        took = f"{int(row['seconds'] // 60)}:{int(row['seconds'] % 60):02d}"
        lines.append([
            str(row["epoch"]), f"{row['update']:,}", f"{row['train_ppl']:.2f}", f"{row['valid_ppl']:.2f}", took,
            f"{train:g}", f"{valid:g}", minutes,
        ])  # fmt: skip
    key = (ORIGINAL, one["seed"])
    ends = [
        f"{metric.removesuffix('_ppl').replace('argmax_', 'most probable layout, ')} {row['value']:.2f}"
        for (*who, metric), row in found.items()
        if tuple(who) == key and metric.endswith("_ppl")
    ]
    return [
        f"### The published code's recipe, seed {one['seed']}",
        "",
        "6 blocks, width 128, memory 16, adaptive softmax, the architecture trained with the weights by one Adam, "
        "temperature 1 to 0.1. Validation is by the mixture of all kinds, without noise. The published numbers are on "
        "WikiText-2 with 12,000 lower-cased pieces, means of batches' exp(loss), with noise: not comparable as such.",
        "",
        table(lines),
        "",
        f"At the end, whole splits: {'; '.join(ends)}.",
        "",
    ]
