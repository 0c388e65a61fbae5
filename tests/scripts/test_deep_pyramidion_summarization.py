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
from tests.util import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import deep_pyramidion_summarization as script
from experiment_parts.deep_pyramidion import report
from experiment_parts.stages import Record, StageFailed, read_training_log, run


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
    assert read_training_log(path).finished and script.trained(path, 40) and not script.trained(path, 41)


def test_gpu_memory_is_what_was_never_free(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(
        "rank   0: capabilities =  9.0  ; total memory = 79.500 GB ; name = X\n"
        + inner(10, 1, gb_free="70.5")
        + inner(20, 1, gb_free="75")
    )
    assert read_training_log(path).gpu_peak_mb == 9 * 1024


def test_stage_is_logged_measured_and_recorded_even_if_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code = (
        "import sys; x = bytearray(80 << 20); print('one'); print('two', file=sys.stderr); sys.exit(int(sys.argv[1]))"
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


ROUGE = {
    **{kind: {"mean": 10.0 + i, "low": 9.0 + i, "high": 11.0 + i} for i, kind in enumerate(report.KINDS)},
    "words": 123.4,
}  # fmt: skip


def document(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "train.log"
    path.write_text(HEAD + inner(10, 50) + line("valid", valid_num_updates="10", valid_nll_loss="6.78") + END)
    stages = {"train": {"seconds": 70.0, "peak_mb": 801.5}, "generate": {"seconds": 300.0, "peak_mb": 702.4}}
    common = {"data": "D", "seed": 1}
    rows = report.model_rows({**common, "model": "full", "updates": 10}, read_training_log(path), ROUGE, stages)
    return {
        "date": "2026-01-01", "commit": "abc", "dirty": True, "command": "python x.py", "versions": {"torch": "2"},
        "machine": {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 3.5, "gpu": None},
        "data": {"name": "D", "split": "valid", "pairs": 7, "max_source_positions": 64, "cut": {"train": "all cut"}},
        "settings": {"a": 1}, "rows": rows + report.floor_rows({**common, "model": "lead"}, ROUGE),
    }  # fmt: skip


def test_rows_and_page(tmp_path: Path) -> None:
    found = document(tmp_path)
    keys = {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"}
    assert all(keys <= set(row) for row in found["rows"])
    full = {row["metric"]: row for row in found["rows"] if row["model"] == "full"}
    assert full["rouge2"]["value"] == 11 and full["rouge2"]["low"] == 10 and full["rouge2"]["seconds"] == 50
    assert full["seconds_per_update"]["value"] == 5 and full["valid_nll_loss"]["value"] == 6.78
    report.write(tmp_path / "results", found)
    assert json.loads((tmp_path / "results" / "deep_pyramidion.json").read_text()) == found
    page = (tmp_path / "results" / "deep_pyramidion.md").read_text()
    assert "| full attention | 10.00 [9.00, 11.00] | 11.00 [10.00, 12.00] |" in page
    assert "| full attention | 1,450,752 | 10 | 50 s | 5.00 (5.00) | 802 | 5 min | 702 | 6.780 |" in page
    assert page.count("| lead (no model) |") == 1 and "with local changes" in page


def test_prose_names_no_result() -> None:
    assert set(re.findall(r"\d+(?:\.\d+)?", report.PROSE)) == {"95"}


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


def plan(tmp_path: Path, *flags: str) -> script.Plan:
    found = script.Plan(script.get_parser().parse_args(["--data", "d", "--out", str(tmp_path), *flags]), Path("d"))
    found.folder("full").mkdir(exist_ok=True)
    return found


def test_a_trained_model_is_not_trained_again_nor_with_other_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(script, "run", lambda *args, **more: pytest.fail("nothing is to be run"))
    first = plan(tmp_path, "--updates", "10")
    (tmp_path / "full" / "train.log").write_text(HEAD + inner(10, 5) + line("valid", valid_num_updates="10") + END)
    script.train(first, "full")  # finished, but killed before it was written down
    script.train(first, "full")
    assert "trained already (10 updates)" in capsys.readouterr().out
    with pytest.raises(UserError, match="other flags"):
        script.train(plan(tmp_path, "--updates", "10", "--batch-size", "3"), "full")
    with pytest.raises(UserError, match=r"--updates 9: full in .* has 10 already"):
        script.train(plan(tmp_path, "--updates", "9"), "full")


def test_precision_flags(tmp_path: Path) -> None:
    cpu, cuda = (plan(tmp_path, "--precision", "bf16", "--device", device) for device in ("cpu", "cuda"))
    assert cpu.train_flags("full")[-2:] == ["--cpu", "--cpu-bf16"] and cpu.decoding_flags == ["--cpu"]
    assert cuda.train_flags("full")[-1] == "--bf16" and cuda.decoding_flags == ["--bf16"]


def test_documents_are_limited_without_touching_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n3\n")
    copy = script.first_lines(tmp_path / "a", tmp_path / "in" / "a", 2)
    time = copy.stat().st_mtime_ns
    assert copy.read_text() == "1\n2\n"
    assert script.first_lines(tmp_path / "a", copy, 2).stat().st_mtime_ns == time


def test_the_parent_process_stays_small() -> None:
    code = "import sys, deep_pyramidion_summarization; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "scripts" / "experiments")
