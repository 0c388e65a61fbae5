"""The dynamic pooling benchmark at toy sizes: its FLOPs, its text, its parity checks, its rows and its files."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.bench import decoding, flops
from fairseq_efficient.errors import UserError
from tests.util import ROOT, error_line, load_script, run_cli

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
from bench_parts.dynamic_pooling import generation, models, ops, rows
from bench_parts.dynamic_pooling import parity as checks

SCRIPT = ROOT / "scripts" / "bench" / "dynamic_pooling.py"
script = load_script(SCRIPT)

TOY = models.Setup(dim=16, ffn=32, heads=2, layers=4, outer=1, types=12, batch=2)
KINDS = ("vanilla-relative", "vanilla-rotary", "sf2-relative", "sf4-rotary", "padded-relative")


def counted(call: Any) -> int:
    """FLOPs as torch counts them; under MATH, because it sees none in the CPU's fused attention."""
    more = {torch.ops.aten.baddbmm_: lambda _, one, two, **shapes: 2 * math.prod(one) * two[2]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=more) as counter:
        call()
    return counter.get_total_flops()


def unfused(kind: str, n: int) -> float:
    """What MATH computes beyond the fused kernel's FLOPs: later keys, but the scores once only."""
    if kind.endswith("relative"):
        return 0
    full = flops.TRAINING * flops.attention(n, n, TOY.dim)
    if kind == models.TRANSFORMER_LM:
        return TOY.batch * TOY.layers * (full - flops.FUSED_TRAINING * flops.attention(n, n, TOY.dim))
    inner = [n, n] if kind.startswith("vanilla") else models.segments(kind, n, TOY)
    found = 0.0
    for length in [n, n, *inner]:
        full = flops.TRAINING * flops.attention(length, length, TOY.dim)
        found += TOY.batch * (full - flops.FUSED_TRAINING * flops.causal_attention(length, TOY.dim))
    return found


