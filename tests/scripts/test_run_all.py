"""All benchmarks by one command: what the page shows, and what happens when one of them fails."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.report import benches
from fairseq_efficient.report.page import render
from tests.util import ROOT, error_line, load_script, run_cli

SCRIPT = ROOT / "scripts" / "bench" / "run_all.py"
script = load_script(SCRIPT)

WRITES = """
import json, sys
path = sys.argv[sys.argv.index("--json") + 1]
row = {"name": "train_step/64/vs_stock", "ours_s": 0.5, "baseline_s": 1.0, "ratio": 2.0, "runs": 3, "value": 2.0,
       "goal": 3.0, "bound": None, "ours_mb": 1.0, "baseline_mb": 2.0}
slow = {**row, "name": "decode/64/vs_<stock>", "ratio": 0.5, "value": 0.5, "goal": None}
machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_gb": 4, "gpu": None}
json.dump({"machine": machine, "versions": {"torch": "2"}, "commit": "abc", "command": "x", "rows": [row, slow]},
          open(path, "w"))
"""


def document() -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "results" / "bench_dynamic_pooling.json").read_text())  # type: ignore[no-any-return]


def test_the_page_holds_every_row_and_says_what_is_slower():
    found = document()
    html = render(benches.page({"Dynamic pooling": found}, ["Another"]))
    for row in found["rows"]:
        assert row["name"] in html
    assert "Failed, see the output: Another." in html and "//" not in html
    met = sum(bool(row.get("met")) for row in found["rows"])
    assert f"{met} of" in html
    assert "nothing was measured" in render(benches.page({}))


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scripts instead of the benchmarks: one writes rows, one fails."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "one.py").write_text(WRITES)
    (folder / "two.py").write_text("import sys\nsys.exit(1)\n")
    (folder / "three.py").write_text(WRITES + "sys.exit(130)\n")
    monkeypatch.setattr(script, "FOLDER", folder)
    monkeypatch.setattr(script, "BENCHES", {"one": "The first", "two": "The second", "three": "The third"})
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["run_all.py", *map(str, args)])
    return int(script.main())


def test_one_that_fails_does_not_lose_the_others(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = stand_ins / "out"
    assert run(monkeypatch, "--out", out, "--only", "two,one", "--quick") == 1
    said = capsys.readouterr().out
    assert sum(line.startswith("train_step/64/vs_stock") for line in said.splitlines()) == 1
    assert "0 of 1 goals met; missed: train_step/64/vs_stock" in said
    html = (out / "index.html").read_text()
    assert "The second" in html and "decode/64/vs_&lt;stock&gt;" in html and "<stock>" not in html


def test_an_interrupt_ends_it_with_what_there_is(stand_ins: Path, monkeypatch: pytest.MonkeyPatch):
    out = stand_ins / "out"
    assert run(monkeypatch, "--out", out, "--only", "three,one") == 130
    assert (out / "bench_three.json").exists() and not (out / "bench_one.json").exists()
    assert "The third" in (out / "index.html").read_text()


def test_commands_are_those_of_the_benchmarks(tmp_path: Path):
    """Every benchmark takes the flags that it is given."""
    args = script.get_parser().parse_args(["--out", str(tmp_path), "--quick"])
    for name in script.BENCHES:
        _, path, *flags = script.command(name, args)
        source = Path(path).read_text() + (ROOT / "fairseq_efficient" / "bench" / "command.py").read_text()
        assert all(f'"{flag}"' in source for flag in flags if flag.startswith("--")), name


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--only", "none"], "--only none: not one of"), (["--threads", "0"], "--threads 0: must be at least 1")],
)
def test_wrong_flags(flags: list[str], said: str, tmp_path: Path):
    assert said in error_line(run_cli(str(SCRIPT), ["--out", str(tmp_path), *flags], expect=2))


def test_a_benchmark_whose_package_is_missing_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(script, "OPTIONAL", {"peers": "no_such_package_anywhere", "precision": "json"})
    assert script.present(["precision", "peers"]) == ["precision"]
    assert "== Peers: left out, no_such_package_anywhere is not installed" in capsys.readouterr().out
