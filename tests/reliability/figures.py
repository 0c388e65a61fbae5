"""What the tests of reliability measured, as a file: hooks that ``tests/conftest.py`` gives to pytest.

A test asks for the fixture ``figure`` and calls ``figure("R4", "kills", 20)``. Numbers of one name are added up, lists
joined; ``largest=True`` and ``smallest=True`` keep the extreme. ``--figures FILE`` writes them, with machine, versions
and commit, when all tests have passed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.bench.machine import provenance

PROPERTY = "figure"
Record = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, metavar="FILE", help="write what tests/reliability measured to FILE")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Record:
    """Record a number of this test."""

    def record(rule: str, name: str, value: Any, largest: bool = False, smallest: bool = False) -> None:
        how = "max" if largest else "min" if smallest else "sum"
        request.node.user_properties.append((PROPERTY, [rule, name, value, how]))

    return record


class Figures:
    """Collects the reports of all workers."""

    def __init__(self, path: Path):
        self.path, self.start = path, time.time()
        self.found: dict[str, dict[str, Any]] = {}
        self.tests: dict[str, int] = {}
        self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed += report.failed
        if report.when == "call" or report.skipped:  # what a mark skips has no call
            self.tests[report.outcome] = self.tests.get(report.outcome, 0) + 1
        if report.when != "call":
            return
        for key, value in report.user_properties:
            if key == PROPERTY:
                self._add(*value)  # type: ignore[misc]

    def _add(self, rule: str, name: str, value: Any, how: str) -> None:
        place = self.found.setdefault(rule, {})
        if name not in place:
            place[name] = value
        else:
            place[name] = {"max": max, "min": min, "sum": lambda one, other: one + other}[how](place[name], value)

    def pytest_sessionfinish(self) -> None:
        if self.failed or not self.found:
            return
        head = provenance(["scripts/run_tests.sh", "--full"], 1)
        rules = {rule: self.found[rule] for rule in sorted(self.found, key=lambda name: int(name[1:]))}
        spent = {"tests": self.tests, "minutes": round((time.time() - self.start) / 60, 1)}
        self.path.write_text(json.dumps({**head, **spent, "figures": rules}, indent=1) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--figures")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Figures(path), "figures")
