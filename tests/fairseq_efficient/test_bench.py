"""The bench library: FLOP formulas, turns and pairs, peak memory, goals, files, and what it says about the machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fairseq_efficient.bench import flops, machine, timing
from fairseq_efficient.bench.memory import peak_memory, resident_mb
from fairseq_efficient.bench.parity import Check, agree, difference
from fairseq_efficient.bench.picture import draw, time_series
from fairseq_efficient.bench.rows import Row, make_row, read_rows, summary, table_row, write_rows
from fairseq_efficient.bench.timing import Pair, Sample, Stopwatch, take_turns, time_call
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import check_output
from tests.util import ROOT

CPU = torch.device("cpu")


def counted(call: Callable[[], Any]) -> int:
    """FLOPs as torch counts them; under MATH, because it sees none in the CPU's fused attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_layer_flops_equal_torchs_count() -> None:
    tokens, dim, ffn = 24, 16, 40
    layer = nn.TransformerEncoderLayer(dim, 4, ffn, batch_first=True, dropout=0.0)  # in training mode: no fused path
    x = torch.randn(1, tokens, dim, requires_grad=True)
    assert counted(lambda: layer(x)) == flops.encoder_layer(tokens, dim, ffn)
    assert counted(lambda: layer(x).sum().backward()) == flops.TRAINING * flops.encoder_layer(tokens, dim, ffn)


@pytest.mark.parametrize(("tokens", "chunk"), [(24, 8), (20, 8), (8, 8), (5, 8), (20, None)])
def test_chunked_attention_flops_equal_torchs_count(tokens: int, chunk: int | None) -> None:
    from fairseq_efficient.ops.chunk_attention import chunk_attention

    q = torch.randn(1, tokens, 2, 4)
    assert counted(lambda: chunk_attention(q, q, q, chunk or tokens)) == flops.chunked_attention(tokens, chunk, 8)


def test_decoder_flops_equal_torchs_count() -> None:
    target, source, dim, ffn, vocab = 6, 24, 16, 40, 30
    layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(dim, 4, ffn, batch_first=True), 3)
    out, y, memory = nn.Linear(dim, vocab), torch.randn(1, target, dim), torch.randn(1, source, dim)
    assert counted(lambda: out(layers(y, memory))) == flops.decoder(target, source, 3, dim, ffn, vocab)


def test_pyramid_adds_layers_and_pools() -> None:
    full = flops.encoder_layer(64, 8, 16, 32)
    assert flops.encoder([64, 64, 64], 8, 16, 32) == 2 * full
    pooled = flops.encoder([64, 32, 32], 8, 16, 32)
    assert pooled == full + flops.pooling(64, 8) + flops.encoder_layer(32, 8, 16, 32)
    assert flops.pooling(64, 8) == counted(lambda: nn.Linear(8, 1)(torch.randn(64, 8))) + 2 * 64 * 8


def test_causal_and_relative_attention_flops() -> None:
    """Tiles of one query hold what it may see, and one distance more; see also torch's count in the bench's test."""
    pairs = 10 * 11 // 2
    assert (
        flops.causal_attention(10, 8) == sum(flops.attention(1, place + 1, 8) for place in range(10)) == 4 * pairs * 8
    )
    assert flops.relative_attention(10, 8, tile=1) == 2 * 8 * (3 * pairs + 10)
    assert flops.relative_attention(10, 8, tile=1, training=True) == 2 * 8 * (11 * pairs + 4 * 10)
    assert flops.relative_attention(10, 8, tile=4) == 2 * 8 * (3 * (5 * 5 + 5 * 10) + 10)  # two of 5, not 4, 4 and 2


def test_generation_counts_keys_per_copy_and_the_growing_cache() -> None:
    one = flops.generation(1, 32, 2, 8, 16, 50)
    assert one == flops.decoder(1, 32, 2, 8, 16, 50)
    keys = 2 * 2 * flops.linear(32, 8, 8)
    assert flops.generation(1, 32, 2, 8, 16, 50, beam=4, key_copies=4) == 4 * one
    assert flops.generation(1, 32, 2, 8, 16, 50, beam=4) == 4 * one - 3 * keys
    assert flops.generation(2, 32, 2, 8, 16, 50) == 2 * one - keys + 2 * flops.attention(1, 1, 8)


def test_turns_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    samples = take_turns({name: (lambda name=name: order.append(name)) for name in "ab"}, 3, CPU)
    assert "".join(order) == "ab" + "aabb" + "bbaa" + "aabb"  # short calls: warmed up in every turn
    assert [len(found) for found in samples.values()] == [3, 3]


