#!/usr/bin/env python
"""Write the results section of README.md from docs/results/*.json; ``--check`` only says whether it is up to date."""

import argparse
import json
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by scripts/update_readme.py from docs/results/*.json -->", "<!-- /results -->"
SPEED = {
    "encoder_forward/8192/vs_stock": "encoder, 8,192 tokens",
    "encoder_forward/16384/vs_stock": "encoder, 16,384 tokens",
    "encoder_forward/8192/vs_blockwise": "encoder, 8,192 tokens",
    "train_step/8192/vs_stock": "training step, 8,192 tokens",
    "train_step/8192/vs_blockwise": "training step, 8,192 tokens",
    "train_step/8192/bf16/vs_stock": "training step, 8,192 tokens, `--cpu-bf16` against fp32",
    "generate/8192/beam16/vs_stock": "summary of 128 tokens, beam 16, from 8,192",
    "generate/8192/beam16/vs_blockwise": "summary of 128 tokens, beam 16, from 8,192",
    "decode/512/beam16/vs_stock": "one decoding step from 512 tokens, beam 16",
}
BASELINES = {"vs_stock": "stock fairseq `transformer`", "vs_blockwise": "blockwise, no pooling (the paper's baseline)"}


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
    parts = [speed(load("bench_pyramidion.json")), quality(load("pyramidion.json"))]
    return "\n".join(part for part in parts if part)


def load(name: str) -> dict[str, Any] | None:
    path = ROOT / "docs" / "results" / name
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def speed(results: dict[str, Any] | None) -> str:
    if results is None:
        return ""
    machine = results["machine"]
    lines = [
        f"Speed ({machine.get('cpu', 'CPU')}, {machine.get('threads', '?')} threads, d=512, 6+6 layers, chunks of 512, "
        "halving to 512; "
        "[all rows](docs/results/bench_pyramidion.json), losses included):",
        "",
        "| work | against | seconds, ours / theirs | times faster | peak MB, ours / theirs |",
        "|---|---|---|---|---|",
    ]
    rows = {row["name"]: row for row in results["rows"]}
    for name, what in SPEED.items():
        row = rows.get(name)
        if row is None:
            continue
        memory = " / ".join("-" if row[k] is None else f"{row[k]:,.0f}" for k in ("ours_mb", "baseline_mb"))
        times = f"{row['ours_s']:.3g} / {row['baseline_s']:.3g}"
        lines.append(f"| {what} | {BASELINES[name.split('/')[-1]]} | {times} | **{row['ratio']:.1f}x** | {memory} |")
    return "\n".join(lines) + "\n"


def quality(results: dict[str, Any] | None) -> str:
    """Each model of the quality run on one line: scores and what training cost."""
    if results is None:
        return ""
    rows = results["rows"]
    cells = {(row["model"], row["metric"]): row for row in rows}
    names = {"full": "full attention", "lead": "lead (first sentences)"}
    data = results["data"]
    updates = max(row["updates"] for row in rows)
    parameters = max(row["params"] for row in rows) / 1e6
    lines = [
        f"Quality at equal size ({parameters:.1f} million parameters) and equal training ({updates:,} updates from "
        f"scratch), {data['name']}, {data['pairs']:,} documents cut to {data['max_source_positions']:,} tokens "
        "([details](docs/results/pyramidion.md)); so short a training stays below lead for every model:",
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


if __name__ == "__main__":
    run_main(main)
