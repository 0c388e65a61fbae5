"""Rates in fairseq's logs, as sums over sums: the same for any batch size, number of updates and ranks.

What a criterion adds to its loss is logged as ``aux/NAME``: as it is added, weight included, in nats, for each token
(of a classifier: for each text).
"""

from collections.abc import Callable
from typing import Any


def rate(above: str, below: str) -> Callable[[Any], float]:
    """For ``metrics.log_derived``: the sum of the meter ``above`` over that of ``below``, which counts at least 1."""

    def derived(meters: Any) -> float:
        return round(float(meters[above].sum) / max(float(meters[below].sum), 1), 4)

    return derived
