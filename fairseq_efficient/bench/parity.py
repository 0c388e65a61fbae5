"""Checks that variants compute the same, made before any of them is timed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """``largest`` difference found, and what is allowed."""

    name: str
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.largest <= self.tolerance  # False for NaN


def difference(one: Any, other: Any) -> float:
    """Largest absolute difference of two tensors."""
    return float((one - other).abs().max())


def relative(one: Any, other: Any, least: float = 0.0) -> float:
    """:func:`difference` over the largest value of ``other``, taken to be ``least`` at least."""
    return difference(one, other) / max(least, other.abs().max().item())


def agree(checks: Iterable[Check]) -> bool:
    """Print each check as it is made, and say whether all have passed."""
    passed = []
    for check in checks:
        verdict = "ok  " if check.passed else "FAIL"
        found = f"largest difference {check.largest:.2g} (tolerance {check.tolerance:g})"
        print(f"{verdict} {check.name}: {found}", flush=True)
        passed.append(check.passed)
    return all(passed)
