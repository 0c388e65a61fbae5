"""From labelled texts to what fairseq's ``sentence_prediction`` reads: encode, cut, hold out, write.

DEST/{input0,input1,label}/SPLIT.{bin,idx}, each folder with its dict.txt; class ``i`` is the label symbol ``i``, as
fairseq's F1 and correlation want it, and its name stands in prepare.json. Scores are text, in label/SPLIT.label.
"""

import array
import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import TokenWriter, batched, token_dtype
from fairseq_efficient.text.classification.labels import Labels
from fairseq_efficient.text.classification.read import Item, Labelled
from fairseq_efficient.text.classification.rows import Coder
from fairseq_efficient.text.holdout import split_lines, split_tokens, spread
from fairseq_efficient.text.prepared import package_versions, sha256_or_none, staging, write_report
from fairseq_efficient.text.reading import Bad, parse_json, unusable
from fairseq_efficient.text.subwords import (
    Subwords,
    dictionary_beside,
    dictionary_text,
    find_tokenizer,
    read_subwords,
    train_subwords,
)
from fairseq_efficient.text.symbols import EOS, SPECIALS, UNK

TOKENIZER = "tokenizer.json"
_BATCH = 400_000  # characters encoded at a time
_SHOWN = 20  # dropped lines that are named; all are counted


