"""The quality run without its training: stages, fairseq's log, and the page made from rows."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from tests.test_readmes import write_documents
from tests.util import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import deep_pyramidion_summarization as script
from experiment_parts import runs
from experiment_parts.deep_pyramidion import page as pages
from experiment_parts.deep_pyramidion import plan as plans
from experiment_parts.deep_pyramidion import stages
from experiment_parts.stages import Record, StageFailed, read_training_log, run, trained

from tests.scripts.stages_here import script_here, stages_here


def line(tag: str, **values: Any) -> str:
    return f"2026-01-01 00:00:00 | INFO | {tag} | {json.dumps(values)}\n"


def inner(update: int, train_wall: float, **more: Any) -> str:
    return line("train_inner", num_updates=str(update), train_wall=str(train_wall), loss="5.5", wall="1", **more)


HEAD = "# start now\n2026 | INFO | fairseq_cli.train | num. shared model params: 1,450,752 (num. trained: 1)\n"
LOADED = "2026 | INFO | fairseq.trainer | Loaded checkpoint x/checkpoint_last.pt (epoch 1 @ 20 updates)\n"
CUT = "2026 | INFO | a.b | train: 4 of 5 sources cut to 64 tokens (mean 7 % kept), 0 targets cut\n"
END = "2026 | INFO | fairseq_cli.train | done training in 3.0 seconds\n"


def test_training_seconds_add_up_over_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(HEAD + CUT + inner(10, 50) + inner(20, 40) + inner(30, 99))  # killed; updates 21-30 are lost
    log = read_training_log(path)
    assert (log.seconds, log.finished, log.updates) == (pytest.approx(189), False, 0)
    path.write_text(
        path.read_text() + HEAD + LOADED + inner(30, 20) + inner(40, 30) + line("valid", valid_num_updates="40")
    )
    log = read_training_log(path)
    assert log.seconds == pytest.approx(50 + 40 + 20 + 30) and len(log.seconds_of) == 40
    assert log.seconds_per_update == pytest.approx(3.5)
    assert (log.parameters, log.updates, log.finished) == (1450752, 40, False)
    assert log.cuts == {"train": "4 of 5 sources cut to 64 tokens (mean 7 % kept), 0 targets cut"}
    path.write_text(path.read_text() + END)
    assert read_training_log(path).finished and trained(path, 40) and not trained(path, 41)


def test_gpu_memory_is_what_was_never_free(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(
        "rank   0: capabilities =  9.0  ; total memory = 79.500 GB ; name = X\n"
        + inner(10, 1, gb_free="70.5")
        + inner(20, 1, gb_free="75")
    )
    assert read_training_log(path).gpu_peak_mb == 9 * 1024


def test_stage_is_logged_measured_and_recorded_even_if_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code = (  # 'one' is flushed, or an interpreter that buffers it would print it last
        "import sys; x = bytearray(80 << 20); print('one', flush=True); print('two', file=sys.stderr); "
        "sys.exit(int(sys.argv[1]))"
    )
    record, saved, log = Record({"a": 1}), tmp_path / "stage.json", tmp_path / "log"
    more = {"record": record, "record_file": saved}
    ran = run([sys.executable, "-c", code, "0"], log, lambda text: text.strip() if "two" in text else None, **more)
    assert capsys.readouterr().out == "two\n" and {"one", "two"} <= set(log.read_text().split())
    assert ran.peak_mb > 80 and ran.seconds > 0
    with pytest.raises(StageFailed, match=r"two\n.*exit status 3"):
        run([sys.executable, "-c", code, "3"], log, append=True, **more)
    assert log.read_text().count("# start") == 2
    again = Record.load(saved)
    assert again is not None and len(again.runs) == 2 and again.peak_mb > 80 and not again.done
    saved.write_text("{")
    with pytest.raises(UserError, match="delete it"):
        Record.load(saved)


def test_a_killed_experiment_leaves_no_training_behind(tmp_path: Path) -> None:
    """Else a second start would train beside it, into the same checkpoints."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    log, code = tmp_path / "log", "from pathlib import Path; import sys; from experiment_parts.stages import run; run"
    folder = ROOT / "scripts" / "experiments"
    command = [sys.executable, "-c", f"{code}([sys.executable, '-c', {child!r}], Path({str(log)!r}))"]
    parent = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"})

    def wait_for(what: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not what():
            assert time.monotonic() < end
            time.sleep(0.05)

    wait_for(lambda: log.exists() and log.read_text().strip().rpartition("\n")[2].isdigit())
    status = Path("/proc", log.read_text().split()[-1], "stat")
    assert status.exists()
    parent.kill()
    parent.wait()
    wait_for(lambda: not status.exists() or ") Z " in status.read_text())


SIZE = ["--models", "pyramidion,full", "--updates", "2", "--batch-size", "4", "--generate-batch-size", "4",
        "--vocab-size", "90", "--max-source-positions", "64", "--threads", "1", "--name", "tiny"]  # fmt: skip
SMALL = ["--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24", "--decoder-embed-dim", "16",
         "--decoder-ffn-embed-dim", "24", "--enc-layers-and-token-width", "0:32", "--chunk-size", "8"]  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, out: Path, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["deep_pyramidion_summarization.py", "--out", str(out), *SIZE, *map(str, flags)])
    return script.main()


