"""fairseq's training log as numbers: the JSON lines that ``--log-format json --log-file FILE`` writes."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, read_lines

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


def parse_line(line: str) -> tuple[str, dict[str, float]] | None:
    """(tag, numbers) of a log line ``time | INFO | tag | {...}``, names without the tag; None for any other line.

    Raises:
        ValueError: the line starts like one, but is cut off or garbled.
    """
    head, brace, body = line.partition("{")
    fields = [part.strip() for part in head.split("|")]
    if not brace or len(fields) < 4 or fields[3] or not body.startswith('"'):
        return None
    values = json.loads(brace + body)
    numbers: dict[str, float] = {}
    for name, value in values.items():
        number = _number(value)
        if number is not None:
            numbers[name.removeprefix(f"{fields[2]}_")] = number
    return fields[2], numbers


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def parse(lines: Iterable[str]) -> TrainLog:
    log = TrainLog()
    for line in lines:
        try:
            found = parse_line(line)
        except ValueError:
            log.broken += 1
            continue
        if found is None or "num_updates" not in found[1]:
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
