"""R18: ``scripts/soak.py`` finds that memory, files and data workers stay flat, and finds when they do not."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.reliability.figures import Record
from tests.util import ROOT, error_line, run_cli, run_here

SCRIPT = "scripts/soak.py"
sys.path.insert(0, str(ROOT / "scripts"))
import soak  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def watched(megabytes: list[float], files: list[int], **more: list[Any]) -> dict[str, Any]:
    found, none = soak.Watched("a", "training"), [0] * len(files)
    found.megabytes, found.files = megabytes, files
    found.seconds = [60.0 * number for number in range(len(files))]
    for name in ("shared", "workers", "worker_megabytes"):
        setattr(found, name, more.get(name, none))
    return dict(found.summary())


def test_growth_is_found():
    flat, leak = [100.0] * 30, [100.0 + 2 * n for n in range(30)]
    assert not soak.grew(watched(flat, [9] * 30), 1.0)
    assert watched(leak, [9] * 30)["mb_per_minute"] == pytest.approx(2, rel=0.1)
    assert soak.grew(watched(leak, [9] * 30), 1.0) and not soak.grew(watched(leak, [9] * 30), 3.0)
    assert soak.grew(watched(flat, [*[9] * 20, *[12] * 10]), 1.0)
    assert not soak.grew(watched(flat, [*[9] * 20, *[9, 12] * 5]), 1.0)  # open for a moment
    assert not soak.grew(watched(flat, [*[23] * 15, 17, *[23] * 14]), 1.0)  # closed for a moment
    assert not soak.grew(watched(flat, [9] * 30, workers=[0, 1] * 15), 1.0)  # they come and go
    assert not soak.grew(watched(flat, [9] * 30, workers=[*[1] * 15, 0, *[1] * 14]), 1.0)
    assert soak.grew(watched(flat, [9] * 30, workers=[*[0, 1] * 10, *[1, 2] * 5]), 1.0)  # one stays
    sizes = [*[0.0, 90.0] * 10, *[0.0, 99.0] * 5]  # they become larger
    assert soak.grew(watched(flat, [9] * 30, worker_megabytes=sizes), 1.0)
    assert not soak.grew(watched(flat, [9] * 30, shared=[*[0] * 20, *[25] * 10]), 1.0)  # batches wait
    assert soak.grew(watched(flat, [9] * 30, shared=[10 * n for n in range(30)]), 1.0)  # and are never freed
    warm = [10.0 * n for n in range(10)] + [100.0] * 20  # a warm-up is no growth, nor is one high step
    assert not soak.grew(watched([*warm[:-1], 500.0], [9] * 30), 1.0)


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="what is in shared memory is told apart on Linux")
def test_batches_on_their_way_are_no_open_files(tmp_path: Path):
    """What a worker hands over lies in shared memory, a file for each tensor."""
    me, found = psutil.Process(), soak.Watched("a", "training")
    found.add(me)
    with tempfile.TemporaryFile(dir="/dev/shm"), tempfile.TemporaryFile(dir=tmp_path):
        found.add(me)
    assert found.files[1] - found.files[0] == 1 and found.shared[1] - found.shared[0] == 1


def test_mistakes_are_one_line(tmp_path: Path):
    for more, message in (
        (["--minutes", "0"], "--minutes 0.0: must be greater than 0"),
        (["--num-workers", "-1"], "--num-workers -1: must be at least 0"),
        (["--systems", "x"], "--systems x: not one of deep_pyramidion"),
        (["--json", str(tmp_path / "no" / "x")], "no such folder"),
    ):
        status, output = run_here(SCRIPT, more)
        assert status == 2 and message in error_line(output)


def test_r18_a_minute_is_flat(tmp_path: Path, figure: Record):
    """One system, a tenth of a minute; the limit is wide, because so short a time measures the allocator too."""
    soaked(tmp_path, figure, "adaptive_span", 0.1, 100.0, 0)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_r18_ten_minutes_are_flat(tmp_path: Path, figure: Record):
    soaked(tmp_path, figure, "deep_pyramidion,dynamic_pooling,skimming,par_search,adaptive_span", 10, 4.0, 1)


def soaked(folder: Path, figure: Record, systems: str, minutes: float, limit: float, workers: int) -> None:
    flags = ["--minutes", str(minutes), "--systems", systems, "--limit", str(limit), "--json", str(folder / "x.json")]
    flags += ["--num-workers", str(workers)]
    output = run_cli(str(ROOT / SCRIPT), flags, timeout=minutes * 60 + 400)
    assert "GREW" not in output
    found = json.loads((folder / "x.json").read_text())["processes"]
    assert len(found) == 2 * len(systems.split(",")) and all(one["samples"] >= 9 for one in found)
    if minutes >= 1:  # what a shorter one measures is how the allocator begins
        figure("R18", "minutes watched", round(sum(one["minutes"] for one in found), 1))
        figure("R18", "MB a minute, at most", max(one["mb_per_minute"] for one in found), largest=True)
    assert all((one["workers"] > 0) == (workers > 0 and one["what"] == "training") for one in found)
    figure("R18", "open files more, at most", max(one["files_growth"] for one in found), largest=True)
