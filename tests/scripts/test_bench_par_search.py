"""The PAR benchmark at toy sizes: its FLOPs, its tokens, its parity checks, its rows and its files."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.bench.memory import Peak
from fairseq_efficient.errors import UserError
from par_search import blocks
from tests.util import ROOT, error_line, load_script, run_cli

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
from bench_parts import einsums
from bench_parts.par_search import models, ops, rows
from bench_parts.par_search import parity as checks

SCRIPT = ROOT / "scripts" / "bench" / "par_search.py"
script = load_script(SCRIPT)

TOY = models.Setup(dim=16, ffn=32, heads=2, blocks=6, types=60, cutoffs="20,40", batch=2, memory=12)


def counted(call: Any) -> int:
    """FLOPs as torch counts them; under MATH, because it sees none in the CPU's fused attention."""
    more = {torch.ops.aten.baddbmm_: lambda _, one, two, **shapes: 2 * one[0] * one[1] * one[2] * two[2],
            torch.ops.aten.baddbmm.out: lambda _, one, two, **shapes: 2 * one[0] * one[1] * one[2] * two[2],
            torch.ops.aten.bmm.out: lambda one, two, **shapes: 2 * one[0] * one[1] * one[2] * two[2]}  # fmt: skip
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=more) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("kind", [ops.RELATIVE, "not kept", ops.ADDITIVE, ops.EINSUM])
def test_attention_gflop_is_torchs_count(kind: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one tile: several leave out what lies above the diagonal. The scores of one distance more are not counted."""
    if kind == "not kept":
        kind = ops.RELATIVE
        for module in (ops, blocks):
            monkeypatch.setattr(module, "KEEP", 0)
    work = ops.attention_training if training else ops.attention_forward
    setup, n = replace(TOY, dim=64), 24
    found = counted(work(kind, n, setup))
    if training and kind == ops.ADDITIVE:  # the fused kernel makes the scores again, MATH does not
        found += 2 * setup.batch * setup.dim * n * (n + setup.memory)
    assert found == pytest.approx(1e9 * ops.attention_gflop(training, kind, n, setup), rel=0.02)


@pytest.mark.parametrize("kind", [ops.OPTIMAL, ops.MATMUL, ops.RULE, ops.FULL])
def test_softmax_gflop_is_torchs_count(kind: str) -> None:
    setup = replace(TOY, memory=30_000, dim=64)
    found = counted(ops.softmax_step(kind, 200, setup))
    assert found == pytest.approx(1e9 * ops.softmax_gflop(kind, 200, setup), rel=0.03)  # tokens are drawn


def test_tokens_follow_zipf() -> None:
    setup = replace(TOY, types=1000, batch=4)
    tokens = models.text(5000, setup)
    assert tokens.shape == (4, 5001) and tokens.min() == 4 and tokens.max() < 1000
    counts = torch.bincount(tokens.flatten(), minlength=1000)
    assert counts[4] > 1.3 * counts[6] > 2 * counts[30] > 0
    assert (np.diff(ops.counts(500)[4:]) < 0).all() and not ops.counts(500)[:4].any()


def test_names_of_nets() -> None:
    assert models.layout_of("interleaved", 6) == models.layout_of("interleaved-keys", 6) == "afafaf"
    assert models.layout_of("par-keys", 10) == "affaffffff"
    assert models.layout_of("none", 6) == "" and models.layout_of("aff-keys", 6) == "aff"
    net = models.build("par-keys", 8, TOY)
    assert net.options.block.cache_keys and net.embed_tokens is models.build("interleaved", 8, TOY).embed_tokens


def test_parity_is_green_and_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(checks.parity(TOY))
    assert len(found) == 3 + 4 + 1 + 2 + 4 and all(check.passed for check in found), found
    shifted = einsums.shifted
    monkeypatch.setattr(einsums, "shifted", lambda scores: shifted(scores).roll(1, -1))
    assert not next(iter(checks.parity(TOY))).passed


ATTENTION = {
    f"attention/{tokens}/mem{memory}-batch{batch}-{how}/vs_{baseline}"
    for tokens, memory in ((8, 20), (12, 12))
    for batch in (1, 2)
    for how in ("forward", "training")
    for baseline in (ops.ADDITIVE, ops.EINSUM)
}
OTHERS = {
    *(f"eval_latency/8/mem20-batch{batch}-par{cache}/vs_interleaved{cache}" for batch in (1, 2)
      for cache in ("", "-keys")),
    *(f"eval_latency/8/mem20-batch1-{layout}{cache}/vs_predicted" for layout in ("par", "interleaved")
      for cache in ("", "-keys")),
    "train_step/12/mem12-batch3-supernet/vs_branches",
    *(f"softmax/{types}/optimal/vs_{other}" for types in (100, 200) for other in (ops.FULL, ops.RULE, ops.MATMUL)),
    "decode/10/batch1-par/vs_interleaved", "decode/10/batch2-par/vs_interleaved",
    "generate/10/batch2-par/vs_recompute", "generate/10/batch2-interleaved/vs_recompute",
}  # fmt: skip


def toy_bench(**more: Any) -> rows.Bench:
    bench = rows.Bench(TOY, sizes=[8, 12], runs=1, threads=1, **more)
    bench.shapes, bench.batches, bench.latency_batches = ((8, 20), (12, 12)), (1, 2), (1, 2)
    bench.chain, bench.copies, bench.supernet_batch = 2, 2, 3
    bench.vocabularies, bench.states = (100, 200), 30
    bench.decode_size, bench.decode_batches = 10, (1, 2)
    return bench


def test_a_run_writes_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "make_bench", lambda args: (toy_bench(), list(rows.ROWS)))
    peak = Peak(10.0, None)
    monkeypatch.setattr("fairseq_efficient.bench.session.peak_memory", lambda *args, **where: peak)
    latency, attention = "eval_latency/8/mem20-batch1-par/vs_interleaved", "attention/8/mem20-batch1-forward/vs_"
    monkeypatch.setattr(rows.Bench, "goals", {latency: 1e9})
    monkeypatch.setattr(rows.Bench, "ceilings", {attention + ops.ADDITIVE: 1e9})
    argv = ["x.py", "--threads", "1", "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", argv)
    assert script.main() == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "machine", "versions", "commit", "command", "settings", "rows"} <= set(document)
    found = {row["name"]: row for row in document["rows"]}
    assert set(found) == ATTENTION | OTHERS and len(found) == len(document["rows"])
    assert found[latency]["met"] is False and found[attention + ops.ADDITIVE]["met"] is True
    assert found[latency]["bound"] > 1 and "6 blocks, 1 of them attention" in found[latency]["note"]
    assert found["eval_latency/8/mem20-batch1-par/vs_predicted"]["unit"] == "%"
    assert "cutoffs" in found["softmax/100/optimal/vs_rule"]["note"] and found["softmax/100/optimal/vs_full"]["ours_mb"]
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 and row["runs"] >= 1 for row in document["rows"])
    assert (tmp_path / "a.png").exists()


def test_goals_are_of_rows_that_exist() -> None:
    named = rows.Bench(models.Setup(), sizes=[])
    names = {
        f"attention/{tokens}/mem{memory}-batch{batch}-{how}/vs_{ops.ADDITIVE}"
        for tokens, memory in named.shapes
        for batch in named.batches
        for how in named.passes
    }
    (tokens, memory), (training, remembered), _ = named.shapes
    front = f"eval_latency/{tokens}/mem{memory}-batch1-"
    names |= {f"{front}{layout}{cache}/vs_predicted" for layout in ("interleaved", "par") for cache in named.caches}
    names |= {f"{front}par/vs_interleaved", "generate/256/batch8-par/vs_recompute",
              f"train_step/{training}/mem{remembered}-batch{named.supernet_batch}-supernet/vs_branches"}  # fmt: skip
    names |= {f"softmax/{n}/optimal/vs_{other}" for n in named.vocabularies for other in (ops.FULL, ops.RULE)}
    assert set(rows.CEILINGS) | set(rows.GOALS) <= names and named.decode_size == 256 and max(named.decode_batches) == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "walk"], "--rows walk: not one of"),
        (["--rows", "attention", "--sizes", "65"], "--sizes 65: of 64, 192, 512"),
        (["--sizes", "64"], "--sizes is for --rows attention"),
        (["--blocks", "1"], "--blocks 1: must be at least 2"),
        (["--dim", "100"], "--dim 100: must be a multiple of 64"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
    ],
)
def test_wrong_flags(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        script.make_bench(script.get_parser().parse_args(flags))


def test_flags() -> None:
    bench, names = script.make_bench(script.get_parser().parse_args(["--quick"]))
    assert bench.setup.types == 12_000 and not bench.memory and "generate" not in names and bench.caches == ("",)
    bench, names = script.make_bench(script.get_parser().parse_args(["--batch", "2", "--dim", "256", "--blocks", "8"]))
    assert (bench.batches, bench.setup.heads, bench.setup.ffn, bench.setup.blocks) == ((2,), 4, 1024, 8)
    assert names == list(rows.ROWS) and bench.setup.types == 267_744
    bench, _ = script.make_bench(script.get_parser().parse_args(["--rows", "attention", "--sizes", "512,64"]))
    assert bench.shapes == [(64, 640), (512, 512)]


def test_the_command_checks_alone_and_measures_tiny_sizes(tmp_path: Path) -> None:
    """The script itself, with its peaks measured in processes of their own."""
    flags = ["--quick", "--rows", "attention", "--sizes", "64", "--dim", "64", "--runs", "1", "--threads", "1"]
    output = run_cli(str(SCRIPT), [*flags, "--json", str(tmp_path / "a.json")])
    assert "FAIL" not in output and "attention/64/mem640-batch1-forward/vs_additive_mask" in output
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["blocks"] == 32
    assert error_line(run_cli(str(SCRIPT), ["--json", "no/a.json"], expect=2)).endswith("folder")
