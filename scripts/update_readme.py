#!/usr/bin/env python
"""Write the results section of README.md from docs/results/*.json; ``--check`` only says whether it is up to date."""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.report.speed_quality import DENSE, STOCK, SpeedQuality

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by scripts/update_readme.py from docs/results/*.json -->", "<!-- /results -->"


class Bench(NamedTuple):
    """What README shows of a benchmark: row -> (work, what it is measured against)."""

    file: str
    title: str
    sizes: str
    rows: dict[str, tuple[str, str]]


_STOCK, _BLOCKWISE = "stock fairseq `transformer`", "blockwise, no pooling (the paper's baseline)"
_VANILLA = "12 layers without pooling, same attention"
PYRAMIDION = Bench(
    "bench_pyramidion.json",
    "Pyramidion",
    "d=512, 6+6 layers, chunks of 512, halving to 512",
    {
        "encoder_forward/8192/vs_stock": ("encoder, 8,192 tokens", _STOCK),
        "encoder_forward/16384/vs_stock": ("encoder, 16,384 tokens", _STOCK),
        "encoder_forward/8192/vs_blockwise": ("encoder, 8,192 tokens", _BLOCKWISE),
        "train_step/8192/vs_stock": ("training step, 8,192 tokens", _STOCK),
        "train_step/8192/vs_blockwise": ("training step, 8,192 tokens", _BLOCKWISE),
        "train_step/8192/bf16/vs_stock": ("training step, 8,192 tokens, `--cpu-bf16` against fp32", _STOCK),
        "generate/8192/beam16/vs_stock": ("summary of 128 tokens, beam 16, from 8,192", _STOCK),
        "generate/8192/beam16/vs_blockwise": ("summary of 128 tokens, beam 16, from 8,192", _BLOCKWISE),
        "decode/512/beam16/vs_stock": ("one decoding step from 512 tokens, beam 16", _STOCK),
    },
)
HOURGLASS = Bench(
    "bench_dynamic_pooling.json",
    "Dynamic pooling",
    "d=512, 2+8+2 layers, segments of 4 characters",
    {
        "train_step/2048/sf4-relative/vs_vanilla": ("training step, 2,048 characters, relative attention", _VANILLA),
        "train_step/2048/batch4-sf4-relative/vs_vanilla": ("the same, batch 4", _VANILLA),
        "train_step/2048/sf4-rotary/vs_vanilla": ("training step, 2,048 characters, rotary attention", _VANILLA),
        "train_step/2048/batch4-sf4-rotary/vs_vanilla": ("the same, batch 4", _VANILLA),
        "train_step/2048/rotary-vanilla/vs_transformer_lm": (
            "training step, 2,048 characters, 12 layers, rotary",
            "stock fairseq `transformer_lm`",
        ),
        "attention/2048/relative/vs_einsum": ("relative attention alone, 2,048 characters", "einsum and shift"),
        "generate/1024/batch8-sf4-rotary/vs_recompute": ("1,024 characters, batch 8", "recomputing each prefix"),
        "decode/1024/batch1-sf4-rotary/vs_vanilla": ("a character of 1,024, batch 1", f"cached {_VANILLA}"),
    },
)

_INTERLEAVED = "interleaved Transformer-XL, 16 + 16 blocks"
_PAR = "64 tokens after 640, 6 + 26 blocks"
PAR = Bench(
    "bench_par_search.json",
    "PAR search",
    "d=512, 32 blocks, 267,744 types",
    {
        "eval_latency/64/mem640-batch1-par/vs_interleaved": (f"evaluation step, {_PAR}, hidden states", _INTERLEAVED),
        "eval_latency/64/mem640-batch1-par-keys/vs_interleaved-keys": ("the same, cached keys", _INTERLEAVED),
        "eval_latency/64/mem640-batch32-par/vs_interleaved": ("the same, batch 32, hidden states", _INTERLEAVED),
        "attention/512/mem512-batch1-training/vs_einsum": (
            "attention layer, 512 after 512, training",
            "einsum and shift",
        ),
        "softmax/50000/optimal/vs_full": ("adaptive softmax, 50,000 types, optimal cutoffs, training", "full softmax"),
        "softmax/267744/optimal/vs_full": ("adaptive softmax, 267,744 types, training", "full softmax"),
        "generate/256/batch8-par/vs_recompute": ("256 tokens, batch 8", "recomputing each prefix"),
        "decode/256/batch1-par/vs_interleaved": ("a token of 256, batch 1", f"cached {_INTERLEAVED}"),
    },
)
_PACKED = "the same engine without skimming"
SKIMMING = Bench(
    "bench_skimming.json",
    "Skimming",
    "tokens that go on are given, unequal shares of each sentence; 60 % of the padded batch is no padding",
    {
        f"packed_forward/{size}/{model}-keep{share}/vs_{against}": (
            f"{model}, {batch} x {size} tokens, {100 * share:.0f} % kept",
            _PACKED if against == "packed" else "stock fairseq `roberta`, padded",
        )
        for model in ("6x384", "12x768")
        for size, batch in ((128, 32), (512, 8))
        for share in (0.5, 0.3)
        for against in ("packed", "stock")
    },
)
_FULL, _LONGEST = "all heads see 8,192", "all heads computed as far as the longest"
SPANS = Bench(
    "bench_adaptive_span.json",
    "Adaptive spans",
    "d=512, 12 layers, 8 heads, blocks of 512 bytes, spans up to 8,192",
    {
        "attention/8192/span2pct/vs_full": ("attention alone, all spans 2 % of 8,192, training", _FULL),
        "attention/8192/mixed/vs_longest": ("attention alone, one head of eight long, training", _LONGEST),
        "attention/8192/full/vs_sdpa": ("attention alone, full span, training", "torch's fused attention with a mask"),
        "train_step/8192/span2pct/vs_full": ("training step, all spans 2 %", _FULL),
        "train_step/8192/mixed/vs_longest": ("training step, one head of eight long", _LONGEST),
        "decode/8192/span2pct/vs_full": ("a byte with full caches, all spans 2 %", _FULL),
    },
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if README.md is out of date"
    )
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme.name}: the markers of the results section are missing")
    head, rest = text.split(BEGIN)
    new = head + BEGIN + "\n" + section() + END + rest.split(END)[1]
    if new == text:
        print("README.md is up to date")
        return 0
    if check:
        print("README.md is out of date: run scripts/update_readme.py")
        return 1
    readme.write_text(new, encoding="utf-8")
    print("README.md written")
    return 0


def section() -> str:
    parts = [
        speed(PYRAMIDION),
        summaries(load("pyramidion.json")),
        speed(HOURGLASS),
        character_models(load("dynamic_pooling.json")),
        speed(SKIMMING),
        skimmed(load("skimming.json")),
        speed(PAR),
        layouts(load("par_search.json")),
        speed(SPANS),
        spans(load("adaptive_span.json")),
    ]
    return "\n".join(part for part in parts if part)


def load(name: str) -> dict[str, Any] | None:
    path = ROOT / "docs" / "results" / name
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def speed(bench: Bench) -> str:
    results = load(bench.file)
    if results is None:
        return ""
    machine = results["machine"]
    lines = [
        f"**{bench.title}**, speed ({machine.get('cpu', 'CPU')}, {machine.get('threads', '?')} threads, {bench.sizes}; "
        f"[all rows](docs/results/{bench.file}), losses included):",
        "",
        "| work | against | seconds, ours / theirs | times faster | peak MB, ours / theirs |",
        "|---|---|---|---|---|",
    ]
    rows = {row["name"]: row for row in results["rows"]}
    for name, (what, against) in bench.rows.items():
        row = rows.get(name)
        if row is None:
            continue
        memory = " / ".join("-" if row[k] is None else f"{row[k]:,.0f}" for k in ("ours_mb", "baseline_mb"))
        times = f"{row['ours_s']:.3g} / {row['baseline_s']:.3g}"
        lines.append(f"| {what} | {against} | {times} | **{row['ratio']:.1f}x** | {memory} |")
    return "\n".join(lines) + "\n"


def summaries(results: dict[str, Any] | None) -> str:
    """Each model of Pyramidion's quality run on one line: scores and what training cost."""
    if results is None:
        return ""
    rows = results["rows"]
    cells = {(row["model"], row["metric"]): row for row in rows}
    names = {"full": "full attention", "lead": "lead (first sentences)"}
    data = results["data"]
    updates = max(row["updates"] for row in rows)
    parameters = max(row["params"] for row in rows) / 1e6
    lines = [
        f"**Pyramidion**, quality at equal size ({parameters:.1f} million parameters) and equal training "
        f"({updates:,} updates from scratch), {data['name']}, {data['pairs']:,} documents cut to "
        f"{data['max_source_positions']:,} tokens ([details](docs/results/pyramidion.md)); so short a training stays "
        "below lead for every model:",
        "",
        "| model | ROUGE-1 | ROUGE-2 | ROUGE-L | seconds per update | training MB |",
        "|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        if model == "oracle":
            continue
        scores = [f"{cells[model, kind]['value']:.1f}" for kind in ("rouge1", "rouge2", "rougeL")]
        each = cells.get((model, "seconds_per_update_fastest"))
        cost = [f"{each['value']:.2f}", f"{each['peak_mb']:,}"] if each else ["-", "-"]
        lines.append("| " + " | ".join([names.get(model, model), *scores, *cost]) + " |")
    return "\n".join(lines) + "\n"


def character_models(results: dict[str, Any] | None) -> str:
    """Each language model of the first experiment on one line: bits at equal updates and at equal time, and cost."""
    if results is None:
        return ""
    name, about = next(iter(results["experiments"].items()))
    rows = [row for row in results["rows"] if row["experiment"] == name]
    settings = about["settings"]

    def average(model: str, metric: str, setting: str = "updates") -> float | None:
        key = (model, metric, setting)
        found = [row["value"] for row in rows if (row["model"], row["metric"], row["setting"]) == key]
        return mean(found) if found else None

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    seeds = len({row["seed"] for row in rows})
    lines = [
        f"**Dynamic pooling**, test bits per character, {about['data']['name']}, layers {settings['layers']}, width "
        f"{settings['dim']}, {settings['updates']:,} updates, mean of {seeds} seeds "
        "([details, other data, what it does not show](docs/results/dynamic_pooling.md)):",
        "",
        "| segments | bits, equal updates | bits, equal time | characters per segment | seconds per update |",
        "|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        drawn = average(model, "sampled_shortening_factor")  # its own, after p > 0.5, may be none at all
        length = shown(average(model, "shortening_factor"), 2) if drawn is None else f"{drawn:.2f} drawn"
        cells = [
            shown(average(model, "test_bpc"), 4),
            shown(average(model, "test_bpc", "time"), 4),
            length,
            shown(average(model, "seconds_per_update"), 3),
        ]
        lines.append(f"| {'none (vanilla)' if model == 'vanilla' else model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def average_of(rows: list[dict[str, Any]], model: str, metric: str, digits: int) -> str:
    found = [row["value"] for row in rows if (row["model"], row["metric"]) == (model, metric)]
    return f"{mean(found):,.{digits}f}" if found else "-"


def layouts(results: dict[str, Any] | None) -> str:
    """Each layout of the first experiment on one line: perplexity, size and latency."""
    if results is None:
        return ""
    name, about = next(iter(results["experiments"].items()))
    rows = [row for row in results["rows"] if row["experiment"] == name]
    settings, scored = about["settings"], about["data"]["scored"]

    seeds = len({row["seed"] for row in rows})
    lines = [
        f"**PAR search**, {about['data']['name']}, {settings['blocks']} blocks, width {settings['dim']}, "
        f"{settings['updates']:,} updates, mean of {seeds} seeds; evaluation steps at batch 1 "
        "([details, layouts](docs/results/par_search.md)):",
        "",
        f"| layout | {scored} perplexity | attention blocks | ms, hidden states | ms, cached keys | s / update |",
        "|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows if row["metric"] == "attention"):
        cells = [
            average_of(rows, model, f"{scored}_ppl", 2),
            average_of(rows, model, "attention", 1),
            average_of(rows, model, "latency_ms_hidden_batch1", 1),
            average_of(rows, model, "latency_ms_keys_batch1", 1),
            average_of(rows, model, "seconds_per_update", 3),
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spans(results: dict[str, Any] | None) -> str:
    """Each model of the first experiment on one line: bits, how far its heads look, time and memory."""
    if results is None:
        return ""
    name, about = next(iter(results["experiments"].items()))
    rows = [row for row in results["rows"] if row["experiment"] == name]
    settings = about["settings"]

    lines = [
        f"**Adaptive spans**, {about['data']['name']}, {settings['layers']} layers, width {settings['dim']}, "
        f"{settings['updates']:,} updates, mean of {len({row['seed'] for row in rows})} seed(s), equal parameters "
        "([details, spans of each layer](docs/results/adaptive_span.md)):",
        "",
        f"| spans | {about['data']['scored']} bits per byte | mean span | longest | s / update | training MB |",
        "|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        shown = (("test_bpc", 4), ("mean_span", 0), ("max_span", 0), ("seconds_per_update", 3))
        cells = [average_of(rows, model, *one) for one in shown]
        cells.append(f"{max(row['peak_mb'] for row in rows if row['model'] == model):,}")
        lines.append("| " + " | ".join([model, *cells]) + " |")
    return "\n".join(lines) + "\n"


def skimmed(results: dict[str, Any] | None) -> str:
    """Of each data set the dense model and the fastest skimmed one within a point of it."""
    if results is None:
        return ""
    lines = [
        "**Skimming**, MiniLM fine-tuned densely, and the fastest skimmed model at most a point below; times faster "
        "on the clock at batch 32, texts as they come ([details](docs/results/skimming.md)):",
        "",
        "| data | dense | skimmed | tokens kept | FLOPs, dense / skimmed | over fairseq, padded | over dense, packed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in results["sets"]:
        found = SpeedQuality.of(results, name)
        best, dense = found.best(1.0), found.quality(DENSE)
        title = f"{found.about['title']}, {found.about['metric_title'].removesuffix(', %')}"
        if dense is None:
            continue
        if best is None:
            lines.append(f"| {title} | {dense:.1f} | none | - | - | - | - |")
            continue
        kept, flops = found.value(best, "keep_ratio"), found.value(best, "flops_ratio_unpadded")
        over = [f"**{found.faster(best, than) or 0:.1f}x**" for than in (STOCK, DENSE)]
        lines.append(
            f"| {title} | {dense:.1f} | {found.quality(best):.1f} | {100 * (kept or 0):.0f} % | {flops:.1f}x | "
            + " | ".join(over) + " |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
