"""Docstrings as pages: shapes and formulas are on them; mistakes are one line."""

import sys
from pathlib import Path

import pytest

from scripts import render_api
from tests.util import error_line, run_here

SCRIPT = "scripts/render_api.py"


def test_pages_of_a_package(tmp_path: Path):
    status, out = run_here(SCRIPT, ["--out", str(tmp_path), "--modules", "fairseq_efficient.ops.topk_halving"])
    assert status == 0 and out.strip() == f"wrote {tmp_path / 'index.html'}"
    page = (tmp_path / "fairseq_efficient" / "ops" / "topk_halving.html").read_text(encoding="utf-8")
    assert "Arguments:</h6>" in page and "Returns:</h6>" in page  # sections were understood
    assert "True = pad" in page
    assert 'class="view-source-button"' not in page


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--modules", "os"], "--modules os: not in one of deep_pyramidion, "),
        (["--modules", "fairseq_efficient.nothing"], "--modules: No modules found matching spec: "),
        (["--out", "/proc/there", "--modules", "fairseq_efficient.errors"], "--out /proc/there: "),
    ],
)
def test_mistakes(args: list[str], told: str, tmp_path: Path):
    status, out = run_here(SCRIPT, ["--out", str(tmp_path), *args])
    assert status == 2 and error_line(out).startswith(f"error: {told}")


def test_without_pdoc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    status, out = run_here(SCRIPT, ["--out", str(tmp_path)])
    assert status == 2 and error_line(out) == "error: pdoc is not installed: pip install pdoc"


def test_all_systems_are_asked_for_by_default():
    assert set(render_api.get_parser().parse_args([]).modules) == set(render_api.PACKAGES)