def test_long_calls_are_their_own_warm_up_and_slow_ones_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], float]:
        return lambda: calls.append(name) or seconds  # type: ignore[func-returns-value]

    monkeypatch.setattr(timing, "time_call", lambda call, device: Sample(call()))
    times = {"short": 1.0, "long": 6.0, "slow": 61.0, "known": 99.0}
    variants = {name: call(name, seconds) for name, seconds in times.items()}
    samples = take_turns(variants, 5, CPU, known={"known": Sample(90.0), "short": Sample(2.0)})
    assert {name: len(found) for name, found in samples.items()} == {"short": 5, "long": 3, "slow": 1, "known": 1}
    assert {name: calls.count(name) for name in variants} == {"short": 6, "long": 3, "slow": 1, "known": 0}
    assert samples["known"] == [Sample(90.0)]


def test_pair_takes_medians_and_parts() -> None:
    ours = [Sample(s, {"decode": s / 2}) for s in (1.0, 2.0, 6.0)]
    baseline = [Sample(s, {"decode": s / 4}) for s in (4.0, 6.0, 30.0)]
    pair = Pair.of(ours, baseline)
    assert (pair.ours_s, pair.baseline_s, pair.ratio, pair.ratio_of_pairs, pair.ratio_of_best) == (2, 6, 3, 4, 4)
    assert Pair.of(ours, baseline, "decode", "decode").ratio == 1.5
    assert (pair.each(4).ours_s, pair.each(4).baseline_s, pair.each(4).ratio) == (0.5, 1.5, 3)
    assert Pair.of(ours, baseline[:1]).ratio_of_pairs == 4


def test_stopwatch_sums_wrapped_calls_and_starts_anew() -> None:
    watch = Stopwatch(CPU)
    nap = watch.wrap(lambda: time.sleep(0.01))
    nap(), nap()
    assert 0.02 <= watch.take() < 0.5
    assert watch.take() == 0
    sample = time_call(lambda: {"part": 0.5}, CPU)
    assert sample.of("part") == 0.5 and sample.of() < 0.5


def test_the_outputs_of_a_library_are_no_parts() -> None:
    """transformers returns dicts of its own class; as parts their tensors were sent between processes, and lost."""
    assert time_call(lambda: OrderedDict(last_hidden_state=torch.ones(2)), CPU).parts == {}


def allocate(mb: int) -> Callable[[], None]:
    return lambda: torch.ones(mb, 2**18).sum().item()  # type: ignore[return-value]


def fail(message: str) -> Callable[[], None]:
    raise RuntimeError(f"{message}\nsecond line")


def multiply() -> Callable[[], Any]:
    x = torch.ones(256, 256, requires_grad=True)
    return lambda: torch.softmax(x @ x, 1).sum().backward()


def test_libraries_that_torch_starts_are_not_the_work() -> None:
    peak = peak_memory(multiply, device="cpu", threads=2)
    assert peak.mb is not None and peak.mb <= 20, peak


def test_peak_memory_is_that_of_the_work_alone() -> None:
    ballast = torch.ones(300, 2**18)
    assert resident_mb() > 300
    peak = peak_memory(allocate, 100, device="cpu", threads=1)
    assert peak.mb is not None and peak.sample is not None and ballast.numel()
    assert 95 <= peak.mb <= 200, peak
    assert peak_memory(fail, "no room", device="cpu", threads=1).failed == "no room second line"


def row(value: float, goal: float | None, at_most: bool = False) -> Row:
    return make_row("decode/512/vs_stock", Pair([1.0], [value]), goal=goal, at_most=at_most)


def test_goals() -> None:
    assert row(2.0, 1.5).met is True and row(1.4, 1.5).met is False and row(1.5, 1.5).met is True
    assert row(2.0, 1.5, at_most=True).met is False and row(1.4, 1.5, at_most=True).met is True
    assert row(9.0, None).met is None
    assert summary([row(2.0, 1.5), row(1.0, 1.5), row(1.0, None)]) == "1 of 2 goals met; missed: decode/512/vs_stock"
    assert "MISSED" in table_row(row(1.0, 1.5)) and " met" in table_row(row(2.0, 1.5))


def test_flop_bound_and_its_share() -> None:
    found = make_row("encoder_forward/64/bf16/vs_stock", Pair([1.0], [3.0]), ours_gflop=1.0, baseline_gflop=4.0)
    assert found.bound == 4 and found.share == 0.75


