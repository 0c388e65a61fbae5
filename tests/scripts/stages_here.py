"""Stages of the quality runs in the tests' own process, which has imported fairseq: seconds instead of minutes."""

import contextlib
import io
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from experiment_parts.stages import Ran

from fairseq_efficient.compat.libraries import FORM
from tests.util import run_in_process


def stages_here(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> list[str]:
    """Replace ``run`` of the modules; the list gets the tools that were run."""
    found: list[str] = []

    def run(command: Any, log: Path, show: Any = None, env: Any = None, append: bool = False, **kept: Any) -> Ran:
        found.append(Path(command[1]).stem.removeprefix("fairseq-"))
        here = script_here if command[1].endswith(".py") else fairseq_here
        with log.open("a" if append else "w", encoding="utf-8") as file:
            file.write(f"# start\n{here(command[1], command[2:])}")
        if record := kept.get("record"):
            record.add(Ran(2.0, 300.0, 0))
            record.save(kept["record_file"])
        return Ran(2.0, 300.0, 0)

    for module in modules:
        monkeypatch.setattr(module, "run", run)
    return found


def script_here(path: str, args: Sequence[Any]) -> str:
    """Output of a script; fails if it does."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, args)])
        patch.syspath_prepend(str(Path(path).parent))
        try:
            with contextlib.redirect_stdout(output):
                runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, output.getvalue()
        finally:
            logging.disable(logging.NOTSET)
    return output.getvalue()


def fairseq_here(path: str, args: Sequence[str]) -> str:
    tool = Path(path).stem.removeprefix("fairseq-").replace("-", "_")
    return run_in_process(tool, args, FORM[0])
