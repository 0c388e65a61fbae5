"""Text of any length as a stream of blocks, with the place of every mistake.

A text block is a ``str`` in which :data:`END` (NUL, which no text may contain) ends a document; a document may run over
any number of blocks and is never empty. A raw block is ``bytes``; all raw blocks of a split are one document.
"""

import codecs
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import open_binary

END = "\0"
FORMATS = ("text", "text8", "wiki40b", "raw")
BLOCK = 2**19  # bytes read at a time
CUTS = {"train": 90, "valid": 95, "test": 100}  # per cent of the file where --cut ends a split

Tell = Callable[[int], object]  # told how much was read, or how many documents were dropped
_BOM = b"\xef\xbb\xbf"
_ENDS = re.compile(f"{END}{{2,}}")


def ignore(_: int) -> None:
    """Tell nobody."""


# --- bytes and characters ------------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    """Like open_binary, and the only member of a .zip (as text8 and enwik8 are published)."""
    if path.suffix != ".zip":
        return open_binary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.namelist()) != 1:
                raise UserError(f"{path}: holds {len(archive.namelist())} files; unpack the one that is meant")
            return cast(BinaryIO, archive.open(archive.namelist()[0]))
    except (OSError, RuntimeError, zipfile.BadZipFile) as err:
        raise UserError(f"{path}: {getattr(err, 'strerror', None) or err}") from None


def raw_blocks(path: Path, watch: Tell = ignore, size: int = BLOCK) -> Iterator[bytes]:
    """The bytes of a plain, .gz, .xz, .bz2 or .zip file; ``watch`` is told the size of each block.

    UserError if the file is missing or a broken archive.
    """
    done = 0
    with _open(path) as stream:
        try:
            while block := stream.read(size):
                done += len(block)
                watch(len(block))
                yield block
        except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as err:
            raise UserError(f"{path}: broken after byte {done:,}: {err}") from None


