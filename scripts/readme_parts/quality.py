"""Quality: a table and a line for each system, from its quality run."""

from collections.abc import Callable
from typing import NamedTuple

from fairseq_efficient.report.speed_quality import DENSE, LIMIT, STOCK, SpeedQuality
from readme_parts.files import Document, experiments, first_experiment, load, models_of, seeds_of, shown, table, value

SCORES = ("rouge1", "rouge2", "rougeL")


# --- documents -------------------------------------------------------------------------------------------------------


def _rouge(results: Document, model: str) -> list[str]:
    cells = {(row["model"], row["metric"]): row["value"] for row in results["rows"]}
    return [f"{cells[model, kind]:.1f}" for kind in SCORES]


def _about_summaries(results: Document) -> str:
    data, rows = results["data"], results["rows"]
    parameters, updates = max(row["params"] for row in rows) / 1e6, max(row["updates"] for row in rows)
    return (
        f"equal size ({parameters:.1f} million parameters) and equal training ({updates:,} updates from scratch), "
        f"{data['name']}, {data['pairs']:,} documents cut to {data['max_source_positions']:,} tokens"
    )


def summaries(results: Document) -> str:
    """Each model of Pyramidion's quality run on one line: scores and what training cost."""
    cells = {(row["model"], row["metric"]): row for row in results["rows"]}
    names = {"full": "full attention", "lead": "lead (first sentences)"}
    lines = []
    for model in models_of(results["rows"]):
        if model == "oracle":
            continue
        each = cells.get((model, "seconds_per_update_fastest"))
        cost = [f"{each['value']:.2f}", f"{each['peak_mb']:,}"] if each else ["-", "-"]
        lines.append([names.get(model, model), *_rouge(results, model), *cost])
    head = ("model", "ROUGE-1", "ROUGE-2", "ROUGE-L", "seconds per update", "training MB")
    title = f"**Pyramidion**, quality at {_about_summaries(results)} ([details](deep_pyramidion.md)); so short a "
    return "\n".join([f"{title}training stays below lead for every model:", "", *table(head, lines)]) + "\n"


def summaries_line(results: Document) -> str:
    each = {model: " / ".join(_rouge(results, model)) for model in ("pyramidion", "blockwise", "full", "lead")}
    return (
        f"ROUGE-1 / 2 / L at {_about_summaries(results)}: **{each['pyramidion']}**; blockwise {each['blockwise']}, "
        f"full attention {each['full']}; all below the lead baseline, {each['lead']}"
    )


# --- characters ------------------------------------------------------------------------------------------------------


def character_models(results: Document) -> str:
    """Each language model of the first experiment on one line: bits at equal updates and at equal time, and cost."""
    about, rows = first_experiment(results)
    settings, lines = about["settings"], []
    for model in models_of(rows):
        drawn = value(rows, model, "sampled_shortening_factor")  # its own, after p > 0.5, may be none at all
        length = shown(value(rows, model, "shortening_factor"), 2) if drawn is None else f"{drawn:.2f} drawn"
        bits = [shown(value(rows, model, "test_bpc", setting), 4) for setting in ("updates", "time")]
        seconds = shown(value(rows, model, "seconds_per_update"), 3)
        lines.append(["none (vanilla)" if model == "vanilla" else model, *bits, length, seconds])
    head = ("segments", "bits, equal updates", "bits, equal time", "characters per segment", "seconds per update")
    title = (
        f"**Dynamic pooling**, test bits per character, {about['data']['name']}, layers {settings['layers']}, width "
        f"{settings['dim']}, {settings['updates']:,} updates, mean of {seeds_of(rows)} seeds "
        "([details, other data, what it does not show](dynamic_pooling.md)):"
    )
    return "\n".join([title, "", *table(head, lines)]) + "\n"


def characters_line(results: Document) -> str:
    about, rows = first_experiment(results)
    timed = {model: value(rows, model, "test_bpc", "time") for model in models_of(rows)}
    bits = sorted((found, model) for model, found in timed.items() if found is not None and model != "vanilla")
    plain = timed.get("vanilla")
    if not bits or plain is None:
        return ""
    kinds = ", ".join(f"{model} {found:.4f}" for found, model in bits)
    return (
        f"test bits per character at equal time, {about['data']['name']}, width {about['settings']['dim']}, mean of "
        f"{seeds_of(rows)} seeds: {kinds}; without segments **{plain:.4f}**"
    )


# --- texts -----------------------------------------------------------------------------------------------------------


def skimmed(results: Document) -> str:
    """Of each data set the dense model and the fastest skimmed one within a point of it."""
    lines = []
    for name in results["sets"]:
        found = SpeedQuality.of(results, name)
        best, dense = found.best(LIMIT), found.dense
        title = f"{found.about['title']}, {found.about['metric_title'].removesuffix(', %')}"
        if dense is None:
            continue
        if best is None:
            lines.append([title, f"{dense:.1f}", "none", *["-"] * 4])
            continue
        kept, flops = found.value(best, "keep_ratio"), found.value(best, "flops_ratio_unpadded")
        over = [f"**{found.faster(best, than) or 0:.1f}x**" for than in (STOCK, DENSE)]
        kept_share = f"{100 * (kept or 0):.0f} %"
        lines.append([title, f"{dense:.1f}", f"{found.quality(best):.1f}", kept_share, f"{flops:.1f}x", *over])
    head = ("data", "dense", "skimmed", "tokens kept", "FLOPs, dense / skimmed", "over fairseq, padded",
            "over dense, packed")  # fmt: skip
    title = (
        "**Skimming**, MiniLM fine-tuned densely, and the fastest skimmed model at most a point below; times faster "
        "on the clock at batch 32, texts as they come ([details](skimming.md)):"
    )
    return "\n".join([title, "", *table(head, lines)]) + "\n"


