"""Run the stages of a pipeline and remember time and memory of each.

``python -m fairseq_efficient.report.stages --file stages.json --name train -- COMMAND ...`` runs the command, adds its
wall-clock to the stage's (a stage that was interrupted and goes on has both parts), and exits as it did.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import write_json
from fairseq_efficient.report.train_log import EPOCH, INNER, parse_line
from fairseq_efficient.systems import PACKAGES
from fairseq_efficient.text.reading import parse_json


@dataclass
class Stage:
    """``peak_mb``: resident memory of its largest process; ``done``: the last run ended well."""

    name: str
    seconds: float
    peak_mb: float
    runs: int = 1
    done: bool = True
    command: str = ""


def read_stages(path: Path) -> list[Stage]:
    """Stages in the order they were first run; unknown keys are left out. UserError for a broken file."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        names = Stage.__dataclass_fields__
        if not isinstance(found, list):
            raise TypeError
        stages = [Stage(**{key: value for key, value in item.items() if key in names}) for item in found]
        for stage in stages:
            stage.seconds, stage.peak_mb = float(stage.seconds), float(stage.peak_mb)
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: not a list of stages (name, seconds, peak_mb)") from None
    return stages


def write_stages(path: Path, stages: Sequence[Stage]) -> None:
    """What :func:`read_stages` reads."""
    write_json(path, [asdict(stage) for stage in stages])


def record(path: Path, new: Stage, add: bool = False) -> None:
    """Add a run to the stage of that name; one that was done before is begun anew, unless ``add``."""
    stages = read_stages(path) if path.exists() else []
    old = next((stage for stage in stages if stage.name == new.name), None)
    if old is None:
        stages.append(new)
    else:
        again = old.done and not add
        old.seconds = new.seconds + (0 if again else old.seconds)
        old.peak_mb = new.peak_mb if again else max(old.peak_mb, new.peak_mb)
        old.runs = 1 if again else old.runs + 1
        old.done, old.command = new.done, new.command
    write_stages(path, stages)


class Readable:
    """Shortens the output of fairseq-train and fairseq-generate for people: numbers in words, its chatter left out."""

    _LINE = re.compile(r"(?:[\d-]+ [\d:,]+ \| (\w+) \| (\S+) \| |(DEBUG|INFO|WARNING|ERROR):([\w.]+):)(.*)")
    _BATCH = re.compile(r"(?:.*\|)?\s*:\s+(\d+) / (\d+) ")  # --log-format simple

    def __init__(self, updates: int = 0):
        self.updates, self.last = updates, (0, time.monotonic())
        self.tenth, self.inside = -1, False

    def __call__(self, line: str) -> str | None:
        """What to print for a line; None for nothing."""
        told = self._LINE.match(line)
        if told is None:
            skip = self.inside or not line.strip()
            self.inside = self.inside and line != ")"
            return None if skip else line
        try:
            found = parse_line(line)
        except ValueError:
            return None
        if found is not None:
            return self._numbers(*found)
        level, name, text = told[1] or told[3], told[2] or told[4], told[5]
        batch = self._BATCH.match(text) if "progress_bar" in name else None
        if batch:
            return self._progress(int(batch[1]), int(batch[2]))
        self.inside = text.endswith("(")  # the model, printed over many lines
        if level in ("WARNING", "ERROR"):
            return None if "BLEU" in text else f"{level.lower()}: {text}"
        ours = name.startswith(PACKAGES) and level == "INFO"
        return text if ours or re.match(r"Loaded checkpoint|done training|num\. shared|Translated", text) else None

    def _progress(self, count: int, total: int) -> str | None:
        """A line for each tenth of the way."""
        tenth = 10 * count // max(total, 1)
        if tenth <= self.tenth:
            return None
        self.tenth, now = tenth, time.monotonic()
        before, since = self.last
        self.last = (count, now)
        left = (total - count) * (now - since) / (count - before) if 0 < before < count else 0
        return f"batch {count:,} of {total:,}" + (f", about {duration(left)} left" if left else "")

    def _numbers(self, tag: str, numbers: dict[str, float]) -> str | None:
        update = int(numbers.get("num_updates") or 0)
        loss = f"loss {numbers.get('nll_loss', numbers.get('loss', 0)):.2f}"
        if tag == INNER:
            now, (before, since) = time.monotonic(), self.last
            each = (now - since) / max(update - before, 1)
            self.last = (update, now)
            left = max(self.updates - update, 0) * each
            tail = f", {each:.1f} s per update" + (f", about {duration(left)} left" if left else "")
            of = f" of {self.updates:,}" if self.updates else ""
            return f"update {update:,}{of}: {loss}{tail if before else ''}"
        if tag == EPOCH:
            return None
        scores = [f"{name} {numbers[name]:.2f}" for name in ("rouge1", "rouge2", "rougeLsum") if name in numbers]
        return f"update {update:,}: {tag}: {', '.join([loss, *scores])}"


def duration(seconds: float) -> str:
    """75 s, 12 min, 2.5 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_stage(path: Path, name: str, command: list[str], readable: Readable | None = None, add: bool = False) -> int:
    """Run a command, record it, return its exit status (130 for Ctrl-C). UserError if it cannot be started."""
    start = time.monotonic()
    pipe: dict[str, Any] = {}
    if readable is not None:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    interrupted: list[int] = []  # Ctrl-C reaches the command too: it ends, and then so do we
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        process = subprocess.Popen(command, **pipe)
    except OSError as err:
        signal.signal(signal.SIGINT, before)
        raise UserError(f"{command[0]}: {err.strerror}") from None
    if readable is not None and process.stdout is not None:
        for line in process.stdout:
            text = readable(line.rstrip("\n"))
            if text is not None and not interrupted:
                print(text, flush=True)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    signal.signal(signal.SIGINT, before)
    megabytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    seconds = time.monotonic() - start
    record(path, Stage(name, round(seconds, 1), round(megabytes), 1, code == 0, shlex.join(command)), add)
    return 130 if code in (-signal.SIGINT, 130) else (code if code >= 0 else 128 - code)


def main() -> int:
    """Run a command, and keep its time and memory for a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="where time and memory are kept (JSON)")
    parser.add_argument("--name", required=True, help="name of the stage")
    parser.add_argument("--add", action="store_true", help="it goes on with what was done before: add up the time")
    parser.add_argument(
        "--shorten", action="store_true", help="shorten the output (of fairseq-train, fairseq-generate)"
    )
    parser.add_argument("--updates", type=int, default=0, help="with --shorten: how many updates there will be")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("no command to run (after --)")
    return run_stage(args.file, args.name, command, Readable(args.updates) if args.shorten else None, args.add)


if __name__ == "__main__":
    run_main(main)
