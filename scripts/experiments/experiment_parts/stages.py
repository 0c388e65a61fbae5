"""Commands of an experiment as stages: run, logged, measured, remembered; and what fairseq's training log says."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json
from fairseq_efficient.report.train_log import INNER, interval_seconds, parse_line

ROOT = Path(__file__).resolve().parents[3]


class StageFailed(Exception):
    """A command ended with an error; the message is for the user."""


def script(name: str, *words: object) -> list[str]:
    """The command of one of our scripts."""
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, words)]


def fairseq(tool: str) -> list[str]:
    """The command of fairseq that belongs to this Python."""
    found = Path(sys.executable).parent / f"fairseq-{tool}"
    return [sys.executable, str(found)] if found.exists() else [sys.executable, "-m", f"fairseq_cli.{tool}"]


def say(text: str) -> None:
    print(text, flush=True)


def _die_with_parent() -> None:
    """In the child: be killed when this process is, so that a second start finds nobody at work in its folders."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Ran:
    """One run of a command. ``peak_mb``: largest resident memory of the process or one of its workers."""

    seconds: float
    peak_mb: float
    status: int


def run(
    command: Sequence[str],
    log: Path,
    show: Callable[[str], str | None] = lambda line: None,
    env: dict[str, str] | None = None,
    append: bool = False,
    record: "Record | None" = None,
    record_file: Path | None = None,
) -> Ran:
    """Run ``command``, its output into ``log``, and print what ``show`` makes of each line.

    The run is added to ``record``, saved as ``record_file``, however it ends.
    The caller should be a small process: on Linux a child starts with its parent's memory as its peak.

    Raises:
        StageFailed: an exit status other than 0; the end of the log is in the message.
    """
    start = time.monotonic()
    with log.open("a" if append else "w", encoding="utf-8") as out:
        print(f"# start {time.strftime('%Y-%m-%dT%H:%M:%S%z')}", file=out, flush=True)
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            preexec_fn=_die_with_parent,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                out.write(line)
                out.flush()
                if text := show(line):
                    print(text, flush=True)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.stdout.close()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            ran = Ran(time.monotonic() - start, usage.ru_maxrss / 1024, process.returncode)
            if record is not None and record_file is not None:
                record.add(ran)
                record.save(record_file)
    if process.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise StageFailed(
            "\n".join([*lines[-5:], f"{Path(command[1]).name}: exit status {process.returncode}; see {log}"])
        )
    return ran


@dataclass
class Record:
    """What is remembered of a stage: settings, the runs it took (more than one if resumed), whether it is done."""

    settings: dict[str, Any]
    runs: list[dict[str, float]] = field(default_factory=list)
    done: bool = False

    @property
    def seconds(self) -> float:
        return sum(one["seconds"] for one in self.runs)

    @property
    def peak_mb(self) -> float:
        return max((one["peak_mb"] for one in self.runs), default=0.0)

    def add(self, ran: Ran) -> None:
        self.runs.append({"seconds": round(ran.seconds, 2), "peak_mb": round(ran.peak_mb, 1)})

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        return cls(**read_json(path)) if path.exists() else None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: not readable ({err}); delete it to do this stage again") from None


_LOADED = re.compile(r"Loaded checkpoint .* @ (\d+) updates\)")


def entry(line: str) -> tuple[str, dict[str, float]] | None:
    """(tag, numbers) of a line that fairseq wrote with --log-format json; None for any other, and for half a line."""
    try:
        return parse_line(line)
    except ValueError:
        return None