@pytest.mark.parametrize("name", ["walk/512/vs_stock", "decode/vs_stock", "decode/512/stock", "decode/x/vs_stock"])
def test_row_names_follow_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match="row name"):
        make_row(name, Pair([1.0], [1.0]))


def test_files(tmp_path: Path) -> None:
    rows = [
        make_row(f"encoder_forward/{n}/vs_{base}", Pair([n / 1e3], [n / 1e2]), goal=8.0)
        for n in (64, 128)
        for base in ("stock", "blockwise")
    ]
    rows.append(make_row("decode/128/beam4/vs_64", Pair([2.0], [1.0]), at_most=True))
    write_rows(tmp_path / "a.json", {"commit": None}, rows)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["commit"] is None and len(document["rows"]) == 5
    keys = {"name", "ours_s", "baseline_s", "ratio", "bound", "goal", "ours_mb", "baseline_mb", "runs"}
    assert all(keys <= set(found) for found in document["rows"])
    assert time_series(rows, "ours") == {
        "encoder_forward": {
            "ours": {64: 0.064, 128: 0.128},
            "stock": {64: 0.64, 128: 1.28},
            "blockwise": {64: 0.64, 128: 1.28},
        }
    }
    assert read_rows(document) == rows
    draw(tmp_path / "a.png", rows, "ours")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="--json"):
        check_output(tmp_path / "no" / "a.json", "--json")


@pytest.mark.parametrize("document", [{}, {"rows": 3}, {"rows": [3]}, {"rows": [{"name": "decode/1/vs_stock"}]}])
def test_files_that_hold_no_rows(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not the rows of a benchmark"):
        read_rows(document)


def test_lines_of_the_picture() -> None:
    rows = [
        make_row("train_step/64/sf4/vs_vanilla", Pair([1.0], [2.0]), lines=("ours sf4", "vanilla relative")),
        make_row("train_step/64/rotary/vs_relative", Pair([3.0], [4.0]), lines=("", "")),
        make_row("train_step/128/sf4/vs_vanilla", Pair([5.0], [6.0])),
    ]
    assert time_series(rows, "ours") == {
        "train_step": {"ours sf4": {64: 1.0, 128: 5.0}, "vanilla relative": {64: 2.0}, "vanilla": {128: 6.0}}
    }
    assert rows[0].as_dict()["lines"] == ("ours sf4", "vanilla relative") and "lines" not in rows[2].as_dict()


def test_parity_checks(capsys: pytest.CaptureFixture) -> None:
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])) == 1.0
    assert agree([Check("one", 0.0, 0.0), Check("two", 1e-5, 1e-4)])
    assert not agree([Check("none", float("nan"), 1.0), Check("one", 0.0, 0.0)])
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == [
        "ok   one:",
        "ok   two:",
        "FAIL none",
        "ok   one:",
    ]


def test_provenance_names_no_place_and_no_host() -> None:
    script = str(ROOT / "scripts" / "bench" / "x.py")
    argv = [script, "--json", "/tmp/deep/er/a.json", "--out=/tmp/b", "--w", "{0: 1}", "../d"]
    head = machine.provenance(argv, threads=2)
    assert head["command"] == "python scripts/bench/x.py --json a.json --out=b --w '{0: 1}' d"
    assert set(head) == {"date", "machine", "versions", "commit", "dirty", "command"}
    assert head["machine"]["cores"] == os.cpu_count() and "torch" in head["versions"]
    text = json.dumps(head)
    for forbidden in (str(ROOT), str(Path.home()), sys.prefix, "/tmp", socket.gethostname()):
        assert forbidden in ("/", "localhost") or forbidden not in text, forbidden


def test_git_state(tmp_path: Path) -> None:
    assert machine.git_state(tmp_path) == (None, None)
    (tmp_path / "pyproject.toml").write_text("")
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    (results / "a.json").write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *args], check=True)
    commit, dirty = machine.git_state(tmp_path)
    assert commit is not None and len(commit) == 40 and dirty is False
    (results / "a.json").write_text("2")  # what a measurement writes does not change what is measured
    assert machine.git_state(tmp_path) == (commit, False)
    (tmp_path / "pyproject.toml").write_text("changed")
    assert machine.git_state(tmp_path) == (commit, True)


def test_importing_the_machine_part_imports_no_torch() -> None:
    code = "import sys, fairseq_efficient.bench.machine; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