@pytest.mark.parametrize("kind", [*KINDS, models.TRANSFORMER_LM])
def test_training_gflop_equals_torchs_count(kind: str) -> None:
    n = 150  # more than a tile of queries
    pooled = 0 if kind.startswith(("vanilla", "transformer")) else flops.TRAINING * TOY.batch * n * TOY.dim
    expected = 1e9 * models.training_gflop(kind, n, TOY) + unfused(kind, n) - pooled
    assert counted(models.train_step(kind, n, TOY)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_decoding_gflop_equals_torchs_count(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = generation.ready  # the counter trips over parameters that want a gradient where there is none
    monkeypatch.setattr(generation, "ready", lambda *args: prepare(*args).requires_grad_(False))
    for n in (40, 140):  # the table of positions doubles twice
        assert counted(generation.decode(kind, n, TOY)) == pytest.approx(1e9 * models.decoding_gflop(kind, n, TOY))


@pytest.mark.parametrize("kind", [ops.RELATIVE, ops.EINSUM])
def test_attention_gflop_equals_torchs_count(kind: str) -> None:
    assert counted(ops.attention(kind, 200, TOY)) == pytest.approx(1e9 * ops.attention_gflop(kind, 200, TOY))


def test_text_has_words_of_4_7_letters_and_its_segments_are_counted() -> None:
    tokens = models.text(20000, TOY)
    words = models.dictionary(TOY)
    spaces = tokens.eq(words.index(models.SPACE)).sum(1)
    assert len(words) == TOY.types and tokens[:, 0].eq(words.eos()).all() and tokens[:, 1:].min() > 3
    assert torch.allclose(20000 / spaces, torch.tensor(5.7), rtol=0.02)
    assert models.segments("packed-rotary", 20000, TOY) == (spaces + 2).tolist()
    assert models.segments("padded-rotary", 20000, TOY) == [spaces.max().item() + 2] * 2
    assert models.segments("sf3-rotary", 20, TOY) == [7, 7]
    assert generation.firing_share("sf4-rotary", 64, TOY) == 25
    assert 17 < generation.firing_share("padded-rotary", 20000, replace(TOY, batch=1)) < 18


def test_parity_is_green_and_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(checks.parity(TOY))
    assert len(found) == 18 and all(check.passed for check in found), found
    monkeypatch.setitem(ops.ATTENTION, ops.EINSUM, lambda q, k, v, r, u, w: ops.einsum_attention(q, k, v, r, w, u))
    assert not next(iter(checks.parity(TOY))).passed


def test_recomputing_is_measured_at_a_sample_of_prefixes_or_all() -> None:
    assert decoding.prefixes(1024) == [1, 128, 256, 384, 512, 640, 768, 896, 1024]
    assert decoding.prefixes(30, full=True) == list(range(1, 31))
    assert generation.recompute("sf4-rotary", 24, TOY)()["total"] > 0


def test_pooling_is_a_part_of_the_step() -> None:
    run = models.train_step_by_parts("sf4-relative", 64, TOY)
    names = [getattr(models.pool_module, name).backward for name in ("_Pool", "_Upsample")]
    assert run()["pooling"] > 0
    assert [getattr(models.pool_module, name).backward for name in ("_Pool", "_Upsample")] == names


TRAINED = {
    f"{what}/{n}/sf{factor}-{encoding}/{against}"
    for n in (32, 64)
    for factor in (2, 4)
    for encoding in ("relative", "rotary")
    for what, against in (
        ("train_step", "vs_vanilla"),
        ("memory", "vs_vanilla"),
        ("memory", "vs_vanilla_activations"),
    )
}
OTHERS = {
    "train_step/64/rotary/vs_relative", "train_step/64/rotary-vanilla/vs_transformer_lm",
    "attention/64/relative/vs_einsum", "pooling/64/pool/vs_embedding_bag", "pooling/64/pool-training/vs_embedding_bag",
    "pooling/64/upsample/vs_index_select", "pooling/64/upsample-training/vs_index_select",
    "pooling/64/layout/vs_embedding_bag",
}  # fmt: skip
BOTH = {
    "train_step/48/whitespaces-{}/vs_vanilla", "train_step/48/whitespaces-packed-{}/vs_vanilla",
    "train_step/48/whitespaces-packed-{}/vs_padded", "pooling/64/sf4-{}/vs_train_step",
    "decode/16/batch1-sf4-{}/vs_vanilla", "decode/16/batch3-sf4-{}/vs_vanilla",
    "decode/16/batch3-whitespaces-{}/vs_vanilla", "generate/16/batch3-sf4-{}/vs_recompute",
    "generate/16/batch3-greedy-sf4-{}/vs_vanilla", "train_step/64/batch3-sf4-{}/vs_vanilla",
    "memory/64/batch3-sf4-{}/vs_vanilla", "memory/64/batch3-sf4-{}/vs_vanilla_activations",
}  # fmt: skip


def test_a_run_writes_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(args: Any) -> tuple[rows.Bench, list[str]]:
        bench = rows.Bench(TOY, sizes=[32, 64], runs=1, threads=1, factors=(2, 4), decode_size=16)
        bench.ragged_size, bench.ragged_batch, bench.decode_batches = 48, 3, (1, 3)
        return bench, list(rows.ROWS)

    monkeypatch.setattr(script, "make_bench", make)
    peak = rows.Peak(10.0, None)
    monkeypatch.setattr("fairseq_efficient.bench.session.peak_memory", lambda *args, **where: peak)
    goals = {"train_step/64/sf4-rotary/vs_vanilla": 1e9, "attention/64/relative/vs_einsum": 0.0}
    monkeypatch.setattr(rows.Bench, "goals", goals)
    monkeypatch.setattr(rows.Bench, "ceilings", {"memory/64/sf4-rotary/vs_vanilla": 50.0})
    argv = ["x.py", "--threads", "1", "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", argv)
    assert script.main() == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "machine", "versions", "commit", "command", "settings", "rows"} <= set(document)
    assert document["settings"]["complete"] is True and document["settings"]["dropout"] == 0
    found = {row["name"]: row for row in document["rows"]}
    both = {name.format(encoding) for name in BOTH for encoding in ("relative", "rotary")}
    assert set(found) == TRAINED | OTHERS | both and len(found) == len(document["rows"])
    assert found["train_step/64/sf4-rotary/vs_vanilla"]["met"] is False
    assert found["train_step/64/sf4-rotary/vs_vanilla"]["bound"] > 1.5
    assert found["attention/64/relative/vs_einsum"]["met"] is True
    memory = found["memory/64/sf4-rotary/vs_vanilla"]
    assert (memory["value"], memory["unit"], memory["met"]) == (100, "%", False)
    assert 0 < found["pooling/64/sf4-relative/vs_train_step"]["value"] < 100
    assert "25 % of the steps" in found["decode/16/batch1-sf4-rotary/vs_vanilla"]["note"]
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 and row["runs"] >= 1 for row in document["rows"])
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("goals", [rows.GOALS, rows.CEILINGS])
def test_goals_are_of_rows_that_exist(goals: dict[str, float]) -> None:
    sizes = {"64": "2048", "16": "1024"}
    names = TRAINED | OTHERS | {name.format(encoding) for name in BOTH for encoding in ("relative", "rotary")}
    for name in names.copy():
        for toy, real in sizes.items():
            name = name.replace(f"/{toy}", f"/{real}")
        names |= {name.replace("/batch3", f"/batch{batch}") for batch in (4, 8)}  # of training, of decoding
    assert set(goals) <= names


def test_bf16_leaves_out_what_fairseq_cannot_do() -> None:
    bench = rows.Bench(replace(TOY, dtype="bf16"), sizes=[32], runs=1, threads=1, memory=False, emit=lambda text: None)
    bench.measure(["encodings"])
    assert [row.name for row in bench.rows] == ["train_step/32/rotary/vs_relative"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "walk"], "--rows walk: not one of"),
        (["--sizes", "8"], "whole numbers from 16 up"),
        (["--encodings", "none"], "--encodings none: not one of"),
        (["--dropout", "1"], "--dropout 1.0: must be at least 0"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
    ],
)
def test_wrong_flags(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        script.make_bench(script.get_parser().parse_args(flags))


def test_flags() -> None:
    bench, names = script.make_bench(script.get_parser().parse_args(["--quick", "--encodings", "rotary"]))
    assert bench.encodings == ("rotary",) and not bench.memory and "generate" not in names
    bench, names = script.make_bench(script.get_parser().parse_args(["--dropout", "0.1", "--batch", "2"]))
    assert (bench.setup.dropout, bench.setup.batch, bench.sizes) == (0.1, 2, [1024, 2048, 4096])
    assert names == list(rows.ROWS) and models.config("vanilla-rotary", bench.setup).attention_dropout == 0


def test_the_command_checks_alone_and_measures_tiny_sizes(tmp_path: Path) -> None:
    """The script itself, with its peaks measured in processes of their own."""
    flags = [
        "--rows",
        "attention",
        "--sizes",
        "64",
        "--runs",
        "1",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "a.json"),
    ]
    output = run_cli(str(SCRIPT), flags)
    assert "FAIL" not in output and "attention/64/relative/vs_einsum" in output
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["ours_mb"] is not None
    assert error_line(run_cli(str(SCRIPT), ["--json", "no/a.json"], expect=2)).endswith("folder")
