"""SQuAD 1.1 and 2.0: read the JSON, find the answers' tokens, write what the task ``skim_squad`` reads.

DEST/input0/SPLIT.{bin,idx} are questions, DEST/input1/SPLIT.{bin,idx} paragraphs (each once, however many questions it
has) and SPLIT.offsets.{bin,idx} where each of their tokens starts and ends, in characters; input1/SPLIT.jsonl holds
the paragraphs' texts, and label/SPLIT.jsonl the questions: id, number of the paragraph, answers.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import TokenWriter, token_dtype
from fairseq_efficient.text.classification.prepare import TOKENIZER, Options
from fairseq_efficient.text.prepared import package_versions, staging, write_report
from fairseq_efficient.text.reading import Bad, parse_json, read_whole, unusable
from fairseq_efficient.text.subwords import (
    Subwords,
    dictionary_beside,
    dictionary_text,
    find_tokenizer,
    read_subwords,
)
from fairseq_efficient.text.symbols import SPECIALS, UNK

_BATCH = 500  # texts encoded at a time
_SHOWN = 20


@dataclass(frozen=True)
class Question:
    """``answers`` are (text, first character in the paragraph); those whose offset is wrong are not ``usable``."""

    where: str
    id: str
    text: str
    paragraph: int
    answers: tuple[tuple[str, int], ...]
    usable: tuple[bool, ...]
    impossible: bool


@dataclass
class Squad:
    """A split: paragraphs, the questions about them, and what is wrong with either."""

    paragraphs: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)  # questions that cannot be used
    mismatched: list[Bad] = field(default_factory=list)  # answers whose offset is not where their text is
    version2: bool = False

    def answerable(self) -> "Squad":
        """SQuAD 2.0 as 1.1: without the questions that have no answer, and paragraphs that nothing else asks about."""
        questions = [one for one in self.questions if not one.impossible]
        numbers = {old: new for new, old in enumerate(sorted({one.paragraph for one in questions}))}
        questions = [replace(one, paragraph=numbers[one.paragraph]) for one in questions]
        paragraphs = [self.paragraphs[old] for old in numbers]
        return replace(self, paragraphs=paragraphs, questions=questions, version2=False)


def _load(path: Path) -> Any:
    raw = read_whole(path)
    try:
        return parse_json(raw.decode("utf-8-sig"), strict=True)
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: not UTF-8 (byte {raw[err.start]:#04x} at offset {err.start})") from None
    except ValueError as err:
        place = f":{err.lineno}" if isinstance(err, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: not JSON ({getattr(err, 'msg', None) or err})") from None


def _member(holder: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(holder, dict) or not isinstance(holder.get(name), kind):
        raise UserError(f"{where}: no {name!r} that is a {kind.__name__}: not the layout of SQuAD")
    return holder[name]


def read_squad(path: Path) -> Squad:
    """The questions of a SQuAD file (plain or compressed).

    Raises:
        UserError: not UTF-8, not JSON, or not laid out as SQuAD is, with the place inside the file.
    """
    found, seen = Squad(), set[str]()
    for number, article in enumerate(_member(_load(path), "data", list, str(path))):
        place = f"{path}: data[{number}]"
        for inner, paragraph in enumerate(_member(article, "paragraphs", list, place)):
            where = f"{place}.paragraphs[{inner}]"
            context = _member(paragraph, "context", str, where)
            found.paragraphs.append(context)
            for last, one in enumerate(_member(paragraph, "qas", list, where)):
                question = _question(one, f"{where}.qas[{last}]", found, context)
                if isinstance(question, Bad):
                    found.bad.append(question)
                elif question.id in seen:
                    found.bad.append(Bad(question.where, f"question {question.id} is there twice"))
                else:
                    seen.add(question.id)
                    found.questions.append(question)
    found.version2 = any(question.impossible for question in found.questions)
    return found


def _question(one: Any, where: str, found: Squad, context: str) -> Question | Bad:
    text = _member(one, "question", str, where)
    name = str(one.get("id", ""))
    if not name:
        return Bad(where, "no 'id'")
    impossible = bool(one.get("is_impossible", False))
    why = unusable(text) or unusable(context) or unusable(name)
    if why is not None:
        return Bad(where, f"question {name.encode('ascii', 'backslashreplace').decode()}: {why}")
    answers, usable = [], []
    for place, answer in enumerate(_member(one, "answers", list, where) if one.get("answers") is not None else ()):
        at = f"{where}.answers[{place}]"
        words, start = _member(answer, "text", str, at), _member(answer, "answer_start", int, at)
        if (why := unusable(words)) is not None:
            return Bad(at, f"question {name}: {why}")
        matches = bool(words.strip()) and start >= 0 and context[start : start + len(words)] == words
        if not matches:
            there = context[max(start, 0) : max(start, 0) + len(words)]
            said = f"question {name}: answer {words[:60]!r} is not at character {start}, where {there[:60]!r} is"
            found.mismatched.append(Bad(at, said))
        answers.append((words, start))
        usable.append(matches)
    if not text.strip() or not context.strip():
        return Bad(where, f"question {name}: empty {'question' if not text.strip() else 'paragraph'}")
    if not answers and not impossible and "answers" in one:
        return Bad(where, f"question {name}: neither an answer nor is_impossible")
    return Question(where, name, text, len(found.paragraphs) - 1, tuple(answers), tuple(usable), impossible)


# --- writing -------------------------------------------------------------------------------------------------------


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _write_questions(
    texts: list[str], prefix: Path, subwords: Subwords, table: np.ndarray, dtype: Any, bar: Any
) -> tuple[int, int]:
    """Tokens and unknown ones."""
    tokens = unknown = 0
    with TokenWriter(prefix, dtype) as writer:
        for batch in _batches(texts):
            for ids in subwords.encode_ids(batch):
                row = table[ids].astype(dtype)
                tokens, unknown = tokens + len(row), unknown + int(np.count_nonzero(row == UNK))
                writer.add(row)
            bar.update(len(batch))
    return tokens, unknown


def _write_paragraphs(
    texts: list[str], prefix: Path, subwords: Subwords, table: np.ndarray, dtype: Any, bar: Any
) -> tuple[int, int]:
    """As :func:`_write_questions`, and the offsets beside them."""
    tokens = unknown = 0
    places = TokenWriter(prefix.with_name(f"{prefix.name}.offsets"), np.dtype(np.int32))
    with TokenWriter(prefix, dtype) as writer, places:
        for batch in _batches(texts):
            for ids, offsets in subwords.encode_offsets(batch):
                row = table[ids].astype(dtype)
                tokens, unknown = tokens + len(row), unknown + int(np.count_nonzero(row == UNK))
                writer.add(row)
                places.add(offsets.astype(np.int32).reshape(-1))
            bar.update(len(batch))
    return tokens, unknown


def _lines(path: Path, records: Any) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _check(name: str, squad: Squad, options: Options) -> None:
    """Say what is wrong with a split: bad questions stop the run or are dropped, answers that do not match are told."""
    if squad.bad and not options.skip_bad:
        raise squad.bad[0].error()
    for word, found in (("dropped", squad.bad), ("answer not used", squad.mismatched)):
        for bad in found[:_SHOWN] if word == "dropped" else found:
            print(f"{word}: {bad.where}: {bad.why}")
    if not squad.questions:
        raise UserError(f"split {name}: no questions" + (f" ({len(squad.bad):,} dropped)" if squad.bad else ""))


def prepare_squad(files: dict[str, Path], options: Options) -> dict[str, Any]:
    """Write SQuAD files as the splits of their names; returns the report (also in prepare.json).

    Raises UserError for a tokenizer that is not the dictionary's, a file that is not SQuAD, and, unless ``skip_bad``,
    for the first question that cannot be used. Answers whose offsets do not match are reported, kept as texts to
    score against, and not trained on.
    """
    subwords = read_subwords(options.tokenizer, options.cased)
    symbols, content = dictionary_beside(options.tokenizer, subwords, options.dict_file)
    content = content or dictionary_text(symbols).encode()
    table = subwords.table(symbols, str(options.dict_file or find_tokenizer(options.tokenizer).with_name("dict.txt")))
    dtype = token_dtype(len(symbols) + len(SPECIALS) + 1)
    separator = subwords.kind != "WordPiece" if options.separator is None else options.separator
    described: dict[str, Any] = {}
    with staging(options.destination) as out, contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc="encoding", unit=" texts", disable=None, mininterval=0.5))
        for folder in ("input0", "input1", "label"):
            (out / folder).mkdir()
        for name, path in files.items():
            squad = read_squad(path)
            _check(name, squad, options)
            kept = squad.answerable() if options.answerable_only else squad
            if not kept.questions:
                raise UserError(f"--answerable-only: split {name} has no question with an answer")
            described[name] = _write_split(name, kept, out, subwords, (table, dtype, bar))
            described[name]["left_out"] = len(squad.questions) - len(kept.questions)
        for folder in ("input0", "input1"):
            (out / folder / "dict.txt").write_bytes(content)
        (out / TOKENIZER).write_text(subwords.to_json(), encoding="utf-8")
        report = {
            "types": len(symbols) + len(SPECIALS) + 1,
            "tokenizer": subwords.kind,
            "squad": True,
            "version2": any(split["impossible"] for split in described.values()),
            "separator": separator,
            "flags": "--task skim_squad" + (" --separator-token 2" if separator else ""),
            "splits": described,
            "versions": package_versions(),
            "options": options.fingerprint(),
        }
        return write_report(out, report)


def _write_split(name: str, squad: Squad, out: Path, subwords: Subwords, how: Any) -> dict[str, int]:
    questions = _write_questions([one.text for one in squad.questions], out / "input0" / name, subwords, *how)
    paragraphs = _write_paragraphs(squad.paragraphs, out / "input1" / name, subwords, *how)
    _lines(out / "input1" / f"{name}.jsonl", squad.paragraphs)
    skipped = {"where", "text"}
    _lines(
        out / "label" / f"{name}.jsonl",
        ({key: value for key, value in asdict(one).items() if key not in skipped} for one in squad.questions),
    )
    lost = sum(bool(one.answers) and not any(one.usable) for one in squad.questions)
    return {
        "documents": len(squad.questions),
        "paragraphs": len(squad.paragraphs),
        "impossible": sum(one.impossible for one in squad.questions),
        "dropped": len(squad.bad),
        "mismatched_answers": len(squad.mismatched),
        "questions_without_usable_answer": lost,
        "tokens": questions[0] + paragraphs[0],
        "unknown": questions[1] + paragraphs[1],
    }
