"""How far heads looked over a training, as it was logged."""

import re
from dataclasses import dataclass

import numpy as np

from fairseq_efficient.report.train_log import INNER, TrainLog

_NAME = re.compile(r"span/(\d+)/(\d+)$")


@dataclass(frozen=True)
class SpanLog:
    """``values`` (steps, layers, heads): keys that each head sees at most; ``updates`` (steps,): when it was logged."""

    updates: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """(layers, heads) at the end."""
        return self.values[-1]


def read_spans(log: TrainLog, tag: str = INNER) -> SpanLog | None:
    """Those logged as ``span/LL/HH``, in training or by the validation ``tag``; None if there are none. Steps that lack
    one are left out."""
    entries = sorted(log.entries.get(tag, {}).items())
    names = {(int(found[1]), int(found[2])) for _, values in entries for name in values if (found := _NAME.match(name))}
    if not names:
        return None
    layers, heads = (1 + max(name[axis] for name in names) for axis in (0, 1))
    updates, rows = [], []
    for update, values in entries:
        row = [[values.get(f"span/{i:02d}/{j:02d}", np.nan) for j in range(heads)] for i in range(layers)]
        if np.isfinite(row).all():
            updates.append(update)
            rows.append(row)
    return SpanLog(np.array(updates), np.array(rows, dtype=np.float64)) if rows else None