@dataclass
class TrainingLog:
    """A log of fairseq-train, several runs one after the other."""

    seconds_of: dict[int, float] = field(default_factory=dict)  # of each update that the final weights come from
    intervals: dict[int, float] = field(default_factory=dict)  # update -> seconds per update of the interval it ends
    valid: dict[str, float] = field(default_factory=dict)  # the last validation
    loss: float | None = None
    parameters: int | None = None
    cuts: dict[str, str] = field(default_factory=dict)  # split -> what was cut
    gpu: str | None = None  # its name
    gpu_gb: float | None = None  # in all
    gpu_free_gb: float | None = None  # at the least
    finished: bool = False  # the last run ended by itself

    @property
    def updates(self) -> int:
        """Updates done when the last validation ran."""
        return int(self.valid.get("num_updates", 0))

    @property
    def seconds(self) -> float:
        """Time in training steps; updates that were done twice because of a crash count once."""
        return sum(self.seconds_of.values())

    @property
    def seconds_per_update(self) -> float | None:
        return median(self.intervals.values()) if self.intervals else None

    @property
    def fastest_update(self) -> float | None:
        """Seconds per update of the fastest interval: what other work on the machine disturbed least."""
        return min(self.intervals.values()) if self.intervals else None

    @property
    def gpu_peak_mb(self) -> float | None:
        if self.gpu_gb is None or self.gpu_free_gb is None:
            return None
        return 1024 * (self.gpu_gb - self.gpu_free_gb)


def read_training_log(path: Path) -> TrainingLog:
    """Read what ``run(..., append=True)`` collected of ``fairseq-train --log-format json``."""
    log, last = TrainingLog(), 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# start"):
            last, log.finished = 0, False
        elif found := _LOADED.search(line):
            last = int(found.group(1))
            for update in [u for u in log.seconds_of if u > last]:  # will be done again
                del log.seconds_of[update]
            log.intervals = {update: s for update, s in log.intervals.items() if update <= last}
        elif logged := entry(line):
            last = _take(log, *logged, last)
        else:
            _take_text(log, line)
    return log


def _take(log: TrainingLog, tag: str, values: dict[str, float], last: int) -> int:
    """Add one JSON line; returns the update up to which time is accounted for."""
    if tag == "valid":
        log.valid = values
    if tag != INNER:
        return last
    update = int(values["num_updates"])
    if update > last:
        each = interval_seconds(values, update - last) or 0.0
        log.seconds_of.update(dict.fromkeys(range(last + 1, update + 1), each))
        log.intervals[update] = each
    log.loss = values["loss"]
    if "gb_free" in values:
        log.gpu_free_gb = min(values["gb_free"], log.gpu_free_gb or float("inf"))
    return update


def _take_text(log: TrainingLog, line: str) -> None:
    if "| done training in " in line:
        log.finished = True
    elif found := re.search(r"num\. shared model params: ([\d,]+)", line):
        log.parameters = int(found.group(1).replace(",", ""))
    elif found := re.search(r"total memory = ([\d.]+) GB(?: ; name = (.+?)\s*$)?", line):
        log.gpu_gb, log.gpu = float(found.group(1)), found.group(2)
    elif found := re.search(r"(\w[\w-]*): ([\d,]+ of [\d,]+ sources cut.*)$", line):
        log.cuts[found.group(1)] = found.group(2)


def trained(log: Path, updates: int) -> bool:
    """Whether a training ended after exactly so many updates."""
    if not log.exists():
        return False
    found = read_training_log(log)
    return found.finished and found.updates == updates


_SHOWN = (
    ("nll", "nll_loss"), ("bits", "bpc"), ("segments of", "shortening_factor"), ("accuracy", "accuracy"), ("F1", "f1"),
    ("kept", "keep_ratio"),
)  # fmt: skip


def show_training(model: str, updates: int) -> Callable[[str], str | None]:
    """One short line for each of fairseq's JSON lines. updates: of the whole training, 0 if unknown."""
    last: dict[str, float] = {}

    def show(line: str) -> str | None:
        found = entry(line)
        if found is None or found[0] not in (INNER, "valid"):
            return f"  {line.rstrip()}" if "sources cut" in line or "Loaded checkpoint" in line else None
        tag, values = found
        if tag == "valid":
            return f"  {model}: validation {' '.join(f'{name} {values[key]}' for name, key in _SHOWN if key in values)}"
        update, wall = int(values["num_updates"]), time.monotonic()  # fairseq's "wall" is 0 after a resume
        text = f"  {model}: update {update}{f'/{updates}' if updates else ''}, loss {values['loss']}"
        if last and updates:
            each = (wall - last["wall"]) / max(update - last["update"], 1)
            text += f", {each:.1f} s each, about {each * (updates - update) / 60:.0f} min left"
        last.update(update=update, wall=wall)
        return text

    return show
