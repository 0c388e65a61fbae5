"""What the pages of experiments share: tables, times, and how the numbers came to be."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_parts.stages import ROOT
from fairseq_efficient.bench.machine import describe


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown: the first line is the head; columns from the second on are numbers."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def made(head: Mapping[str, Any]) -> str:
    """A list item: command, date, machine, commit, versions (of :func:`fairseq_efficient.bench.machine.provenance`)."""
    commit = (head["commit"] or "unknown")[:12] + (" with local changes" if head["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    return f"- `{head['command']}`; {head['date']}, {describe(head['machine'])}; commit `{commit}`, {versions}"


def draw(script: Path, *words: object) -> None:
    """Run a script that draws, in a process of its own: see stages.run."""
    known = [str(ROOT / "scripts" / "experiments"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(known)}
    subprocess.run([sys.executable, str(script), *map(str, words)], check=True, stdout=subprocess.DEVNULL, env=env)
