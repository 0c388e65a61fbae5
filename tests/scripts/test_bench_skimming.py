"""The skimming benchmark at toy sizes: its FLOPs, its batch, its parity checks, its rows and its files."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.errors import UserError
from tests.util import ROOT, error_line, load_script, run_cli

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
from bench_parts.skimming import models, rows
from bench_parts.skimming import parity as checks

SCRIPT = ROOT / "scripts" / "bench" / "skimming.py"
script = load_script(SCRIPT)

TOY = models.Setup(layers=2, dim=24, types=30, batch=3)
KINDS = ("stock", "packed", "predictor64", "predictor-full", "keep0.5", "keep0.1", "even", "uneven")


@pytest.mark.parametrize("kind", [*KINDS, "masked"])
def test_forward_gflop_equals_torchs_count(kind: str) -> None:
    """In explicit products, one sentence at a time, because torch sees none in the CPU's fused attention."""
    setup = replace(TOY, backend="loop")
    models.build(models.base(kind), 20, setup).requires_grad_(False)  # the counter trips over parameters that want one
    call = models.forward(kind, 20, setup)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() == pytest.approx(1e9 * models.forward_gflop(kind, 20, setup), rel=1e-12)


def test_the_batch_is_ragged_and_60_percent_real() -> None:
    for n, rows_ in ((128, 32), (512, 8), (40, 6)):
        setup = replace(TOY, batch=0 if n > 40 else 6)
        tokens = models.batch(n, setup)
        lengths = tokens.ne(models.PAD).sum(1)
        assert tokens.shape == (rows_, n) and lengths.max() == n and lengths.float().std() > 0.1 * n
        assert abs(float(lengths.sum()) / tokens.numel() - 0.6) < 0.02
    assert models.batch(16, replace(TOY, batch=1, real=1.0)).ne(models.PAD).all()


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.5, 0.3, 0.1])
def test_kept_tokens_have_the_share_asked_for_unequal_in_each_sentence(ratio: float) -> None:
    setup = replace(TOY, batch=0)
    real, found = models.batch(128, setup).ne(models.PAD), models.kept(f"keep{ratio}", 128, setup)
    assert abs(float(found.sum() / real.sum()) - ratio) < 1e-3 and found[:, 0].all() and not found[~real].any()
    shares = found.sum(1) / real.sum(1)
    assert ratio == 1.0 or float(shares.max() - shares.min()) > 0.2 * min(ratio, 1 - ratio)


def test_uneven_keeps_as_much_as_even_with_one_long_sentence() -> None:
    setup = replace(TOY, batch=0)
    even, uneven = (models.kept(kind, 128, setup) for kind in ("even", "uneven"))
    assert even.sum() == uneven.sum() and uneven.sum(1).max() == 128 and even.sum(1).max() == 64


def test_parity_is_green_and_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(checks.parity(TOY))
    assert len(found) == 4 * 6 + 2 and all(check.passed for check in found), found
    wrong = models.kept("keep0.5", 40, replace(TOY, batch=6, layers=3)).clone()
    wrong[0, 1] = ~wrong[0, 1]
    stock = models.kept
    monkeypatch.setattr(checks, "kept", lambda kind, *more: wrong if kind == "keep0.5" else stock(kind, *more))
    assert next(check.name for check in checks.parity(TOY) if not check.passed).startswith("keep0.5")


EXPECTED = {
    *(f"packed_forward/{n}/toy-keep{ratio}/vs_{baseline}" for n in (16, 24) for ratio in (0.5, 0.3)
      for baseline in ("packed", "stock")),
    *(f"packed_forward/{n}/toy-{name}" for n in (16, 24)
      for name in ("packed/vs_stock", "predictor64/vs_packed", "predictor-full/vs_packed", "uneven/vs_even",
                   "keep0.5-loop/vs_padded", "keep0.5-bucket/vs_padded", "keep0.5/vs_masked")),
    *(f"eval_latency/16/toy-batch{b}-keep0.3/vs_{name}" for b in (1, 2) for name in ("stock", "packed")),
    *(f"train_step/{n}/toy-predictor64/vs_stock" for n in (16, 24)),
}  # fmt: skip