@dataclass(frozen=True)
class Options:
    """What to make of the texts. ``inputs`` describes where they came from, to recognise an unchanged run."""

    destination: Path
    tokenizer: Path
    types: int | None = None  # train a tokenizer of so many on train; ``tokenizer`` is not read then
    dict_file: Path | None = None
    cased: bool | None = None  # of a vocab.txt
    max_tokens: int = 512  # of the whole row, its special tokens included
    separator: bool | None = None  # whether pairs will get --separator-token; None: unless the tokenizer is WordPiece
    classes: tuple[str, ...] = ()  # none: the labels of train
    regression: bool = False
    top: float | None = None  # scores lie in 0..top and are divided by it
    holdout: tuple[tuple[str, int], ...] = ()
    skip_bad: bool = False
    answerable_only: bool = False  # of SQuAD
    keep_text: bool = False
    by_length: bool = False  # train in order of length, for batches of like length (fairseq-train --no-shuffle)
    overwrite: bool = False
    inputs: dict[str, Any] = field(default_factory=dict)

    def check(self, names: Sequence[str]) -> None:
        """UserError for options that do not go together, or with these splits."""
        held = [name for name, _ in self.holdout]
        positions = self.model_positions() or self.max_tokens
        for wrong, why in (
            (self.types is not None and "train" not in names, "--vocab-size: there is no split named train"),
            (self.types is not None and self.dict_file, "--vocab-size: makes the dictionary, so --dict has no use"),
            (self.max_tokens < 8, f"--max-tokens {self.max_tokens}: must be at least 8"),
            (self.max_tokens > positions, f"--max-tokens {self.max_tokens}: the tokenizer's model reads {positions}"),
            (self.regression and self.classes, "--labels: there are none with --regression"),
            (self.top is not None and not self.regression, "--top: belongs to --regression"),
            (self.top is not None and not 0 < self.top < math.inf, f"--top {self.top}: must be positive"),
            (len(set(self.classes)) != len(self.classes), f"--labels {','.join(self.classes)}: a name is there twice"),
            (len(self.classes) == 1, f"--labels {','.join(self.classes)}: needs two or more"),
            (held and "train" not in names, "--holdout: there is no split named train to hold out from"),
            (set(held) & set(names), f"--holdout {','.join(held)}: there is a split of that name already"),
            (len(set(held)) != len(held), f"--holdout {','.join(held)}: a name is there twice"),
            (any(count < 1 for _, count in self.holdout), "--holdout: must be at least 1"),
            (self.by_length and "train" not in names, "--by-length: there is no split named train"),
            (
                "train" not in names and not self.classes and not self.regression,
                "no split named train: give the classes with --labels",
            ),
        ):
            if wrong:
                raise UserError(why)

    def model_positions(self) -> int | None:
        """Tokens that the model reads which scripts/convert/from_huggingface.py wrote beside the tokenizer, if any."""
        if self.types is not None:
            return None
        folder = self.tokenizer if self.tokenizer.is_dir() else self.tokenizer.parent
        try:
            return int(parse_json((folder / "convert.json").read_bytes())["model"]["max_positions"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result, JSON-able."""
        same = ("cased", "max_tokens", "separator", "regression", "top", "skip_bad", "answerable_only", "keep_text",
                "by_length")  # fmt: skip
        files: dict[str, Any] = {"types": self.types}
        if self.types is None:
            tokenizer = find_tokenizer(self.tokenizer)
            beside = tokenizer.with_name("dict.txt")
            dictionary = self.dict_file or (beside if beside.is_file() else None)
            files = {"tokenizer_sha256": sha256_or_none(tokenizer), "dict_sha256": sha256_or_none(dictionary)}
        lists = {"classes": list(self.classes), "holdout": [list(one) for one in self.holdout]}
        return {**self.inputs, **{name: getattr(self, name) for name in same}, **lists, **files}


# --- splits --------------------------------------------------------------------------------------------------------


class SplitWriter:
    """One split: token files, label numbers, counts, and what is needed to hold a part of it out."""

    def __init__(self, name: str, folder: Path, coder: Coder, keep_text: bool) -> None:
        self.name, self.folder, self.coder = name, folder, coder
        self.labels = array.array("d")
        self.labelled: bool | None = None
        self.hashes: list[bytes] = []
        self.sizes, self.cuts, self.unknown = (array.array("i") for _ in range(3))  # tokens of each row
        self.dropped = 0
        self._stack = contextlib.ExitStack()
        self._writers: list[TokenWriter] = []
        self._text: TextIO | None = None
        if keep_text:
            path = folder / f"{name}.jsonl"
            self._text = self._stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))

    @property
    def inputs(self) -> int:
        return len(self._writers)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, item: Labelled, rows: list[np.ndarray], cut: int, number: float | None) -> None:
        while len(self._writers) < len(rows):
            folder = self.folder / f"input{len(self._writers)}"
            folder.mkdir(exist_ok=True)
            self._writers.append(self._stack.enter_context(TokenWriter(folder / self.name, self.coder.dtype)))
        for writer, row in zip(self._writers, rows, strict=True):
            writer.add(row)
        self.sizes.append(1 + sum(map(len, rows)) + (len(rows) == 2 and self.coder.separator))
        self.cuts.append(cut)
        self.unknown.append(sum(int(np.count_nonzero(row == UNK)) for row in rows))
        if number is not None:
            self.labels.append(number)
        self.hashes.append(hashlib.sha256("\0".join(item.texts).encode()).digest()[:16])
        if self._text is not None:
            record = {"texts": list(item.texts), "label": item.label}
            self._text.write(json.dumps(record, ensure_ascii=False) + "\n")

    def describe(self, places: np.ndarray) -> dict[str, int]:
        """Counts of the items at these places."""
        sizes, cuts, unknown = (np.array(one)[places] for one in (self.sizes, self.cuts, self.unknown))
        return {
            "documents": len(places),
            "tokens": int(sizes.sum()),
            "longest": int(sizes.max(initial=0)),
            "unknown": int(unknown.sum()),
            "truncated": int(np.count_nonzero(cuts)),
            "cut": int(cuts.sum()),
        }


# --- the whole -----------------------------------------------------------------------------------------------------


def _problem(item: Labelled, rows: list[np.ndarray], first: bool | None) -> Bad | None:
    """Why an item cannot be used, if so. ``first`` says whether the first of its split had a label."""
    for number, (text, row) in enumerate(zip(item.texts, rows, strict=True), start=1):
        which = f"text {number} of the pair is " if len(item.texts) > 1 else ""
        if not text.strip():
            return Bad(item.where, f"{which}empty text" if not which else f"{which}empty")
        if len(row) < 2:
            return Bad(item.where, f"{which}text without a token" if not which else f"{which}without a token")
    if first is not None and first != (item.label is not None):
        return Bad(item.where, "no label, though others have one" if first else "a label, though others have none")
    return None


def _readable(item: Labelled | Bad) -> Labelled | Bad:
    """Bad for what JSON can hold and no text file, nor a line that is written: a label has no line end in it."""
    if isinstance(item, Bad):
        return item
    why = next(filter(None, map(unusable, item.texts)), None)
    if why is None and item.label is not None:
        why = unusable(item.label) or ("holds a line end or a tab" if set(item.label) & set("\n\r\t") else None)
        why = why and f"its label {why}"
    return Bad(item.where, why) if why else item


class _Run:
    """The splits being written; bad items stop the run, or are dropped and counted."""

    def __init__(self, names: list[str], out: Path, coder: Coder, options: Options, stack: contextlib.ExitStack):
        self.options, self.labels = options, Labels(options.classes, options.regression, options.top)
        self.splits = {name: stack.enter_context(SplitWriter(name, out, coder, options.keep_text)) for name in names}
        self.coder, self.last = coder, ""

    def drop(self, split: str, bad: Bad) -> None:
        if not self.options.skip_bad:
            raise bad.error()
        writer = self.splits[split]
        writer.dropped += 1
        if writer.dropped <= _SHOWN:
            tqdm.write(f"dropped {bad.where}: {bad.why}")

    def add(self, items: Sequence[Item]) -> None:
        items = [(split, _readable(item)) for split, item in items]
        good = [item for _, item in items if isinstance(item, Labelled)]
        encoded = iter(self.coder.encode(good))
        for split, item in items:
            if isinstance(item, Bad):
                self.drop(split, item)
                continue
            writer = self.splits[split]
            rows, cut = next(encoded)
            bad = _problem(item, rows, writer.labelled)
            number = None
            if bad is None and item.label is not None:
                if split != "train":
                    self.end_train()
                found = self.labels.number(item.label, item.where)
                bad, number = (found, None) if isinstance(found, Bad) else (None, found)
            if bad is not None:
                self.drop(split, bad)
                continue
            writer.labelled = item.label is not None
            writer.add(item, rows, cut, number)

    def end_train(self) -> None:
        """Fix the classes once all of train is read, which comes first."""
        train = self.splits.get("train")
        if self.labels.fixed or train is None or not train.hashes:
            return
        if not train.labelled:
            raise UserError("split train: no labels; is --label-field right?")
        moved = self.labels.fix()
        if moved is not None:
            train.labels = array.array("d", [moved[int(number)] for number in train.labels])


def _write_labels(folder: Path, numbers: dict[str, Sequence[float]], classes: list[str], regression: bool) -> None:
    """label/dict.txt and a token file a split, or label/SPLIT.label of scores."""
    folder.mkdir()
    if regression:
        for name, scores in numbers.items():
            (folder / f"{name}.label").write_text("".join(f"{score!r}\n" for score in scores), encoding="utf-8")
        return
    counts = Counter(int(number) for number in numbers.get("train", next(iter(numbers.values()), [])))
    text = "".join(f"{number} {counts[number]}\n" for number in range(len(classes)))
    (folder / "dict.txt").write_text(text, encoding="utf-8", newline="\n")
    dtype = token_dtype(len(classes) + len(SPECIALS))
    for name, found in numbers.items():
        with TokenWriter(folder / name, dtype) as writer:
            for number in found:
                writer.add(np.array([int(number) + len(SPECIALS), EOS], dtype=dtype))


def _arrange(run: _Run, out: Path, options: Options) -> dict[str, np.ndarray]:
    """Items of ``train`` by the split that they go to, in the order to write them, and the files rewritten so."""
    if not options.holdout and not options.by_length:
        return {}
    train = run.splits["train"]
    parts = spread(train.hashes, dict(options.holdout), "train")
    if options.by_length:  # those of one length in the order of their hashes: as read, classes may stand together
        rows = sorted(parts["train"].tolist(), key=lambda row: (train.sizes[row], train.hashes[row]))
        parts["train"] = np.array(rows, dtype=np.int64)
    for number in range(train.inputs):
        split_tokens(out / f"input{number}" / "train", parts, train.coder.dtype)
    if options.keep_text:
        split_lines(out / "train.jsonl", parts)
    return parts


def _numbers(places: dict[str, tuple[SplitWriter, np.ndarray]]) -> dict[str, Sequence[float]]:
    labelled = {name: (writer, rows) for name, (writer, rows) in places.items() if writer.labelled}
    return {name: np.array(writer.labels)[rows].tolist() for name, (writer, rows) in labelled.items()}


def _places(run: _Run, parts: dict[str, np.ndarray]) -> dict[str, tuple[SplitWriter, np.ndarray]]:
    """Each split that is written, with what was read as which and where in it."""
    found = {name: (writer, np.arange(len(writer.hashes))) for name, writer in run.splits.items()}
    return {**found, **{name: (run.splits["train"], rows) for name, rows in parts.items()}}


def _describe(
    run: _Run, places: dict[str, tuple[SplitWriter, np.ndarray]], numbers: dict[str, Sequence[float]]
) -> dict[str, Any]:
    """Counts of each split. ``dropped`` is told of what was read, so of train for what is held out of it."""
    described: dict[str, Any] = {}
    seen = {places["train"][0].hashes[row] for row in places["train"][1]} if "train" in places else set()
    for name, (writer, rows) in places.items():
        described[name] = writer.describe(rows)
        if name == writer.name:
            described[name]["dropped"] = writer.dropped
        else:
            described[name]["held_out_of"] = writer.name
        if name != "train" and "train" in places:
            described[name]["also_in_train"] = sum(writer.hashes[row] in seen for row in rows)
        if name in numbers and not run.options.regression:
            counts = Counter(int(number) for number in numbers[name])
            described[name]["classes"] = [counts[number] for number in range(len(run.labels.names))]
    return described


def training_flags(report: dict[str, Any], positions: int | None) -> str:
    """What fairseq-train must be told about the prepared data; the task shares ``--max-positions`` with the model."""
    classes = 1 if report["regression"] else len(report["classes"])
    longest = positions or report["max_tokens"]
    flags = f"--task sentence_prediction --num-classes {classes} --init-token 0 --max-positions {longest}"
    flags += " --separator-token 2" if report["separator"] else ""
    flags += " --regression-target" if report["regression"] else ""
    return flags + (" --no-shuffle" if report["by_length"] else "")


def _tokenizer(read: Callable[[], Iterable[Item]], options: Options) -> tuple[Subwords, list[str], bytes, np.ndarray]:
    """The tokenizer, given or trained on train; the dictionary's symbols and content; id -> index in it."""
    if options.types is not None:
        print(f"training sub-words of {options.types:,} types on train", flush=True)
        good = (item for split, item in read() if split == "train" and isinstance(item, Labelled))
        texts = (text for item in good for text in item.texts if not unusable(text))
        subwords = train_subwords(texts, options.types, bool(options.cased))
        symbols = subwords.dictionary()
        return subwords, symbols, dictionary_text(symbols).encode(), subwords.table(symbols, "dict.txt")
    subwords = read_subwords(options.tokenizer, options.cased)
    symbols, content = dictionary_beside(options.tokenizer, subwords, options.dict_file)
    name = str(options.dict_file or find_tokenizer(options.tokenizer).with_name("dict.txt"))
    return subwords, symbols, content or dictionary_text(symbols).encode(), subwords.table(symbols, name)


def prepare(read: Callable[[], Iterable[Item]], names: list[str], options: Options) -> dict[str, Any]:
    """Write the splits ``names`` into the destination; returns the report (also in prepare.json).

    ``read`` yields (split, text) pairs, train first. Raises UserError for wrong options, a tokenizer that is not the
    dictionary's, an empty split and, unless ``skip_bad``, for the first text that cannot be used.
    """
    options.check(names)
    subwords, symbols, content, table = _tokenizer(read, options)
    dtype = token_dtype(len(symbols) + len(SPECIALS) + 1)
    coder = Coder(subwords, table, dtype, options.max_tokens, options.separator)
    with staging(options.destination) as out:
        with contextlib.ExitStack() as stack:
            run = _Run(names, out, coder, options, stack)
            bar = stack.enter_context(tqdm(desc="encoding", unit=" texts", disable=None, mininterval=0.5))
            for batch in batched(read(), _BATCH, _size):
                run.add(batch)
                bar.update(len(batch))
            run.end_train()
            for name, writer in run.splits.items():
                if not writer.hashes:
                    dropped = f" ({writer.dropped:,} dropped)" if writer.dropped else ""
                    raise UserError(f"split {name}: no texts{dropped}")
        parts = _arrange(run, out, options)
        places = _places(run, parts)
        numbers = _numbers(places)
        _write_labels(out / "label", numbers, run.labels.names, options.regression)
        inputs = max(writer.inputs for writer in run.splits.values())
        for number in range(inputs):
            (out / f"input{number}" / "dict.txt").write_bytes(content)
        (out / TOKENIZER).write_text(subwords.to_json(), encoding="utf-8")
        report = {
            "types": len(symbols) + len(SPECIALS) + 1,
            "tokenizer": subwords.kind,
            "classes": run.labels.names,
            "regression": options.regression,
            "top": options.top,
            "inputs": inputs,
            "separator": inputs == 2 and coder.separator,
            "max_tokens": options.max_tokens,
            "by_length": options.by_length,
            "splits": _describe(run, places, numbers),
            "versions": package_versions(),
            "options": options.fingerprint(),
        }
        return write_report(out, {**report, "flags": training_flags(report, options.model_positions())})


def _size(item: Item) -> int:
    return 1 if isinstance(item[1], Bad) else sum(map(len, item[1].texts)) + 1
