"""The published implementation's cutoffs: ours cost no more."""

from pathlib import Path
from typing import Any

import pytest
import torch

from par_search import recording as module
from par_search.recording import CHECKS
from tests.util import run_cli

PATH = Path(__file__).parents[1] / "fixtures" / "optimal_cuts.pt"


def read() -> dict[str, Any]:
    found: dict[str, Any] = torch.load(PATH, weights_only=True)
    return found


def failed(recording: dict[str, Any]) -> list[str]:
    return [one.name.partition(": ")[2] for one in CHECKS[recording["kind"]](recording) if not one.within]


def test_ours_cost_no_more():
    recording = read()
    assert failed(recording) == []
    assert len(list(CHECKS["optimal_cuts"](recording))) == 3 * len(recording["cases"]) == 6


def test_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch):
    recording = read()
    recording["cases"][0]["cost"] *= 1.01
    assert failed(recording) == ["cost of the recorded cutoffs"]
    monkeypatch.setattr(module, "optimal_cutoffs", lambda counts, clusters: (list(range(1, clusters)), 1.0))
    assert set(failed(read())) == {"our cost, counted again", "our cost where it is more than recorded"}


def test_check_reference_reads_them():
    assert "all within tolerance" in run_cli("scripts/check_reference.py", [str(PATH)])
