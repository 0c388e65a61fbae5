"""Readers of labelled texts: each yields :class:`Labelled` or, for a line or file that cannot be used, :class:`Bad`."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import BROKEN, MAX_LINE_BYTES, Bad, open_binary, read_lines
from fairseq_efficient.text.summarization.formats import read_json_lines

FORMATS = ("tsv", "csv", "jsonl", "yelp", "squad")
_ESCAPE = re.compile(r'\\[n"\\]')
_HTML_BREAK = re.compile(r"(?:(?<!\s)\s++)?+(?:<br\s*+/?>\s*+)++", re.IGNORECASE)


@dataclass(frozen=True)
class Labelled:
    """One text, or two that belong together, and its label as it is written (None: there is none)."""

    where: str
    texts: tuple[str, ...]
    label: str | None


Item = tuple[str, Labelled | Bad]  # split and text


@dataclass(frozen=True)
class Fields:
    """Which columns of a table, or fields of a JSON object: names, or numbers from 1 if there is no header."""

    texts: tuple[str, ...]
    label: str
    header: bool = True


# --- tables --------------------------------------------------------------------------------------------------------

Row = tuple[str, list[str]]  # where, columns


def tsv_rows(path: Path) -> Iterator[Row | Bad]:
    """Columns between tabs, as they are: quotation marks are text."""
    for line in read_lines(path):
        yield line if isinstance(line, Bad) else (line.where, line.text.split("\t"))


def quoted_rows(path: Path, delimiter: str = ",") -> Iterator[Row | Bad]:
    """Columns that may be quoted (RFC 4180) and then hold delimiters, line ends and doubled quotation marks.

    UserError, naming the line where the row began, for quotation marks that do not match: what follows cannot be read.
    """
    bad: list[Bad] = []
    number = start = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(read_lines(path), start=1):  # noqa: B007 - read outside
            if isinstance(line, Bad):
                bad.append(line)
            else:
                yield f"{line.text}\n"

    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        for row in csv.reader(lines(), delimiter=delimiter, strict=True):
            yield from bad
            bad.clear()
            yield f"{path}:{start + 1}", row
            start = number
        yield from bad
    except csv.Error as err:
        raise UserError(f"{path}:{start + 1}: quotation marks do not match ({err})") from None
    finally:
        csv.field_size_limit(before)


def _places(fields: Fields, header: Sequence[str], path: Path) -> tuple[list[int], int | None]:
    """Column numbers of the texts and of the label; a label column that is not there is None."""
    names = [name.strip() for name in header]
    if not fields.header:
        names = [str(number) for number in range(1, len(header) + 1)]
    kind = "column" if fields.header else "column number"
    for name in fields.texts:
        if name not in names:
            raise UserError(f"{path}:1: no {kind} {name!r}; there are {', '.join(map(repr, names))[:200]}")
    return [names.index(name) for name in fields.texts], names.index(fields.label) if fields.label in names else None


def read_table(
    path: Path, rows: Iterator[Row | Bad], fields: Fields, change: Callable[[str], str] = str
) -> Iterator[Labelled | Bad]:
    """Texts and labels of a table; Bad for a row whose number of columns is not that of the first.

    A table without the label's column is one without labels (the test sets of GLUE). UserError if a text's column is
    missing, or the file is empty.
    """
    places: list[int] | None = None
    label: int | None = None
    width = 0
    for row in rows:
        if isinstance(row, Bad):
            yield row
            continue
        where, columns = row
        if places is None:
            places, label = _places(fields, columns, path)
            width = len(columns)
            if fields.header:
                continue
        if not any(column.strip() for column in columns):
            yield Bad(where, "blank line")
        elif len(columns) != width:
            yield Bad(where, f"{len(columns)} columns, expected {width}")
        else:
            texts = tuple(change(columns[place]) for place in places)
            yield Labelled(where, texts, None if label is None else columns[label].strip())
    if places is None:
        raise UserError(f"{path}: holds no line" + (" of columns' names" if fields.header else ""))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[0] == "\\n" else match[0][1], text)


def read_yelp(path: Path) -> Iterator[Labelled | Bad]:
    """The reviews of Zhang et al. (2015): quoted columns class (from 1) and text, whose line ends are ``\\n``."""
    return read_table(path, quoted_rows(path), Fields(("2",), "1", header=False), _unescape)


def read_jsonl(path: Path, fields: Fields) -> Iterator[Labelled | Bad]:
    """One JSON object a line; texts are strings, a label is a string, a number, a truth value or null."""

    def build(record: dict[str, Any], where: str) -> Any:
        texts = []
        for name in fields.texts:
            if name not in record:
                known = ", ".join(sorted(map(repr, record)))[:120]
                return Bad(where, f"no field {name!r}; there are {known or 'none'}")
            if not isinstance(record[name], str):
                return Bad(where, f"field {name!r} is not a text")
            texts.append(record[name])
        label = record.get(fields.label)
        if isinstance(label, (list, dict)):
            return Bad(where, f"field {fields.label!r} is not a label")
        label = int(label) if isinstance(label, bool) else label
        return Labelled(where, tuple(texts), None if label is None else str(label).strip())

    return read_json_lines(path, build)


def read_split(path: Path, form: str, fields: Fields, quoted: bool = False) -> Iterator[Labelled | Bad]:
    """A file in one of :data:`FORMATS` (squad is read by :mod:`fairseq_efficient.text.squad.prepare`)."""
    if form == "yelp":
        return read_yelp(path)
    if form == "jsonl":
        return read_jsonl(path, fields)
    if form == "csv" or quoted:
        return read_table(path, quoted_rows(path, "," if form == "csv" else "\t"), fields)
    return read_table(path, tsv_rows(path), fields)


# --- a file a text, a folder a class -------------------------------------------------------------------------------


def _read_text(path: Path, encoding: str) -> str | Bad:
    with open_binary(path) as stream:
        try:
            raw = stream.read(MAX_LINE_BYTES + 1)
        except BROKEN as err:
            return Bad(str(path), f"broken: {err}")
    if len(raw) > MAX_LINE_BYTES:
        return Bad(str(path), f"longer than {MAX_LINE_BYTES / 2**20:.0f} MB")
    if b"\0" in raw:
        return Bad(str(path), "contains a NUL character")
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except UnicodeDecodeError as err:
        return Bad(str(path), f"not UTF-8 (byte {raw[err.start]:#04x} at offset {err.start})")


def _number_first(path: Path) -> tuple[int, str]:
    digits = re.match(r"\d+", path.name)
    return int(digits[0]) if digits else -1, path.name


def read_folders(
    folder: Path, classes: Sequence[str], change: Callable[[str], str] = str, encoding: str = "utf-8"
) -> Iterator[Labelled | Bad]:
    """``FOLDER/CLASS/FILE``: each file is a text. Classes in turn, so that no place of the data holds only one."""
    files = [sorted((one for one in (folder / name).iterdir() if one.is_file()), key=_number_first) for name in classes]
    for place in range(max(map(len, files))):
        for name, paths in zip(classes, files, strict=True):
            if place < len(paths):
                text = _read_text(paths[place], encoding)
                yield text if isinstance(text, Bad) else Labelled(str(paths[place]), (change(text),), name)


def _class_folders(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def imdb_splits(folder: Path) -> dict[str, Path]:
    """Folders with ``pos`` and ``neg`` inside: ``train`` and ``test`` of aclImdb, or the folder itself as ``train``.

    UserError if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"--imdb {folder}: not a folder")
    candidates = {"train": folder / "train", "test": folder / "test"}
    found = {name: path for name, path in candidates.items() if (path / "pos").is_dir() and (path / "neg").is_dir()}
    if not found and (folder / "pos").is_dir() and (folder / "neg").is_dir():
        found = {"train": folder}
    if not found:
        raise UserError(f"--imdb {folder}: no train/pos, train/neg (or pos, neg) inside")
    return found


