"""One thread, fixed seeds, and data sets that all tests share."""

import gc
import importlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import tests.quick  # noqa: F401  (makes fairseq's commands start sooner)
from fairseq_efficient.compat.libraries import NOISE
from tests.made_data import make_pair_data, make_sentence_data, make_stream_data
from tests.reliability import figures
from tests.reliability.figures import figure, pytest_addoption  # noqa: F401

settings.register_profile("full", max_examples=2000, deadline=None)
# files, by how long they take
LONGEST = (
    "test_readmes", "test_resume", "test_ranks", "test_saving", "test_mistakes", "test_soak", "test_cli",
    "test_dense_relatives", "test_squad_cli",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for message in NOISE:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
    figures.pytest_configure(config)
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None) is None:
        logging.disable(logging.INFO)  # of packages that are not installed
        for tool in ("interactive", "train"):  # before any of ours, as when a command is typed
            importlib.import_module(f"fairseq_cli.{tool}")
        logging.disable(logging.NOTSET)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no worker is left alone with one of them."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """What stays to the end is not looked at by every whole garbage collection: that took a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same seeds and leaves no default dtype or grad mode behind."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with torch.enable_grad():
        yield


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny binarised src-tgt data set: 40 sentence pairs to train on, 12 each in valid and test."""
    return make_pair_data(tmp_path_factory.mktemp("pair_data"))


@pytest.fixture(scope="session")
def stream_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny character data: 640 characters to train on, 200 each in valid and test, with boundaries."""
    return make_stream_data(tmp_path_factory.mktemp("stream_data"))


@pytest.fixture(scope="session")
def sentence_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny binarised sentences of two classes: 40 to train on, 16 each in valid and test."""
    return make_sentence_data(tmp_path_factory.mktemp("sentence_data"))


@pytest.fixture(scope="session")
def datasets(pair_data: Path, stream_data: Path, sentence_data: Path) -> dict[str, Path]:
    """The data set of each kind that ``System.data`` names."""
    streams = dict.fromkeys(("stream", "segments", "search", "spans"), stream_data)
    return {"pairs": pair_data, "sentences": sentence_data, **streams}
