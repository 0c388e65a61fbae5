"""References and hypotheses read back from what ``fairseq-generate`` printed."""

import itertools
import re
from pathlib import Path

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, read_lines

_LINE = re.compile(r"([THD])-(\d{1,9})\t(.*)", re.DOTALL)
_TRANSLATED = re.compile(r"Translated (\d[\d,]{0,14}) sentences")


def _take(found: dict[str, dict[int, str]], text: str, where: str) -> None:
    match = _LINE.match(text)
    if match is None:
        return
    kind, number = match.group(1), int(match.group(2))
    if kind == "T":
        if number in found["T"]:
            raise UserError(f"{where}: T-{number} is there twice (two runs in one log?)")
        found["T"][number] = match.group(3)
    else:  # the first of several (--nbest) is the best one
        _, tab, words = match.group(3).partition("\t")
        if not tab:
            raise UserError(f"{where}: {kind}-{number} has no score")
        found[kind].setdefault(number, words)


def read_generate_log(path: Path) -> tuple[list[str], list[str]]:
    """(references, hypotheses) in the order of the data: T- lines, and D- lines or, without any, H- lines.

    UserError if a line of the data is missing from either, or there are no T- lines.
    """
    found: dict[str, dict[int, str]] = {"T": {}, "D": {}, "H": {}}
    translated: int | None = None
    for line in read_lines(path):
        if isinstance(line, Bad):
            raise line.error()
        _take(found, line.text, line.where)
        summary = _TRANSLATED.search(line.text)
        translated = int(summary.group(1).replace(",", "")) if summary else translated
    references, hypotheses = found["T"], found["D"] or found["H"]
    if not references:
        raise UserError(f"{path}: no T- lines: not a log of fairseq-generate, or the data has no summaries")
    for kind, numbers in (("T", set(references)), ("D" if found["D"] else "H", set(hypotheses))):
        total = max(max(references), max(hypotheses, default=-1)) + 1
        if len(numbers) < total:
            first = next(place for place in itertools.count() if place not in numbers)
            raise UserError(
                f"{path}: {total - len(numbers):,} of {total:,} {kind}- lines are missing, first {kind}-{first}"
            )
    if translated not in (None, len(references)):
        raise UserError(f"{path}: says {translated:,} sentences were translated, but has {len(references):,}")
    return [references[i] for i in sorted(references)], [hypotheses[i] for i in sorted(hypotheses)]


def read_texts(path: Path) -> list[str]:
    """A text file's lines; blank ones count. UserError naming the line for what is not UTF-8."""
    texts: list[str] = []
    for line in read_lines(path):
        if isinstance(line, Bad):
            raise line.error()
        texts.append(line.text)
    return texts
