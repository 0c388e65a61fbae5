"""The table of docs/reliability.md, and the file that a long run of the tests writes for it."""

import json
from pathlib import Path

import pytest

from fairseq_efficient.report.reliability import section
from tests.reliability.figures import Figures

RESULTS = {
    "date": "2026-01-02T03:04:05+00:00", "commit": "0123456789", "versions": {"torch": "2.13.0"}, "minutes": 41.6,
    "machine": {"cpu": "x", "cores": 2, "threads": 1, "memory_gb": 8.0, "gpu": None},
    "tests": {"passed": 1234, "skipped": 5},
    "figures": {"R1": {"resumed": 18}, "R13": {"at most": 0.00123, "updates": 2500}},
}  # fmt: skip


def test_figures_are_rows():
    text = section(RESULTS)
    assert "1,234 tests passed, 5 skipped, in 42 minutes (x, 2 cores, 1 threads, 8.0 GB; torch 2.13.0; " in text
    assert "commit 01234567, 2026-01-02)" in text
    assert "| R1 | resumed: 18 |\n| R13 | at most: 0.00123; updates: 2,500 |\n" in text
    assert "Not measured yet" in section(None)


class Report:
    def __init__(self, *figures: list, when: str = "call", outcome: str = "passed"):
        self.when, self.outcome = when, outcome
        self.failed, self.skipped = outcome == "failed", outcome == "skipped"
        self.user_properties = [("figure", figure) for figure in figures]


def test_figures_of_all_workers_are_brought_together(tmp_path: Path):
    path = tmp_path / "x.json"
    collected = Figures(path)
    for report in (
        Report(["R4", "kills", 1, "sum"], ["R4", "lost", 0, "max"], ["R9", "least", 3, "min"]),
        Report(["R4", "kills", 1, "sum"], ["R4", "lost", 1, "max"], ["R9", "least", 5, "min"]),
        Report(["R10", "cases", 2, "sum"]),
        Report(when="setup"),
        Report(outcome="skipped"),
        Report(when="setup", outcome="skipped"),
    ):
        collected.pytest_runtest_logreport(report)  # type: ignore[arg-type]
    collected.pytest_sessionfinish()
    found = json.loads(path.read_text())
    assert list(found["figures"]) == ["R4", "R9", "R10"]
    assert found["figures"]["R4"] == {"kills": 2, "lost": 1} and found["figures"]["R9"] == {"least": 3}
    assert found["tests"] == {"passed": 3, "skipped": 2} and "R4" in section(found)


def test_nothing_is_written_of_a_run_that_failed(tmp_path: Path):
    collected = Figures(tmp_path / "x.json")
    collected.pytest_runtest_logreport(Report(["R4", "kills", 1, "sum"], outcome="failed"))  # type: ignore[arg-type]
    collected.pytest_sessionfinish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1, 0.5])
def test_numbers_are_recorded(value: float, figure, request: pytest.FixtureRequest):
    figure("R0", "x", value, largest=True)
    assert request.node.user_properties == [("figure", ["R0", "x", value, "max"])]
    request.node.user_properties.clear()
