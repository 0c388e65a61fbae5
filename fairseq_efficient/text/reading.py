"""Reading text that strangers wrote: bounded lines, strict UTF-8, and the place of every mistake."""

import bz2
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fairseq_efficient.errors import UserError

MAX_LINE_BYTES = 64 * 2**20
MAX_FILE_BYTES = 256 * 2**20  # of a file that is read whole, unpacked
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what reading a damaged archive raises
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class Example:
    """One document and its summary. ``target`` holds parts of it; ``sentences`` says that each part is a sentence."""

    where: str
    source: str
    target: tuple[str, ...]
    sentences: bool = False
    where_target: str = ""  # if the summary comes from another file


@dataclass(frozen=True)
class Bad:
    """A line that cannot be used: where it is and why."""

    where: str
    why: str

    def error(self) -> UserError:
        return UserError(f"{self.where}: {self.why}")


@dataclass(frozen=True)
class Line:
    """``where``: its file and number, for messages."""

    where: str
    text: str


def open_binary(path: Path) -> BinaryIO:
    """Open a plain, .gz, .xz or .bz2 file; UserError if it is missing or unreadable."""
    try:
        return cast(BinaryIO, _OPENERS.get(path.suffix, open)(path, "rb"))
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from None


def decode_line(raw: bytes, where: str) -> Line | Bad:
    """Text of one raw line without its line end; Bad for NUL and for what is not UTF-8."""
    raw = raw.rstrip(b"\r\n")
    if b"\0" in raw:
        return Bad(where, "contains a NUL character")
    try:
        return Line(where, raw.decode("utf-8"))
    except UnicodeDecodeError as err:
        return Bad(where, f"not UTF-8 (byte {raw[err.start]:#04x} at column {err.start + 1})")


def read_lines(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line | Bad]:
    """Lines of a text file, numbered from 1. A leading BOM, CRLF and a missing last line end are fine.

    Raises UserError if the file is missing, a broken archive, or has a line of more than ``max_bytes``.
    """
    number = 0
    with open_binary(path) as stream:
        try:
            for number, line in enumerate(decoded(stream, f"{path}:", max_bytes), start=1):  # noqa: B007
                yield line
        except BROKEN as err:
            raise UserError(f"{path}: broken after line {number}: {err}") from None


def decoded(stream: Any, where: str, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line | Bad]:
    """Lines of a binary stream, each as soon as it is there; ``where``: what stands before their numbers.

    Raises UserError for a line of more than ``max_bytes``.
    """
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        if len(raw) > max_bytes:
            raise UserError(f"{where}{number}: the line is longer than {max_bytes / 2**20:.0f} MB")
        yield decode_line(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, f"{where}{number}")


def read_typed() -> Iterator[Line | Bad]:
    """Lines of the standard input, each as soon as it is there. UserError for one that is too long."""
    return decoded(sys.stdin.buffer, "standard input, line ")


def read_whole(path: Path) -> bytes:
    """A plain, .gz, .xz or .bz2 file. UserError if it is missing, broken, or unpacks to more than MAX_FILE_BYTES."""
    with open_binary(path) as stream:
        try:
            raw = stream.read(MAX_FILE_BYTES + 1)
        except BROKEN as err:
            raise UserError(f"{path}: broken: {err}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES / 2**20:.0f} MB unpacked")
    return raw


def parse_json(text: str | bytes, strict: bool = False) -> Any:
    """``json.loads``; ValueError also for what is nested too deep for it, and, if ``strict``, for what JSON does not
    have (NaN, Infinity) and for a key that is there twice, of which one would be lost."""
    try:
        if strict:
            return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once)
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def unusable(text: str) -> str | None:
    """Why a text from JSON is none that a text file could hold; None if it is one."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    return None
