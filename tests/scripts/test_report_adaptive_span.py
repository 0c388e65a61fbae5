"""scripts/report.py adaptive_span on tiny real runs: the page, and the spans as JSON."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fairseq_efficient.report.span_log import read_spans
from fairseq_efficient.report.train_log import read_train_log
from tests.util import ROOT, refused, run_cli, run_in_process

REPORT = str(ROOT / "scripts" / "report.py")
MODELS = {
    "fixed": ["--attn-span", "30"],
    "heads": ["--attn-span", "60", "--adapt-span", "--adapt-span-ramp", "4", "--adapt-span-init", "0.5"],
    "layer": ["--attn-span", "60", "--adapt-span", "--adapt-span-ramp", "4", "--adapt-span-layer"],
}


def make_run(folder: Path, data: Path, flags: list[str]) -> Path:
    """A run's folder: trained for 4 updates, with log, stages and an evaluation."""
    args = [
        str(data), "--user-dir", str(ROOT / "adaptive_span"), "--task", "segment_lm", "--arch", "sequential_lm",
        "--decoder-layers", "2", "--decoder-embed-dim", "12", "--decoder-ffn-embed-dim", "16",
        "--decoder-attention-heads", "3", "--criterion", "adaptive_span_loss", "--optimizer", "adagrad_with_grad_clip",
        "--lr", "0.07", "--batch-size", "4", "--tokens-per-sample", "8", "--max-update", "4", "--cpu", "--num-workers",
        "0", "--save-dir", str(folder / "checkpoints"), "--log-format", "json", "--log-interval", "1",
        "--validate-interval-updates", "2", *flags,
    ]  # fmt: skip
    output = run_in_process("train", args)
    (folder / "train.log").write_text(output)
    (folder / "stages.json").write_text(json.dumps([{"name": "train", "seconds": 65, "peak_mb": 300}]))
    (folder / "eval-test.log").write_text("Evaluated 199 tokens in 0.1s\nLoss (base 2): 3.2109, Perplexity: 9\n")
    return folder


@pytest.fixture(scope="module")
def runs(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, stream_data, flags) for name, flags in MODELS.items()}


def report(tmp_path: Path, *args: str | Path) -> tuple[str, str]:
    out = tmp_path / "page.html"
    said = run_cli(REPORT, ["adaptive_span", *map(str, args), "--out", str(out)])
    return said, out.read_text()


def test_runs_side_by_side(runs: dict[str, Path], tmp_path: Path):
    exported = tmp_path / "spans.json"
    said, html = report(tmp_path, *runs.values(), "--json", exported)
    assert "wrote" in said and "left out" not in said
    for words in ("fixed", "Spans of heads", "Spans of layer", "3.2109", "300", "mean span", "65 s"):
        assert words in html, words
    assert "Spans of fixed" not in html
    assert not re.search(r"https?://", html) and str(ROOT) not in html
    document = {one["name"]: one for one in json.loads(exported.read_text())["runs"]}
    assert set(document) == set(MODELS) and "spans" not in document["fixed"]
    heads = document["heads"]
    assert heads["test_bpc"] == 3.2109 and heads["peak_mb"] == 300 and heads["updates"] == 4
    found = heads["spans"]
    assert found["updates"] == [1, 2, 3, 4]
    values = np.array(found["by_layer_and_head"])
    assert values.shape == (4, 2, 3) and values[0].tolist() == [[34.0] * 3] * 2
    assert found["last"] == values[-1].tolist() and found["mean"] == values[-1].mean() == heads["mean_span"]
    assert found["max_of_layers"] == values[-1].max(1).tolist() and heads["max_span"] == values[-1].max()
    cells = re.findall(r"<td[^>]*>([\d,.]+)</td>", html)
    assert f"{values[-1, 0, 0]:,.0f}" in cells
    layers = np.array(document["layer"]["spans"]["last"])
    assert (layers == layers[:, :1]).all()


def test_one_run_and_what_is_missing(runs: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.log").write_text((runs["heads"] / "train.log").read_text())
    said, html = report(tmp_path, folder)
    assert "left out" in said and "Spans of mine" in html and "Adaptive spans: mine" in html


def test_spans_of_a_checkpoint(runs: dict[str, Path], tmp_path: Path):
    exported = tmp_path / "spans.json"
    after = read_spans(read_train_log(runs["heads"] / "train.log"), "valid")  # in training it is logged before a step
    alone = {name: tmp_path / f"{name}.pt" for name in ("heads", "fixed")}
    for name, path in alone.items():
        path.write_bytes((runs[name] / "checkpoints" / "checkpoint_last.pt").read_bytes())
    said, html = report(tmp_path, alone["heads"], "--json", exported)
    assert "train.log: left out" in said and "after 4 updates" in html and "over updates" not in html
    found = json.loads(exported.read_text())["runs"][0]["spans"]
    assert found["updates"] == [4] and after is not None and found["last"] == after.last.tolist()
    args = ["adaptive_span", str(alone["fixed"]), "--out", str(tmp_path / "x.html")]
    assert "nothing to report" in refused(REPORT, args)
    beside = runs["heads"] / "checkpoints" / "checkpoint_last.pt"
    _, html = report(tmp_path, beside)
    assert "Adaptive spans: heads" in html and "65 s" in html


def test_a_log_of_spans(runs: dict[str, Path]):
    log = read_train_log(runs["heads"] / "train.log")
    found = read_spans(log)
    assert found is not None and found.last.shape == (2, 3)
    del log.entries["train_inner"][2]["span/01/02"]
    assert read_spans(log).updates.tolist() == [1, 3, 4]  # type: ignore[union-attr]
    assert read_spans(read_train_log(runs["fixed"] / "train.log")) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--names", "a,b"], "2 names for 1 runs"),
        (["--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json: no such folder"),
    ],
)
def test_mistakes_are_one_line(runs: dict[str, Path], tmp_path: Path, more: list[str], message: str):
    args = ["adaptive_span", str(runs["heads"]), "--out", str(tmp_path / "x.html"), *more]
    assert message in refused(REPORT, args)


def test_a_folder_without_anything(tmp_path: Path):
    args = ["adaptive_span", str(tmp_path), "--out", str(tmp_path / "x.html")]
    assert "nothing to report" in refused(REPORT, args)
