"""Prepared SQuAD that tests share."""

from pathlib import Path

import pytest

from tests.poison import poisoned_memory
from tests.squad_data import prepared, random_squad

__all__ = ["poisoned_memory"]


@pytest.fixture(scope="session")
def squad_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions to train on and 14 in valid, half of them without an answer."""
    return prepared(tmp_path_factory.mktemp("squad"), train=random_squad(12), valid=random_squad(7, seed=1))