def test_a_run_writes_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(args: Any) -> tuple[rows.Bench, list[str]]:
        bench = rows.Bench(TOY, sizes=[16, 24], runs=1, threads=1, models=("toy",), ratios=(0.5, 0.3), batches=(1, 2))
        return bench, list(rows.ROWS)

    monkeypatch.setattr(script, "make_bench", make)
    monkeypatch.setitem(rows.MODELS, "toy", (2, 24))
    peak = rows.Peak(10.0, None)
    monkeypatch.setattr("fairseq_efficient.bench.session.peak_memory", lambda *args, **where: peak)
    monkeypatch.setattr(rows.Bench, "goals", {"packed_forward/16/toy-keep0.5/vs_packed": 1e9})
    monkeypatch.setattr(rows.Bench, "ceilings", {"packed_forward/16/toy-predictor64/vs_packed": 1e9})
    argv = ["x.py", "--threads", "1", "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", argv)
    assert script.main() == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "machine", "versions", "commit", "command", "settings", "rows"} <= set(document)
    assert document["settings"]["complete"] is True
    found = {row["name"]: row for row in document["rows"]}
    assert set(found) == EXPECTED and len(found) == len(document["rows"])
    assert found["packed_forward/16/toy-keep0.5/vs_packed"]["met"] is False
    assert found["packed_forward/16/toy-keep0.5/vs_packed"]["bound"] > 1.3
    assert found["packed_forward/16/toy-keep0.5/vs_stock"]["ours_mb"] == 10.0
    assert found["packed_forward/16/toy-predictor64/vs_packed"]["met"] is True
    assert "longest row" in found["packed_forward/24/toy-uneven/vs_even"]["note"]
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 and row["runs"] >= 1 for row in document["rows"])
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("goals", [rows.GOALS, rows.CEILINGS])
def test_goals_are_of_rows_that_exist(goals: dict[str, float]) -> None:
    names = {
        name.replace("/16/", f"/{n}/").replace("toy", model)
        for name in EXPECTED
        for n in rows.SIZES
        for model in ("6x384", "12x768")
    }
    assert set(goals) <= names and len(goals) in (12, 16)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "walk"], "--rows walk: not one of"),
        (["--sizes", "4"], "whole numbers from 8 up"),
        (["--models", "small"], "--models small: not one of 6x384, 12x768"),
        (["--ratios", "0.5,x"], "--ratios 0.5,x: not a comma list of numbers"),
        (["--ratios", "0"], "--ratios 0: must be above 0"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
    ],
)
def test_wrong_flags(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        script.make_bench(script.get_parser().parse_args(flags))


def test_flags() -> None:
    bench, names = script.make_bench(script.get_parser().parse_args(["--quick"]))
    assert (bench.sizes, bench.models, bench.ratios, bench.memory) == ([128], ("6x384",), (0.5, 0.3), False)
    assert names == ["ratios", "overhead"]
    bench, names = script.make_bench(script.get_parser().parse_args(["--batch", "4", "--ratios", "1,0.2"]))
    assert (bench.setup.rows(512), bench.ratios, bench.sizes) == (4, (1.0, 0.2), [128, 512])
    assert names == list(rows.ROWS) and bench.models == ("6x384", "12x768")


def test_a_training_step_has_gradients_everywhere() -> None:
    for kind in ("stock", "predictor64"):
        model = models.build(kind, 16, TOY).requires_grad_(True)
        models.train_step(kind, 16, TOY)()
        silent = [name for name, p in model.named_parameters() if p.grad is None and "lm_head" not in name]
        assert silent == [] and not model.training
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.full  # quick: those of dynamic_pooling and par_search, by the same command
def test_the_command_checks_alone_and_measures_tiny_sizes(tmp_path: Path) -> None:
    """The script itself, with its peaks measured in processes of their own."""
    flags = ["--rows", "ratios", "--sizes", "8", "--batch", "2", "--models", "6x384", "--ratios", "0.5", "--runs", "1"]
    output = run_cli(str(SCRIPT), [*flags, "--threads", "1", "--json", str(tmp_path / "a.json")])
    assert "FAIL" not in output and "packed_forward/8/6x384-keep0.5/vs_stock" in output
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["ours_mb"] is not None
    assert error_line(run_cli(str(SCRIPT), ["--json", "no/a.json"], expect=2)).endswith("folder")


@pytest.mark.full
@pytest.mark.parametrize(("n", "batch"), [(128, 8), (64, 32)])
def test_p12_packed_skimming_is_faster_on_the_clock(n: int, batch: int) -> None:
    """Time of this process, in turns: the fastest of some calls, which other work on the machine disturbs least."""
    setup = models.Setup(layers=4, dim=256, heads=4, batch=batch)
    calls = {kind: models.forward(kind, n, setup) for kind in ("stock", "packed", "keep0.5", "keep0.3")}
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(8):
        for kind in calls if turn % 2 else reversed(calls):
            start = time.process_time()
            calls[kind]()
            best[kind] = min(best[kind], time.process_time() - start)
    for kind, over_packed, over_stock in (("keep0.5", 1.4, 2.0), ("keep0.3", 2.0, 3.0)):
        assert best["packed"] > over_packed * best[kind], best
        assert best["stock"] > over_stock * best[kind], best
