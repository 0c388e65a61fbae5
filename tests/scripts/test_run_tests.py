"""The command that runs these tests: what it gives to pytest is understood, also when its results are there already."""

import re
import subprocess
import sys
from pathlib import Path

from tests.util import ROOT


def test_the_figures_may_be_there_already(tmp_path: Path):
    """pytest looks for its configuration beside each word that is a path, before it knows our options."""
    text = (ROOT / "scripts" / "run_tests.sh").read_text(encoding="utf-8")
    (words,) = re.findall(r"--full\) marks=\((.*)\)", text)
    (figures,) = re.findall(r"[\w/]+\.json", words)
    found = tmp_path / "there.json"
    found.write_text("{}")
    command = [sys.executable, "-m", "pytest", *words.replace(figures, str(found)).split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-500:]
    assert "--figures=FILE" in done.stdout and found.read_text() == "{}"
