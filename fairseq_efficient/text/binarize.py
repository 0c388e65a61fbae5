"""Fairseq's memory-mapped token files, written as a stream without importing fairseq."""

import array
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from fairseq_efficient.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")

_MAGIC = b"MMIDIDX\x00\x00"
_CODES = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
_LONGEST = np.iinfo(np.int32).max  # fairseq's index holds sizes as int32
_AHEAD = 16  # items of a pool in flight


def token_dtype(types: int) -> np.dtype:
    """The smallest integer fairseq uses for a dictionary of this size."""
    return np.dtype(np.uint16) if types < 65500 else np.dtype(np.int32)


class TokenWriter:
    """Writes ``PREFIX.bin`` item by item, or in blocks of any size, and ``PREFIX.idx`` on leaving the context."""

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix, self.dtype = prefix, dtype
        self.sizes = array.array("i")
        self._open = 0  # tokens of the item that has not ended

    def __enter__(self) -> "TokenWriter":
        self._file = open(f"{self.prefix}.bin", "wb")
        return self

    def add(self, tokens: np.ndarray) -> None:
        """Append one item, 1-D integers of the writer's dtype, EOS included."""
        self.extend(tokens, np.array([len(tokens)]))

    def extend(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Append a block of tokens; items end before the positions ``ends`` of it (ascending, at most its length).

        What follows the last end belongs to an item that later blocks continue. UserError for an item of 2**31 tokens.
        """
        if tokens.dtype != self.dtype:
            raise TypeError(f"{tokens.dtype} given, {self.dtype} expected")
        self._file.write(tokens.tobytes())
        sizes = np.diff(ends, prepend=0, append=len(tokens))
        sizes[0] += self._open
        if sizes[0] > _LONGEST:
            raise UserError(f"{self.prefix.name}: a document of more than {_LONGEST:,} tokens; cut it into several")
        self.sizes.frombytes(sizes[:-1].astype(np.int32).tobytes())
        self._open = int(sizes[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            return
        if self._open:
            raise ValueError(f"{self.prefix}: the last item has not ended")
        sizes = np.frombuffer(self.sizes, dtype=np.int32) if len(self.sizes) else np.zeros(0, np.int32)
        ends = np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
        pointers = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
        with open(f"{self.prefix}.idx", "wb") as index:
            index.write(_MAGIC + struct.pack("<QBQ", 1, _CODES[self.dtype], len(sizes)))
            index.write(sizes.tobytes() + pointers.tobytes())


def bounded_map(pool: Executor | None, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """``map`` over a pool, in order, never more than 16 items in flight; without a pool, plain ``map``.

    Raises:
        ChildProcessError: a process of the pool was killed.
    """
    if pool is None:
        yield from map(work, items)
        return
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker process ended (killed for its memory?): try fewer --workers") from None


def batched(items: Iterable[In], characters: int, size_of: Callable[[In], int]) -> Iterator[list[In]]:
    """Lists of items of at least ``characters`` characters together (the last may be smaller)."""
    batch: list[In] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size_of(item)
        if total >= characters:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
