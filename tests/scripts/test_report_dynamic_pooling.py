"""scripts/report.py dynamic_pooling on tiny real runs."""

import json
import re
from pathlib import Path

import pytest

from tests.util import HOURGLASS, ROOT, System, refused, run_cli, run_in_process, train_args

REPORT = str(ROOT / "scripts" / "report.py")
SHORT = ["--max-update", "4", "--validate-interval-updates", "2"]


def make_run(folder: Path, data: Path, kind: str, *more: str) -> Path:
    """A run's folder: trained for 4 updates, with log, stages and an evaluation."""
    sizes = HOURGLASS[2:] if kind == "vanilla" else HOURGLASS
    system = System("dynamic_pooling", f"dynamic_pooling_lm_{kind}", sizes, "stream")
    output = run_in_process("train", train_args(data, folder / "checkpoints", system, *SHORT, *more))
    (folder / "train.log").write_text(output)
    (folder / "stages.json").write_text(json.dumps([{"name": "train", "seconds": 65, "peak_mb": 300}]))
    (folder / "eval-test.log").write_text("Evaluated 200 tokens in 0.1s\nLoss (base 2): 3.2109, Perplexity: 9\n")
    return folder


@pytest.fixture(scope="module")
def runs(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    layers = ["--model-config", "[3, (0,), 0]"]
    return {
        kind: make_run(folder / kind / "seed1", stream_data, kind, *(layers if kind == "vanilla" else []))
        for kind in ("vanilla", "whitespaces", "gumbel")
    }


def report(tmp_path: Path, *args: str | Path) -> tuple[str, str]:
    out = tmp_path / "page.html"
    said = run_cli(REPORT, ["dynamic_pooling", *map(str, args), "--out", str(out)])
    return said, out.read_text()


def blocks(html: str) -> list[str]:
    """The text of each segmented block."""
    found = re.findall(r'<div class="segments" tabindex="0">(.*?)</div>', html, re.DOTALL)
    return ["".join(re.findall(r"<span>(.*?)</span>", block, re.DOTALL)) for block in found]


def test_runs_side_by_side(runs: dict[str, Path], tmp_path: Path):
    said, html = report(tmp_path, *runs.values(), "--shown", "60", "--characters", "150")
    assert "wrote" in said and "INFO" not in said and "left out" not in said
    for words in ("vanilla", "whitespaces", "gumbel", "3.2109", "1-2-1", "300 MB", "spaces: precision", "65 s"):
        assert words in html, words
    assert "seed1" not in html.split("How this page was made")[0]
    assert not re.search(r"https?://", html) and str(ROOT) not in html
    found = blocks(html)
    assert len(found) == 3 and len(set(found)) == 1  # whitespaces, gumbel and the tokenizer: the same text
    assert len(found[0].replace("↵\n", "")) == 60 and " " in found[0]
    segment = re.search(r"<h3>whitespaces.*?<span>([^<]*)</span>", html, re.DOTALL)[1]
    assert segment.endswith(" ") and " " not in segment[:-1]


def test_a_checkpoint_in_the_place_of_its_run(runs: dict[str, Path], tmp_path: Path):
    path = tmp_path / "checkpoint_best.pt"
    path.write_bytes((runs["gumbel"] / "checkpoints" / "checkpoint_last.pt").read_bytes())
    for named in (path, tmp_path):
        said, html = report(tmp_path, named, "--shown", "40", "--characters", "80")
        assert "train.log: left out" in said and len(blocks(html)) >= 1, named


def test_one_run_with_a_text_of_its_own(runs: dict[str, Path], tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("abc abc <b>&</b> de\nf", encoding="utf-8")
    _, html = report(tmp_path, runs["whitespaces"], "--text", text)
    assert "Dynamic token pooling: whitespaces/seed1" in html and "The beginning of text.txt" in html
    assert blocks(html) == ["abc abc &lt;b&gt;&amp;&lt;/b&gt; de↵\nf"]
    assert "characters are unknown to whitespaces/seed1" in html


def test_a_text_is_cleaned_as_the_data_was(runs: dict[str, Path], stream_data: Path, tmp_path: Path):
    data, text = tmp_path / "data", tmp_path / "text.txt"
    data.mkdir()
    for file in stream_data.iterdir():
        (data / file.name).symlink_to(file)
    (data / "prepare.json").write_text('{"options": {"clean": "text8", "lang": "en", "newlines": "space"}}')
    text.write_text("ABC, abc\n1", encoding="utf-8")
    _, html = report(tmp_path, runs["whitespaces"], "--text", text, "--data", data)
    assert blocks(html) == ["abc abc one"]


def test_what_is_missing_is_left_out(runs: dict[str, Path], tmp_path: Path):
    (tmp_path / "stages.json").write_bytes((runs["gumbel"] / "stages.json").read_bytes())
    said, html = report(tmp_path, tmp_path, "--names", "bare")
    assert said.count("left out") == 3
    assert "bare" in html and "Time and memory" in html and "The text in segments" not in html


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN", "RUN"], "the runs must be different folders"),
        (["RUN", "--names", "a,b"], "--names a,b: 2 names for 1 runs"),
        (["RUN", "--text", "gone.txt"], "--text gone.txt: No such file"),
        (["RUN", "--subset", "other"], "no split 'other'"),
        (["RUN", "--document", "99"], "--document 99: test has 3 documents"),
        (["RUN", "--shown", "0"], "--shown 0: must be at least 1"),
        (["gone"], "gone: no such file or folder"),
        (["EMPTY"], "nothing to report"),
    ],
)
def test_mistakes_are_one_line(runs: dict[str, Path], tmp_path: Path, args: list[str], message: str):
    names = {"RUN": str(runs["gumbel"]), "EMPTY": str(tmp_path)}
    out = tmp_path / "page.html"
    command = ["dynamic_pooling", *(names.get(arg, arg) for arg in args), "--out", str(out)]
    assert message in refused(REPORT, command)
    assert not out.exists()
