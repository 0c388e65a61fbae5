"""The Pyramidion benchmark at toy sizes: its FLOPs, its parity check, its rows and its files."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.bench import flops, session
from fairseq_efficient.errors import UserError
from tests.util import ROOT, error_line, load_script, run_cli

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
import draw as draw_script
from bench_parts.deep_pyramidion import models, rows

SCRIPT = ROOT / "scripts" / "bench" / "deep_pyramidion.py"
script = load_script(SCRIPT)

TOY = models.Setup(
    dim=16, ffn=32, heads=2, layers=3, chunk=16, kept=16, vocab=60, target=6, beam=3, tokens=4
)  # fmt: skip
KINDS = (models.STOCK, models.BLOCKWISE, models.PYRAMIDION, models.STOCK_DECODER)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["encoder_forward", "train_step", "generate"])
def test_gflop_equals_torchs_count(kind: str, what: str) -> None:
    run = rows.WORK[what](kind, 64, TOY)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    pyramid = models.widths(kind, 64, TOY)
    pooled = [before for before, after in pairwise(pyramid) if after < before]
    assert pooled == ([64, 32] if kind == models.PYRAMIDION else [])
    blended = sum(flops.pooling(n, TOY.dim) - flops.linear(n, TOY.dim, 1) for n in pooled)  # embedding_bag: not counted
    blended *= flops.TRAINING if what == "train_step" else 1
    assert counter.get_total_flops() + blended == pytest.approx(1e9 * models.gflop(what, kind, 64, TOY), abs=0.5)


def test_widths_halve_down_to_the_floor() -> None:
    setup = models.Setup()
    assert models.widths(models.PYRAMIDION, 16384, setup) == [16384, 8192, 4096, 2048, 1024, 512, 512]
    assert models.widths(models.PYRAMIDION, 2048, setup) == [2048, 1024, 512, 512, 512, 512, 512]
    assert models.config(models.PYRAMIDION, 2048, setup).enc_layers_and_token_width == "0:1024,1:512"
    assert models.widths(models.BLOCKWISE, 2048, setup) == [2048] * 7


def test_parity_is_green_and_red_parity_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checks = list(models.parity(TOY))
    assert len(checks) == 11 and all(check.passed for check in checks), checks
    monkeypatch.setattr(script, "parity", lambda setup: [models.Check("broken", float("nan"), 1e-4)])
    monkeypatch.setattr(sys, "argv", ["deep_pyramidion.py", "--threads", "1"])
    assert script.main() == 1
    out = capsys.readouterr()
    assert "FAIL broken" in out.out and "vs_stock" not in out.out and "no speed" in out.err


@pytest.fixture()
def toy_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """``script.main`` measures toy sizes; goals and linearity are asked for at those sizes."""

    def make(args: Any) -> tuple[rows.Bench, list[str]]:
        bench = rows.Bench(TOY, sizes=[64, 128], runs=2, threads=1, memory=False, generate_size=64, short_size=16)
        return bench, list(rows.ROWS)

    monkeypatch.setattr(script, "make_bench", make)
    monkeypatch.setattr(rows, "LINEAR", {("encoder_forward", 128, 64): 1000.0})
    goals = {("encoder_forward", 64, "", "stock"): 1e9, ("decode", 16, "beam3", "stock"): 0.0}
    monkeypatch.setattr(rows, "GOALS", goals)


def test_a_run_writes_every_row(toy_bench: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argv = ["--threads", "1", "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["deep_pyramidion.py", *argv])
    assert script.main() == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "machine", "versions", "commit", "command", "settings", "rows"} <= set(document)
    assert document["settings"]["complete"] is True and str(tmp_path) not in json.dumps(document)
    found = {row["name"]: row for row in document["rows"]}
    for what in ("encoder_forward", "train_step"):
        for n in (64, 128):
            assert {f"{what}/{n}/vs_stock", f"{what}/{n}/vs_blockwise", f"{what}/{n}/bf16/vs_stock"} <= set(found)
    assert {
        "encoder_forward/128/linearity/vs_64", "pooling/128/vs_encoder", "pooling/128/vs_embedding_bag",
        "generate/64/beam3/vs_blockwise", "generate/64/beam3/vs_stock", "decode/64/beam3/vs_blockwise",
        "decode/64/beam3/vs_stock", "decode/16/beam3/vs_stock", "decode/64/beam3/vs_16",
    } <= set(found)  # fmt: skip
    assert len(found) == len(document["rows"]) == 21
    assert found["encoder_forward/64/vs_stock"]["met"] is False and found["decode/16/beam3/vs_stock"]["met"] is True
    assert found["encoder_forward/128/linearity/vs_64"]["met"] is True
    assert 0 < found["pooling/128/vs_encoder"]["value"] < 100
    assert found["train_step/64/vs_stock"]["ours_tokens_per_s"] > 0
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 and row["runs"] >= 2 for row in document["rows"])
    picture = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "argv", ["draw.py", str(tmp_path / "a.json"), str(tmp_path / "b.png")])
    assert draw_script.main() == 0
    assert (tmp_path / "b.png").read_bytes()[:8] == picture[:8]
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json: not the results of a benchmark"):
        draw_script.main()


def test_decode_is_generation_without_the_encoder() -> None:
    parts = models.generate(models.PYRAMIDION, 64, TOY)()
    assert parts["encoder"] > 0 and parts["decode"] > 0
    generator, sample = models.searcher(models.build(models.STOCK, 64, TOY), 64, TOY)
    with torch.no_grad():
        hypotheses = generator.generate([], sample)[0]
    assert len(hypotheses) == TOY.beam and {len(h["tokens"]) for h in hypotheses} == {TOY.tokens + 1}


def test_peaks_come_from_processes_of_their_own_and_failures_drop_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(work: Any, kind: str, n: int, setup: Any, **where: Any) -> Any:
        asked.append((kind, where))
        failed = "out of memory" if kind == models.STOCK else ""
        return rows.Peak(None if failed else 7.0, None, failed)

    monkeypatch.setattr(session, "peak_memory", fake)
    said: list[str] = []
    bench = rows.Bench(TOY, sizes=[64], runs=1, threads=1, precisions=("fp32",), emit=said.append)
    bench.measure(["encoder_forward"])
    assert [kind for kind, _ in asked] == [models.STOCK, models.BLOCKWISE, models.PYRAMIDION]
    assert asked[0][1] == {"device": "cpu", "threads": 1}
    assert [(row.name, row.ours_mb) for row in bench.rows] == [("encoder_forward/64/vs_blockwise", 7.0)]
    assert said[0] == "encoder_forward stock 64: not measured (out of memory)"


def test_interrupted_run_keeps_what_it_measured(
    toy_bench: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rows.Bench, "_train_step", interrupt)
    monkeypatch.setattr(sys, "argv", ["deep_pyramidion.py", "--threads", "1", "--json", str(tmp_path / "a.json")])
    assert script.main() == 130
    document = json.loads((tmp_path / "a.json").read_text())
    assert len(document["rows"]) == 6 and document["settings"]["complete"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "walk"], "--rows walk: not one of"),
        (["--sizes", "2k"], "--sizes 2k: not a comma list of whole numbers"),
        (["--sizes", "64"], "not a comma list of whole numbers from 512 up"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
    ],
)
def test_wrong_flags(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        script.make_bench(script.get_parser().parse_args(flags))


def test_wrong_flags_are_one_line() -> None:
    output = run_cli(str(SCRIPT), ["--json", "no/such/folder/a.json"], expect=2)
    assert error_line(output) == "error: --json no/such/folder/a.json: no such folder"
