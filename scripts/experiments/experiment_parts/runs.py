"""One training of an experiment and what is measured of it, stage by stage; a stage that is done is skipped."""

import argparse
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Protocol

from experiment_parts.stages import (
    ROOT,
    Record,
    StageFailed,
    fairseq,
    read_json,
    read_training_log,
    run,
    say,
    script,
    show_training,
    trained,
)
from fairseq_efficient.bench.machine import command_line
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json
from fairseq_efficient.report.stages import Stage, read_stages, write_stages

NEVER = "1000000000"
SAVING = [
    "--save-interval", NEVER, "--validate-interval", NEVER, "--keep-interval-updates", "1", "--no-epoch-checkpoints",
]  # fmt: skip


@dataclass(frozen=True)
class ExperimentPlan:
    """What the flags of a quality run say of all its commands."""

    args: argparse.Namespace

    @property
    def env(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.args.threads), "PYTHONUNBUFFERED": "1", "LOGLEVEL": "INFO"}

    @property
    def device_flags(self) -> list[str]:
        return ["--cpu"] if self.args.device == "cpu" else []

    @property
    def precision_flags(self) -> list[str]:
        """Of a training; its checkpoint remembers what the CPU was asked for."""
        if self.args.precision == "fp32":
            return []
        return ["--bf16"] if self.args.device == "cuda" else ["--cpu-bf16"]

    @property
    def workers(self) -> list[str]:
        return ["--num-workers", "0" if self.args.device == "cpu" else "2"]