def test_all_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """From files to the page; nothing is done twice; the report reads a run."""
    write_documents(tmp_path, {"train": 10, "valid": 5})
    monkeypatch.setattr(plans, "TRAIN_FLAGS", [*plans.TRAIN_FLAGS, *SMALL])
    monkeypatch.setattr(plans, "MODELS", {name: [*flags, *SMALL] for name, flags in plans.MODELS.items()})
    ran, out = stages_here(monkeypatch, runs), tmp_path / "out"
    files = ("--train", tmp_path / "train.jsonl", "--valid", tmp_path / "valid.jsonl", "--docs", 9)
    assert call(monkeypatch, out, *files) == 0
    assert ran == ["prepare_summarization", *["train", "validate", "generate", "score_rouge"] * 2]
    document = json.loads((out / "results" / "deep_pyramidion.json").read_text())
    keys = {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"}
    assert all(keys <= set(row) for row in document["rows"]) and document["data"]["pairs"] == 5
    found = {(row["model"], row["metric"]): row for row in document["rows"]}
    assert {model for model, _ in found} == {"pyramidion", "full", "lead", "oracle"}
    assert found["full", "rouge2"]["low"] <= found["full", "rouge2"]["value"] <= found["full", "rouge2"]["high"]
    assert found["pyramidion", "valid_nll_loss"]["value"] > 3 and found["lead", "rouge1"]["params"] == 0
    page = (out / "results" / "deep_pyramidion.md").read_text()
    assert "cut to 64 tokens" in page and page.count("| lead (no model) |") == 1

    ran.clear()
    assert call(monkeypatch, out, *files) == 0
    assert ran == ["prepare_summarization"] and "trained already" in capsys.readouterr().out
    with pytest.raises(UserError, match="other flags"):
        call(monkeypatch, out, *files, "--batch-size", 3)
    (out / "full" / "seed1" / "scores.json").write_text('{"model": {"pairs": 4}}')
    assert call(monkeypatch, out, *files) == 1
    assert "4 summaries were scored, but valid has 5 documents" in capsys.readouterr().err
    report = [
        out / "pyramidion" / "seed1",
        "--data",
        out / "data",
        "--subset",
        "valid",
        "--out",
        tmp_path / "page.html",
    ]
    script_here(str(ROOT / "scripts" / "report.py"), ["deep_pyramidion", *report])
    assert "generate" in (tmp_path / "page.html").read_text()


def test_the_published_page_is_made_from_the_published_rows() -> None:
    published = ROOT / "docs" / "results" / "deep_pyramidion.json"
    assert pages.page(json.loads(published.read_text())) == published.with_suffix(".md").read_text()


def test_prose_names_no_result() -> None:
    assert set(re.findall(r"\d+(?:\.\d+)?", pages.PROSE)) == {"95"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "x", "--models", "big"], "--models big: not one of"),
        (["--data", "x", "--updates", "0"], "--updates 0: must be at least 1"),
        (["--train", "x"], "give --train and --valid, or --data"),
        (["--data", "x"], "has no valid.source.txt"),
    ],
)
def test_wrong_flags(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        script.check(script.get_parser().parse_args(["--out", "o", *flags]))


def test_precision_flags() -> None:
    for device, wanted in (("cpu", ["--cpu", "--cpu-bf16"]), ("cuda", ["--bf16"])):
        flags = ["--out", "o", "--data", "d", "--precision", "bf16", "--device", device]
        one = plans.Plan(script.get_parser().parse_args(flags), Path("d")).run("full")
        assert one.train_flags[-len(wanted) :] == wanted


def test_documents_are_limited_without_touching_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n3\n")
    copy = stages.first_lines(tmp_path / "a", tmp_path / "in" / "a", 2)
    time = copy.stat().st_mtime_ns
    assert copy.read_text() == "1\n2\n"
    assert stages.first_lines(tmp_path / "a", copy, 2).stat().st_mtime_ns == time


def test_the_parent_process_stays_small() -> None:
    code = "import sys, deep_pyramidion_summarization; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "scripts" / "experiments")
