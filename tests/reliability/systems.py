"""The rows of :data:`tests.util.SYSTEMS` that stand for a whole system, and how tests wait."""

import time
from collections.abc import Callable

import pytest

from tests.util import PATIENCE, SYSTEMS, System

# one architecture of each system, with all its noise and memories
_MAIN = ("pyramidion_tiny", "dynamic_pooling_lm_gumbel_fast", "skim_roberta_tiny", "par_supernet", "sequential_lm")
MAIN_SYSTEMS: tuple[System, ...] = tuple(system for system in SYSTEMS if system.arch in _MAIN)
assert [system.user_dir for system in MAIN_SYSTEMS] == list(dict.fromkeys(system.user_dir for system in SYSTEMS))

# all rows; those that stand for none only in the long run
ROWS = [pytest.param(one, id=str(one), marks=() if one in MAIN_SYSTEMS else pytest.mark.full) for one in SYSTEMS]


def wait_for(there: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Until ``there()``; fails after so many seconds (times ``TEST_PATIENCE``)."""
    end = time.monotonic() + seconds * PATIENCE
    while not there():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.02)