def skimmed_line(results: Document) -> str:
    each = []
    for name in results["sets"]:
        found = SpeedQuality.of(results, name)
        best, dense = found.best(LIMIT), found.dense
        if dense is None:
            continue
        if best is None:
            each.append(f"{found.about['title']}: no model")
            continue
        speed = found.faster(best, STOCK) or 0
        each.append(f"{found.about['title']}: {found.quality(best):.1f} for {dense:.1f}, **{speed:.1f}x**")
    return (
        "the fastest skimmed MiniLM at most a point below the dense one: its quality for the dense one's, and times "
        f"faster on the clock than fairseq on the padded batch: {'; '.join(each)}"
    )


# --- layouts ---------------------------------------------------------------------------------------------------------


def layouts(results: Document) -> str:
    """Each layout of each experiment on one line: perplexity, size and latency."""
    return "\n".join(_layouts_of(about, rows) for about, rows in experiments(results))


def _layouts_of(about: Document, rows: list[Document]) -> str:
    settings, scored = about["settings"], about["data"]["scored"]
    metrics = ((f"{scored}_ppl", 2), ("attention", 1), ("latency_ms_hidden_batch1", 1), ("latency_ms_keys_batch1", 1),
               ("seconds_per_update", 3))  # fmt: skip
    lines = [
        [model, *(shown(value(rows, model, metric), digits) for metric, digits in metrics)]
        for model in models_of(row for row in rows if row["metric"] == "attention")
    ]
    head = ("layout", f"{scored} perplexity", "attention blocks", "ms, hidden states", "ms, cached keys", "s / update")
    title = (
        f"**PAR search**, {about['data']['name']}, {settings['blocks']} blocks, width {settings['dim']}, "
        f"{settings['updates']:,} updates, mean of {seeds_of(rows)} seeds; evaluation steps at batch 1 "
        "([details, layouts](par_search.md)):"
    )
    return "\n".join([title, "", *table(head, lines)]) + "\n"


def layouts_line(results: Document) -> str:
    parts = []
    for about, rows in experiments(results):
        scored, settings, each = about["data"]["scored"], about["settings"], []
        for model in models_of(row for row in rows if row["metric"] == "attention"):
            perplexity, blocks = value(rows, model, f"{scored}_ppl"), value(rows, model, "attention")
            each.append(f"{model} {shown(perplexity, 2)} ({blocks:.3g} attention blocks)")
        parts.append(
            f"{scored} perplexity, {about['data']['name']}, {settings['blocks']} blocks, {settings['updates']:,} "
            f"updates, mean of {seeds_of(rows)} seeds: {', '.join(each)}"
        )
    return "; ".join(parts)


# --- spans -----------------------------------------------------------------------------------------------------------


def spans(results: Document) -> str:
    """Each model of the first experiment on one line: bits, how far its heads look, time and memory."""
    about, rows = first_experiment(results)
    settings, lines = about["settings"], []
    for model in models_of(rows):
        metrics = (("test_bpc", 4), ("mean_span", 0), ("max_span", 0), ("seconds_per_update", 3))
        cells = [shown(value(rows, model, metric), digits) for metric, digits in metrics]
        lines.append([model, *cells, f"{max(row['peak_mb'] for row in rows if row['model'] == model):,}"])
    head = ("spans", f"{about['data']['scored']} bits per byte", "mean span", "longest", "s / update", "training MB")
    title = (
        f"**Adaptive spans**, {about['data']['name']}, {settings['layers']} layers, width {settings['dim']}, "
        f"{settings['updates']:,} updates, mean of {seeds_of(rows)} seed(s), equal parameters "
        "([details, spans of each layer](adaptive_span.md)):"
    )
    return "\n".join([title, "", *table(head, lines)]) + "\n"


def spans_line(results: Document) -> str:
    about, rows = first_experiment(results)
    each = [
        f"{model} {shown(value(rows, model, 'test_bpc'), 4)} (mean span {shown(value(rows, model, 'mean_span'), 0)})"
        for model in models_of(rows)
    ]
    settings = about["settings"]
    return (
        f"{about['data']['scored']} bits per byte, {about['data']['name']}, {settings['layers']} layers of width "
        f"{settings['dim']}, {settings['updates']:,} updates: {', '.join(each)}"
    )


class Quality(NamedTuple):
    """A quality run: its file of results, and what is made of it."""

    title: str
    file: str
    table: Callable[[Document], str]
    line: Callable[[Document], str]


RUNS = (  # in the order of benches.BENCHES
    Quality("Pyramidion", "deep_pyramidion.json", summaries, summaries_line),
    Quality("Dynamic pooling", "dynamic_pooling.json", character_models, characters_line),
    Quality("Skimming", "skimming.json", skimmed, skimmed_line),
    Quality("PAR search", "par_search.json", layouts, layouts_line),
    Quality("Adaptive spans", "adaptive_span.json", spans, spans_line),
)


def tables() -> list[str]:
    """What was found of each system's quality, in full; empty for systems without a quality run yet."""
    return ["" if results is None else run.table(results) for run, results in _loaded()]


def lines() -> str:
    """The same in a line each; systems without a quality run yet say so."""
    found = [(run.title, "" if results is None else run.line(results)) for run, results in _loaded()]
    return "\n".join(f"- {title}: {line or 'being measured'}." for title, line in found) + "\n"


def _loaded() -> list[tuple[Quality, Document | None]]:
    return [(run, load(run.file)) for run in RUNS]