def read_imdb(folder: Path) -> Iterator[Labelled | Bad]:
    """Reviews in ``neg`` and ``pos``; HTML line breaks become spaces. ``unsup`` has no labels and is not read."""
    return read_folders(folder, ("neg", "pos"), lambda text: _HTML_BREAK.sub(" ", text))


def newsgroup_splits(folder: Path) -> dict[str, Path]:
    """``20news-bydate-train`` and ``-test`` inside, or the folder itself as ``train``; UserError without classes."""
    if not folder.is_dir():
        raise UserError(f"--newsgroups {folder}: not a folder")
    found = {name: folder / f"20news-bydate-{name}" for name in ("train", "test")}
    found = {name: path for name, path in found.items() if path.is_dir()} or {"train": folder}
    for path in found.values():
        if len(_class_folders(path)) < 2:
            raise UserError(f"--newsgroups {path}: no folders of newsgroups inside")
    return found


def without_headers(message: str) -> str:
    """A message of Usenet: its subject and its body. The other headers name the group, or who writes in it."""
    headers, _, body = message.replace("\r\n", "\n").partition("\n\n")
    subject = re.search(r"^Subject: *(.*)$", headers, re.MULTILINE | re.IGNORECASE)
    return f"{subject[1] if subject else ''}\n{body}".strip()


def read_newsgroups(folder: Path) -> Iterator[Labelled | Bad]:
    """Messages in folders of newsgroups (ISO 8859-1, as they were sent)."""
    return read_folders(folder, _class_folders(folder), without_headers, encoding="iso-8859-1")