class Run(Protocol):
    """One model, trained once.

    ``train_flags``: all flags that decide what is learned; ``watch_flags``: of what is logged, validated and saved on
    the way, and those that hold paths. ``fingerprint``: what tells its data, and what it starts from, from others.
    """

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def updates(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def checkpoint(self) -> Path: ...
    @property
    def train_flags(self) -> list[str]: ...
    @property
    def watch_flags(self) -> list[str]: ...
    @property
    def device_flags(self) -> list[str]: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def env(self) -> dict[str, str]: ...
    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        """fairseq's ``tool`` on the run's data."""
        ...


@dataclass(frozen=True)
class SeededRun:
    """A :class:`Run` of one model with one seed. ``package``: the --user-dir."""

    plan: Any
    model: str
    seed: int
    updates: int
    package: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.plan.args.out, self.model, f"seed{self.seed}")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint_last.pt"

    @property
    def env(self) -> dict[str, str]:
        return dict(self.plan.env)

    @property
    def device_flags(self) -> list[str]:
        return list(self.plan.device_flags)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return dict(self.plan.fingerprint)

    @property
    def watch_flags(self) -> list[str]:
        """Flags of what is logged, validated and saved on the way."""
        args = self.plan.args
        valid = min(args.valid_interval or max(self.updates // 10, 1), self.updates)
        log = min(args.log_interval or max(self.updates // 40, 1), self.updates)
        return [
            "--validate-interval-updates", str(valid), "--save-interval-updates", str(valid),
            "--max-valid-steps", str(args.valid_batches), "--log-interval", str(log), *self.plan.workers,
        ]  # fmt: skip

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        """fairseq's ``tool`` on the run's data."""
        return [*fairseq(tool), str(self.plan.data), "--user-dir", str(ROOT / self.package), *flags]


def prepared(out: Path, name: str, flags: Sequence[str]) -> Path:
    """OUT/data, made by a script, which sees by itself whether it is there already."""
    destination = Path(out, "data")
    say("prepare")
    told: Callable[[str], str | None] = lambda line: f"  {line.rstrip()}" if "%|" not in line else None  # noqa: E731
    run(script(name, destination, *flags), out / "prepare.log", told)
    return destination


def split_size(prefix: Path) -> tuple[int, int]:
    """(items, tokens) of a binarised split, by the header of its index."""
    try:
        content = Path(f"{prefix}.idx").read_bytes()
    except OSError as err:
        raise UserError(f"{prefix}.idx: {err.strerror}") from None
    if content[:9] != b"MMIDIDX\0\0":
        raise UserError(f"{prefix}.idx: not an index of --dataset-impl mmap")
    (count,) = struct.unpack_from("<Q", content, 18)
    return count, sum(struct.unpack_from(f"<{count}i", content, 26))


def train(one: Run) -> None:
    """Train, or go on training; of a finished training only the last checkpoint is kept."""
    one.folder.mkdir(parents=True, exist_ok=True)
    path, log = one.folder / "train.json", one.folder / "train.log"
    settings = {"flags": one.train_flags, "data": one.fingerprint}
    record = Record.load(path) or Record(settings)
    if record.settings != settings:
        raise UserError(f"{one.folder}: was trained with other flags or data; give another --out")
    if record.done:
        return say(f"{one.name}: trained already")
    command = one.command("train", [*one.train_flags, *one.watch_flags, "--save-dir", str(one.checkpoint.parent)])
    if not trained(log, one.updates):  # fairseq, started again after its last update, would do one more
        say(f"{one.name}: training for {one.updates:,} updates")
        show = show_training(one.model, one.updates)
        record.save(path)  # a killed run says what it was of
        run(command, log, show, one.env, append=True, record=record, record_file=path)
        if not trained(log, one.updates):
            raise StageFailed(f"{one.name}: training ended before or after {one.updates} updates; see {log}")
    for other in one.checkpoint.parent.glob("checkpoint_*.pt"):
        if other != one.checkpoint:
            other.unlink()
    record.done = True
    record.save(path)
    remember(one, "train", record, command)


def once(
    path: Path,
    settings: dict[str, Any],
    command: Sequence[str],
    log: Path,
    said: str,
    already: str = "",
    show: Callable[[str], str | None] = lambda line: None,
    env: dict[str, str] | None = None,
) -> Record | None:
    """Run a stage of one command, unless it is done with the same settings.

    Args:
        path: remembers it. said, already: for the user, where it runs and where it does not.

    Returns:
        what is remembered of it if it was run, else None.
    """
    record = Record.load(path)
    if record is not None and record.done and record.settings == settings:
        if already:
            say(already)
        return None
    say(said)
    record = Record(settings)
    run(command, log, show, env, record=record, record_file=path)
    record.done = True
    record.save(path)
    return record


def remember(one: Run, name: str, record: Record, command: Sequence[str]) -> None:
    """Add a stage to the run's stages.json, which scripts/report.py reads, or replace it there."""
    path = one.folder / "stages.json"
    stages = {stage.name: stage for stage in (read_stages(path) if path.exists() else [])}
    peak = read_training_log(one.folder / "train.log").gpu_peak_mb if name == "train" else None
    short = command_line([Path(word).name if "/" in word else word for word in command[1:]])
    megabytes = round(peak or record.peak_mb)
    stages[name] = Stage(name, round(record.seconds, 1), megabytes, len(record.runs), record.done, short)
    write_stages(path, list(stages.values()))


def score(
    one: Run,
    name: str,
    tool: str,
    flags: Sequence[str],
    log: Path,
    said: str,
    show: Callable[[str], str | None] = lambda line: None,
    listed: bool = True,
) -> None:
    """Run a tool over the trained model once.

    Args:
        name: of the stage; ``NAME.json`` remembers it. said: what is done, for the user.
        listed: whether the stage is one of those that scripts/report.py shows.
    """
    settings = {"flags": list(flags), "trained": one.train_flags}
    command = one.command(tool, [*flags, "--path", str(one.checkpoint), *one.device_flags])
    what = f"{one.name}: fairseq-{tool}"
    record = once(one.folder / f"{name}.json", settings, command, log, f"{what} {said}", f"{what} done already", show,
                  one.env)  # fmt: skip
    if record is not None and listed:
        remember(one, name, record, command)


def validated(log: Path, subset: str) -> dict[str, float]:
    """The numbers of a fairseq-validate --log-format json, without their prefix."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        _, found, body = line.partition(f" | {subset} | ")
        if found:
            return {name.removeprefix(f"{subset}_"): float(value) for name, value in json.loads(body).items()}
    raise StageFailed(f"{log}: no result of fairseq-validate in it")


def eval_told(line: str) -> str | None:
    """What fairseq-eval-lm says at its end, for :func:`score`."""
    if not any(text in line for text in ("Evaluated", "Loss (base 2)")):
        return None
    return f"  {line.rstrip().rpartition('eval_lm')[2].lstrip(' |:')}"


def time_updates(runs: Sequence[Run], count: int, skip: int = 2, more: Sequence[str] = ()) -> dict[str, float]:
    """Name of a run -> seconds of an update: ``count`` more of each trained model, two rounds in turns, the median of
    all but the first ``skip`` of a round. For a machine that is quiet now and was not always. more: training flags."""
    found: dict[str, list[float]] = {one.name: [] for one in runs}
    for turn, one in [(0, one) for one in runs] + [(1, one) for one in reversed(runs)]:
        say(f"{one.name}: timing {count} updates")
        log = one.folder / f"timing{turn}.log"
        log.unlink(missing_ok=True)
        flags = [*one.train_flags, *one.watch_flags, "--max-update", str(count), "--log-interval", "1", "--no-save"]
        flags += ["--restore-file", str(one.checkpoint), "--reset-optimizer", "--reset-lr-scheduler", "--reset-meters"]
        flags += ["--reset-dataloader", "--disable-validation", *more]
        run(one.command("train", flags), log, env=one.env)
        seconds = read_training_log(log).seconds_of
        found[one.name] += [each for update, each in seconds.items() if update > skip]
    for name, seconds_of in found.items():
        say(f"{name}: {median(seconds_of):.3f} s for an update")
    return {name: median(seconds_of) for name, seconds_of in found.items()}


def steps_file(out: Path) -> Path:
    return Path(out, "step_seconds.json")


def step_seconds(out: Path) -> dict[str, float]:
    """Seconds of an update of what :func:`keep_step_seconds` kept in ``out``."""
    path = steps_file(out)
    return dict(read_json(path)) if path.exists() else {}


def keep_step_seconds(out: Path, found: Mapping[str, float]) -> None:
    write_json(steps_file(out), {**step_seconds(out), **found})
