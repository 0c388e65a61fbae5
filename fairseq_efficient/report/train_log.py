"""fairseq's training log as numbers: the JSON lines that ``--log-format json --log-file FILE`` writes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, parse_json, read_lines

INNER, EPOCH = "train_inner", "train"


@dataclass
class TrainLog:
    """``entries[tag][update]`` = numbers of one line; tags: ``train_inner``, ``train`` and the validation sets.

    A resumed run repeats updates: the later line counts. ``broken``: lines that looked like JSON but were not.
    """

    entries: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    broken: int = 0

    def series(self, tag: str, name: str) -> tuple[list[int], list[float]]:
        """Updates and finite values of one number, in order."""
        found = sorted(self.entries.get(tag, {}).items())
        pairs = [(update, values[name]) for update, values in found if math.isfinite(values.get(name, math.nan))]
        return [update for update, _ in pairs], [value for _, value in pairs]

    @property
    def valid_sets(self) -> list[str]:
        return [tag for tag in self.entries if tag not in (INNER, EPOCH)]

    @property
    def updates(self) -> int:
        """The last update seen; 0 if none."""
        return max((update for entries in self.entries.values() for update in entries), default=0)

    def step_seconds(self) -> float | None:
        """Median time of an update."""
        found = list(self._intervals().values())
        return median(found) if found else None

    def seconds(self) -> tuple[list[int], list[float]]:
        """Updates, and the time in training steps up to each (no validation, start or saving)."""
        intervals = self._intervals()
        befores = [0, *intervals]
        each = ((update - before) * intervals[update] for before, update in zip(befores, intervals, strict=False))
        return list(intervals), list(accumulate(each))

    def _intervals(self) -> dict[int, float]:
        """Logged update -> seconds of one update since the one logged before."""
        before, found = 0, {}
        for update, values in sorted(self.entries.get(INNER, {}).items()):
            seconds = interval_seconds(values, update - before)
            if seconds is not None:
                found[update] = seconds
            before = update
        return found


def interval_seconds(values: Mapping[str, Any], updates: int) -> float | None:
    """Time of an update by the log of ``updates`` of them; None if it was not logged.

    ``train_wall`` is in whole seconds, but of steps only; ``wpb / wps`` is exact, but holds a validation in between:
    it is taken where it agrees with the other.
    """
    wall, words, speed = (_number(values.get(name)) for name in ("train_wall", "wpb", "wps"))
    if wall is None or updates < 1:
        return None
    exact = words / speed if words and speed else None
    coarse = wall / updates
    return exact if exact is not None and abs(exact - coarse) <= 0.5 / updates + 0.02 * coarse else coarse


def parse_line(line: str) -> tuple[str, dict[str, float]] | None:
    """(tag, numbers) of a line of a log file, ``{...}``, or of the output, ``... | tag | {...}``.

    The tag is taken from the names, which lose it: ``valid_loss`` is ``loss`` of ``valid``. None for any other line.

    Raises:
        ValueError: the line starts like one, but is cut off or garbled.
    """
    head, brace, body = line.partition("{")
    if not brace or not body.startswith('"') or head.rstrip()[-1:] not in ("", "|", ":"):
        return None
    values = parse_json(brace + body)
    counter = next((name for name in values if name.endswith("num_updates")), None)
    if counter is None:
        return None
    prefix = counter.removesuffix("num_updates")
    found = {name.removeprefix(prefix): _number(value) for name, value in values.items()}
    return prefix.rstrip("_") or INNER, {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def parse(lines: Iterable[str]) -> TrainLog:
    """The entries of a log's lines; lines that cannot be read are counted."""
    log = TrainLog()
    for line in lines:
        try:
            found = parse_line(line)
        except ValueError:
            log.broken += 1
            continue
        if found is None or not math.isfinite(found[1].get("num_updates", math.nan)):
            continue
        tag, numbers = found
        log.entries.setdefault(tag, {})[int(numbers["num_updates"])] = numbers
    return log


def read_train_log(path: Path) -> TrainLog:
    """The log of a run. UserError if the file is missing or has no line of numbers."""
    log = parse(line.text for line in read_lines(path) if not isinstance(line, Bad))
    if not log.entries:
        raise UserError(f"{path}: no training numbers in it (fairseq-train --log-format json --log-file FILE)")
    return log
