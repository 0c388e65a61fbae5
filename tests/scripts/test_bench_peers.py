"""The benchmark of peers at toy sizes: they compute the same or have the same size, every row is written."""

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_efficient.errors import UserError
from tests.util import ROOT, load_script

sys.path.append(str(ROOT / "scripts" / "bench"))  # at the end: a script there has the name of a package
from bench_parts.peers import models, rows

script = load_script(ROOT / "scripts" / "bench" / "peers.py")

installed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is optional")
BASE = models.Setup()
TOY = replace(
    BASE,
    sentences=replace(BASE.sentences, layers=2, dim=24, types=30, batch=3),
    summaries=replace(
        BASE.summaries, dim=16, ffn=32, heads=2, layers=2, chunk=8, kept=8, vocab=30, target=6, beam=2, tokens=4
    ),
    characters=replace(BASE.characters, dim=16, ffn=64, heads=2, layers=3, outer=1),
)
EXPECTED = {
    *(f"packed_forward/16/{kind}/vs_roberta" for kind in ("packed", "keep0.5", "keep0.3")),
    *(f"{what}/32/pyramidion/vs_led" for what in ("encoder_forward", "train_step", "generate")),
    *(f"{what}/16/{kind}/vs_gpt2" for what in ("train_step", "decode") for kind in ("vanilla-rotary", "sf4-rotary")),
}


@installed
def test_roberta_computes_ours_with_padding_and_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = TOY.sentences
    expected = models.classify("stock", 16, setup)()
    theirs = models.classify(models.ROBERTA, 16, setup)
    assert torch.allclose(theirs(), expected, atol=1e-5) and expected.std() > 1e-4
    check = next(models.parity(TOY))
    assert check.passed, check
    monkeypatch.setattr(models.skim, "batch", lambda n, setup, real=models.skim.batch: real(n, setup).flip(0))
    assert not torch.allclose(theirs(), models.classify(models.ROBERTA, 16, setup)(), atol=1e-5)


@installed
def test_the_others_have_the_sizes_of_ours() -> None:
    found = list(models.parity(BASE))
    assert len(found) == 4 and all(check.passed for check in found), found


@installed
def test_led_writes_as_many_tokens_as_ours_and_trains() -> None:
    torch.manual_seed(0)
    tokens = models.generate(models.LED, 32, TOY.summaries)()
    assert tokens.shape == (1, 1 + TOY.summaries.tokens + 1)
    models.train_step(models.LED, 32, TOY.summaries)()


@installed
def test_a_run_writes_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(args: Any) -> tuple[rows.Bench, list[str]]:
        bench = rows.Bench(TOY, sizes=[32], runs=1, threads=1, memory=False, sentence_sizes=(16,), document_sizes=(32,))
        bench.summary_size, bench.character_size, bench.decoded = 32, 16, 16
        return bench, list(rows.ROWS)

    monkeypatch.setattr(script, "make_bench", make)
    monkeypatch.setattr(script, "parity", lambda setup: iter([next(models.parity(setup))]))
    argv = ["x.py", "--threads", "1", "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", argv)
    assert script.main() == 0
    found = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {row["name"] for row in found} == EXPECTED and len(found) == len(EXPECTED)
    assert all(row["ours_s"] > 0 and row["baseline_s"] > 0 for row in found)


def test_without_transformers_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name == "transformers":
            raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"transformers is not installed: pip install 'fairseq-efficient\[peers\]'"):
        models.library()


def test_flags() -> None:
    bench, names = script.make_bench(script.get_parser().parse_args(["--quick"]))
    assert (bench.document_sizes, bench.sentence_sizes, bench.summary_size) == ((2048,), (128,), 2048)
    assert names == list(rows.ROWS)
    bench, names = script.make_bench(script.get_parser().parse_args(["--sizes", "512,1024", "--rows", "encoder"]))
    assert (bench.document_sizes, bench.summary_size, names) == ((512, 1024), 1024, ["encoder"])
    with pytest.raises(UserError, match="--sizes 4: not a comma list of whole numbers from 512 up"):
        script.make_bench(script.get_parser().parse_args(["--sizes", "4"]))
