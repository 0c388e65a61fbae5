"""Labels as the numbers of classes, or as scores."""

import math
import re
from collections.abc import Sequence

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad

_MANY = 1000  # more classes are taken for a mistake


def _natural(label: str) -> tuple[float, str]:
    return (float(label), "") if re.fullmatch(r"-?\d+(\.\d+)?", label) else (math.inf, label)


class Labels:
    """Labels as numbers. Without given classes, those of train are learned, and fixed when another split begins."""

    def __init__(self, classes: Sequence[str] = (), regression: bool = False, top: float | None = None) -> None:
        self.regression, self.top = regression, top
        self.names = list(classes)
        self.fixed = bool(classes) or regression
        self._index = {name: number for number, name in enumerate(self.names)}

    def number(self, label: str, where: str) -> float | Bad:
        """The class's number or the score; Bad for a label out of range."""
        if self.regression:
            return self._score(label, where)
        if label not in self._index:
            if self.fixed or not label:
                known = ", ".join(self.names)[:200]
                return Bad(where, f"label {label!r} is not one of {known}" if label else "no label")
            if len(self.names) == _MANY:
                raise UserError(f"{where}: more than {_MANY:,} different labels; are they scores (--regression)?")
            self._index[label] = len(self.names)
            self.names.append(label)
        return self._index[label]

    def _score(self, label: str, where: str) -> float | Bad:
        try:
            score = float(label)
        except ValueError:
            return Bad(where, f"label {label!r} is not a number")
        top = self.top
        if not math.isfinite(score) or (top is not None and not 0 <= score <= top):
            return Bad(where, f"label {label!r} is out of range" + ("" if top is None else f" (0 to {top:g})"))
        return score if top is None else score / top

    def fix(self) -> list[int] | None:
        """Sort what was learned, numbers as numbers: the new number of each old one. UserError for a single class."""
        if self.fixed:
            return None
        if len(self.names) < 2:
            raise UserError(f"split train: all labels are {self.names[0]!r}; a classifier needs two classes")
        order = sorted(self.names, key=_natural)
        moved = [order.index(name) for name in self.names]
        self.names, self._index, self.fixed = order, {name: i for i, name in enumerate(order)}, True
        return moved
