"""Results that commands log are on stdout, in fairseq's form."""

import logging
import subprocess
import sys

import pytest

from fairseq_efficient.compat.libraries import log_as_commands_do
from tests.util import ROOT


def test_results_of_eval_lm_are_on_stdout():
    """In a process of its own, because fairseq's import and pytest both change the root logger."""
    code = (
        "import fairseq_cli.eval_lm as tool, fairseq_efficient.compat as compat; compat.apply(); "
        "tool.logger.info('found'); tool.logger.debug('noise')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("| INFO | fairseq_cli.eval_lm | found\n") and "noise" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "form", "stream"),
    [
        ("fairseq_cli.validate", logging.BASIC_FORMAT, "stdout"),
        ("fairseq_cli.interactive", logging.BASIC_FORMAT, "stderr"),  # what it prints is the result
        ("fairseq_cli.validate", "%(message)s", None),  # somebody's own
        ("a_program", logging.BASIC_FORMAT, None),
    ],
)
def test_where_the_log_goes(command: str, form: str, stream: str | None, monkeypatch: pytest.MonkeyPatch):
    root, handler = logging.Logger("root"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(form))
    root.handlers, root.level = [handler], logging.DEBUG
    monkeypatch.setattr(logging, "getLogger", lambda: root)
    monkeypatch.setattr(logging.Logger.manager, "loggerDict", {command: None})
    monkeypatch.setenv("LOGLEVEL", "warning")
    log_as_commands_do()
    assert handler.stream is (sys.stderr if stream in (None, "stderr") else sys.stdout)
    assert root.level == (logging.DEBUG if stream is None else logging.WARNING)