class _Place:
    """Where a block begins: bytes and lines before it."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.line = path, 0, 1

    def passed(self, data: bytes) -> None:
        self.offset += len(data)
        self.line += data.count(b"\n")

    def error(self, data: bytes, index: int, why: str) -> UserError:
        line = self.line + data.count(b"\n", 0, index)
        return UserError(f"{self.path}:{line}: {why} (byte offset {self.offset + index:,})")

    def decode(self, data: bytes, final: bool) -> tuple[str, int]:
        """Text of the whole characters, and how many bytes they are."""
        nul = data.find(b"\0")
        if nul >= 0:
            raise self.error(data, nul, "contains a NUL character")
        try:
            return codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as err:
            raise self.error(data, err.start, f"not UTF-8 (byte {data[err.start]:#04x})") from None


def decoded_blocks(path: Path, watch: Tell = ignore, size: int = BLOCK) -> Iterator[str]:
    """The text of a UTF-8 file without a leading BOM; UserError with line and byte offset for NUL and bad UTF-8."""
    place, rest = _Place(path), b""
    for number, block in enumerate(raw_blocks(path, watch, max(size, len(_BOM)))):
        data = rest + block
        if number == 0 and data.startswith(_BOM):
            place.passed(_BOM)
            data = data[len(_BOM) :]
        text, used = place.decode(data, final=False)
        yield text
        place.passed(data[:used])
        rest = data[used:]
    place.decode(rest, final=True)


def without_cr(blocks: Iterable[str]) -> Iterator[str]:
    """CRLF as LF, also where a block ends between the two."""
    held = ""
    for block in blocks:
        block = held + block
        held = "\r" if block.endswith("\r") else ""
        yield block.removesuffix(held).replace("\r\n", "\n")
    yield held


# --- documents -----------------------------------------------------------------------------------------------------


class Joiner:
    """Blocks with ENDs anywhere -> blocks without empty documents, of which ``dropped`` is told."""

    def __init__(self, dropped: Tell) -> None:
        self.dropped, self.inside = dropped, False

    def add(self, block: str) -> str:
        before = block.count(END)
        if not self.inside:
            block = block.lstrip(END)
        block = _ENDS.sub(END, block)
        self.dropped(before - block.count(END))
        if block:
            self.inside = not block.endswith(END)
        return block

    def close(self) -> str:
        """What must follow the last block: an END if a document is open."""
        last, self.inside = END if self.inside else "", False
        return last


def _joined(blocks: Iterable[str], dropped: Tell) -> Iterator[str]:
    joiner = Joiner(dropped)
    for block in blocks:
        yield joiner.add(block)
    yield joiner.close()


def line_documents(blocks: Iterable[str], dropped: Tell = ignore) -> Iterator[str]:
    """Each line is a document; of empty lines ``dropped`` is told."""
    return _joined((block.replace("\n", END) for block in blocks), dropped)


def one_document(blocks: Iterable[str], dropped: Tell = ignore) -> Iterator[str]:
    """The whole is one document; line ends at its very end are not part of it."""

    def held_back() -> Iterator[str]:
        ends = 0
        for block in blocks:
            body = block.rstrip("\n")
            if body:
                yield "\n" * ends + body
                ends = 0
            ends += len(block) - len(body)

    return _joined(held_back(), dropped)


_MARKERS = re.compile(r"(?:\n*_(?:START_ARTICLE|START_SECTION|START_PARAGRAPH|NEWLINE)_\n*)+")
_LONGEST_HELD = 2**12  # characters of markers and line ends in a row
_IN_MARKERS = "_\nABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _marker(match: re.Match[str]) -> str:
    return END if "_START_ARTICLE_" in match.group() else "\n"


def wiki40b_documents(blocks: Iterable[str], name: str, dropped: Tell = ignore) -> Iterator[str]:
    """Articles of Wiki-40B: each ``_START_ARTICLE_`` begins a document; the other markers are newlines.

    UserError, naming the file, if there is no such marker at all.
    """

    def articles() -> Iterator[str]:
        rest, begun, found = "", False, False
        for block in _and_none(blocks):
            text = rest.rstrip("\n") if block is None else rest + block
            safe = len(text) if block is None else _before_markers(text)
            ready, rest = _MARKERS.sub(_marker, text[:safe]), text[safe:]
            found = found or END in ready
            if ready and not begun:  # what the first marker ends is not a document
                ready, begun = ready.removeprefix(END).lstrip("\n"), True
            yield ready.rstrip("\n") if block is None else ready
        if not found:
            raise UserError(f"{name}: no _START_ARTICLE_ marker: not --format wiki40b")

    return _joined(articles(), dropped)


def _before_markers(text: str) -> int:
    """Where what may be the beginning of a marker starts, at the end of a text: not far, or it is no marker."""
    far = max(len(text) - _LONGEST_HELD, 0)
    return far + len(text[far:].rstrip(_IN_MARKERS))


def _and_none(blocks: Iterable[str]) -> Iterator[str | None]:
    yield from blocks
    yield None


def read_text(path: Path, form: str, dropped: Tell = ignore, watch: Tell = ignore, size: int = BLOCK) -> Iterator[str]:
    """Text blocks of a file in one of :data:`FORMATS`."""
    blocks = decoded_blocks(path, watch, size)
    if form == "raw":
        return _joined(blocks, dropped)
    if form == "wiki40b":
        return wiki40b_documents(without_cr(blocks), str(path), dropped)
    shaped = {"text": line_documents, "text8": one_document}[form]
    return shaped(without_cr(blocks), dropped)


# --- one file cut into three ---------------------------------------------------------------------------------------


def cut_blocks(path: Path, raw: bool, watch: Tell = ignore, size: int = BLOCK) -> Iterator[tuple[str, str | bytes]]:
    """(split, block) of one file cut at exactly 90 % and 95 % of its characters (``raw``: of its bytes).

    The file is read twice, first to count. Of a text, line ends at the very end do not count.
    """

    def blocks(watch: Tell) -> Iterator[str | bytes]:
        if raw:
            return raw_blocks(path, watch, size)
        return one_document(without_cr(decoded_blocks(path, watch, size)))

    total = max(sum(map(len, blocks(watch))) - (0 if raw else 1), 0)
    ends = {name: total * share // 100 for name, share in CUTS.items()}
    if not 0 < ends["train"] < ends["valid"] < total:
        raise UserError(f"--cut {path}: {total:,} {'bytes' if raw else 'characters'} are too few to cut 90/5/5")
    done = 0
    for block in blocks(watch):
        start = 0
        for name, end in ends.items():
            part = block[start : max(end - done, 0)]
            if part:
                yield name, part
                start += len(part)
                if done + start == end and not raw:
                    yield name, END
        done += len(block)
