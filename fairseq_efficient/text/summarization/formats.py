"""Readers of summarization data: each yields :class:`Example` or, for a line that cannot be used, :class:`Bad`."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, Example, Line, parse_json, read_lines

_COHAN_TAG = re.compile(r"</?S>")
_GEVAL_ESCAPE = re.compile(r"\\[nt\\]")


def _record(line: Line) -> dict[str, Any] | Bad:
    try:
        record = parse_json(line.text, strict=True)
    except ValueError as err:
        return Bad(line.where, f"not JSON ({getattr(err, 'msg', None) or err})")
    return record if isinstance(record, dict) else Bad(line.where, "not a JSON object")


def _texts(record: dict[str, Any], field: str, where: str) -> tuple[str, ...] | Bad:
    """A field that is a text or a list of texts, as a tuple."""
    if field not in record:
        return Bad(where, f"no field {field!r}; there are {', '.join(sorted(map(repr, record)))[:120] or 'none'}")
    value = record[field]
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    return Bad(where, f"field {field!r} is neither a text nor a list of texts")


T = TypeVar("T")


def read_json_lines(path: Path, build: Callable[[dict[str, Any], str], T | Bad]) -> Iterator[T | Bad]:
    """What ``build`` makes of the object and the place of each line; Bad for a blank line and for what is no object."""
    for line in read_lines(path):
        if isinstance(line, Bad):
            yield line
        elif not line.text.strip():
            yield Bad(line.where, "blank line")
        else:
            record = _record(line)
            yield record if isinstance(record, Bad) else build(record, line.where)


def read_jsonl(path: Path, source_field: str = "document", target_field: str = "abstract") -> Iterator[Example | Bad]:
    """One JSON object a line; fields are texts, or lists of paragraphs (source) and of sentences (target)."""

    def build(record: dict[str, Any], where: str) -> Example | Bad:
        source, target = _texts(record, source_field, where), _texts(record, target_field, where)
        if isinstance(source, Bad):
            return source
        if isinstance(target, Bad):
            return target
        return Example(where, "\n".join(source), target, sentences=isinstance(record[target_field], list))

    return read_json_lines(path, build)


def read_cohan(path: Path) -> Iterator[Example | Bad]:
    """The arXiv and PubMed release of Cohan et al. (2018): lists of sentences, the abstract's between <S> and </S>."""

    def build(record: dict[str, Any], where: str) -> Example | Bad:
        source, target = _texts(record, "article_text", where), _texts(record, "abstract_text", where)
        if isinstance(source, Bad):
            return source
        if isinstance(target, Bad):
            return target
        return Example(where, "\n".join(source), tuple(_COHAN_TAG.sub(" ", part) for part in target), sentences=True)

    return read_json_lines(path, build)


def _pair(source: Line | Bad | None, target: Line | Bad | None) -> Example | Bad:
    assert source is not None and target is not None
    if isinstance(source, Bad):
        return source
    if isinstance(target, Bad):
        return target
    return Example(source.where, source.text, (target.text,), where_target=target.where)


def read_parallel(source_path: Path, target_path: Path) -> Iterator[Example | Bad]:
    """Two text files, one document and one summary a line. UserError if one has more lines than the other."""
    sources, targets = read_lines(source_path), read_lines(target_path)
    for number, (source, target) in enumerate(itertools.zip_longest(sources, targets), start=1):
        if source is None or target is None:
            longer, rest = (source_path, sources) if target is None else (target_path, targets)
            total = number + sum(1 for _ in rest)
            shorter = target_path if target is None else source_path
            raise UserError(f"{longer} has {total:,} lines but {shorter} has {number - 1:,}")
        yield _pair(source, target)


def _geval_file(folder: Path, stem: str) -> Path:
    for suffix in ("", ".xz", ".gz", ".bz2"):
        if (folder / f"{stem}.tsv{suffix}").is_file():
            return folder / f"{stem}.tsv{suffix}"
    raise UserError(f"{folder / stem}.tsv: No such file (nor .xz, .gz, .bz2)")


def geval_files(folder: Path) -> list[Path]:
    """in.tsv and expected.tsv of a split, as they are compressed. UserError if one is not there."""
    return [_geval_file(folder, "in"), _geval_file(folder, "expected")]


def _unescape(text: str) -> str:
    return _GEVAL_ESCAPE.sub(lambda match: "\\" if match.group(0) == "\\\\" else "\n", text)


def read_geval(folder: Path) -> Iterator[Example | Bad]:
    """A split of a GEval challenge: in.tsv and expected.tsv, one document a line, with \\n, \\t and \\\\ escaped."""
    for item in read_parallel(*geval_files(folder)):
        if isinstance(item, Bad):
            yield item
        else:
            target = tuple(map(_unescape, item.target))
            yield Example(item.where, _unescape(item.source), target, where_target=item.where_target)


def geval_splits(folder: Path) -> dict[str, Path]:
    """Splits of a GEval challenge folder: every subfolder that has in.tsv."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    found = {sub.name: sub for sub in sorted(folder.iterdir()) if sub.is_dir() and any(sub.glob("in.tsv*"))}
    if not found:
        raise UserError(f"{folder}: no subfolder with in.tsv")
    return found
