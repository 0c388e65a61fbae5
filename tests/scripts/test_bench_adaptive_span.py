"""The adaptive span benchmark at toy sizes: its FLOPs, its parity checks, its rows and its files."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.errors import UserError
from tests.util import ROOT, load_script

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
from bench_parts.adaptive_span import models, rows
from bench_parts.adaptive_span import parity as checks

SCRIPT = ROOT / "scripts" / "bench" / "adaptive_span.py"
script = load_script(SCRIPT)

TOY = models.Setup(dim=16, ffn=24, heads=4, layers=2, block=70, ramp=4, types=12, batch=2)
KINDS = ("full", "span2pct", "span10pct", "mixed", models.LONGEST)


def counted(call: Any) -> int:
    """FLOPs as torch counts them; in-place products are told to it."""
    import torch

    def product(total: Any, one: Any, two: Any, **_: Any) -> int:
        return 2 * math.prod(one) * two[-1]

    more = {torch.ops.aten.baddbmm_: product, torch.ops.aten.addmm_: product}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=more) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [60, 700])
def test_attention_gflop_equals_torchs_count(kind: str, size: int) -> None:
    assert counted(models.attention(kind, size, TOY)) == pytest.approx(1e9 * models.attention_gflop(kind, size, TOY))


def test_spans_of_kinds() -> None:
    assert models.spans_of("full", 1000, TOY) is None
    assert models.spans_of("mixed", 1000, TOY) == [1000.0, 20.0, 20.0, 20.0]
    assert models.widths_of("span10pct", 1000, TOY) == [104] * 4
    assert models.widths_of("sdpa_span2pct", 1000, TOY) == [24] * 4


def test_parity_is_green_and_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(checks.parity(TOY))
    assert len(found) == 27 and all(check.passed for check in found), found
    stock = models.masked_sdpa
    monkeypatch.setattr(models, "masked_sdpa", lambda q, k, v, p, s, ramp: stock(q, k, v, p.flip(0), s, ramp))
    assert not next(iter(checks.parity(TOY))).passed


def test_a_run_writes_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(args: Any) -> tuple[rows.Bench, list[str]]:
        bench = rows.Bench(TOY, sizes=[96], runs=1, threads=1, streams=(140, 280), eval_size=40, step_batch=1)
        return bench, list(rows.ROWS)

    monkeypatch.setattr(script, "make_bench", make)
    peak = rows.Peak(10.0, None)
    monkeypatch.setattr("fairseq_efficient.bench.session.peak_memory", lambda *args, **where: peak)
    monkeypatch.setattr(rows.Bench, "goals", {"attention/96/span2pct/vs_full": 1e9})
    monkeypatch.setattr(rows.Bench, "ceilings", {"memory/96/span2pct/vs_full": 25.0})
    monkeypatch.setattr(sys, "argv", ["x.py", "--threads", "1", "--json", str(tmp_path / "a.json")])
    assert script.main() == 0
    found = {row["name"]: row for row in json.loads((tmp_path / "a.json").read_text())["rows"]}
    kinds = ("span2pct", "span10pct", "mixed")
    assert set(found) == {
        *(f"attention/96/{kind}/vs_full" for kind in (*kinds, "span100pct")), "attention/96/mixed/vs_longest",
        "attention/96/full/vs_sdpa", "attention/96/span2pct/vs_sdpa", "memory/96/attention-span2pct/vs_full",
        *(f"train_step/96/{kind}/vs_full" for kind in kinds), "train_step/96/mixed/vs_longest",
        "memory/96/span2pct/vs_full", "memory/96/span2pct/vs_full_activations", "eval_latency/280/span2pct/vs_140",
        "eval_latency/280/full/vs_140", "decode/96/span2pct/vs_full", "decode/96/mixed/vs_full",
    }  # fmt: skip
    assert found["attention/96/span2pct/vs_full"]["met"] is False
    assert found["attention/96/span2pct/vs_full"]["bound"] > 1.2
    assert (found["memory/96/span2pct/vs_full"]["value"], found["memory/96/span2pct/vs_full"]["met"]) == (100, False)
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 for row in found.values())


@pytest.mark.parametrize("goals", [rows.GOALS, rows.CEILINGS])
def test_goals_are_of_kinds_that_exist(goals: dict[str, float]) -> None:
    known = {*KINDS, "attention-span2pct"}
    assert all(name.split("/")[0] in {*rows.ROWS, "memory"} and name.split("/")[2] in known for name in goals)


def test_flags() -> None:
    bench, names = script.make_bench(script.get_parser().parse_args(["--quick"]))
    assert bench.sizes == [1024] and not bench.memory and names == list(script.QUICK)
    with pytest.raises(UserError, match="whole numbers from 16 up"):
        script.make_bench(script.get_parser().parse_args(["--sizes", "8"]))
