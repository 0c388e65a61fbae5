"""From documents and summaries to fairseq data: clean, mark sentences, train a sentencepiece model, encode, write.

Everything streams through a temporary folder beside the destination, which is renamed when it is complete.
"""

import array
import contextlib
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.binarize import TokenWriter, batched, bounded_map, token_dtype
from fairseq_efficient.text.clean import clean_source, clean_target
from fairseq_efficient.text.prepared import (
    package_versions,
    read_file,
    sha256_or_none,
    staging,
    train_split,
    write_report,
)
from fairseq_efficient.text.reading import Bad, Example
from fairseq_efficient.text.sentences import plain
from fairseq_efficient.text.summarization.corpora import Item
from fairseq_efficient.text.symbols import EOS, SPECIALS, UNK

SIDES = {"source": "src", "target": "tgt"}
_BATCH = 400_000  # characters a worker gets at a time
_SHOWN = 20  # dropped lines that are named; all are counted


@dataclass(frozen=True)
class Options:
    """What to make of the documents. ``inputs`` describes where they came from, to recognise an unchanged run."""

    destination: Path
    vocab_size: int = 8000
    spm_file: Path | None = None
    dict_file: Path | None = None
    normalization: str = "nfkc"
    workers: int = 1
    keep_text: bool = False
    skip_bad: bool = False
    overwrite: bool = False
    inputs: dict[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result, JSON-able."""
        spm_sha, dict_sha = sha256_or_none(self.spm_file), sha256_or_none(self.dict_file)
        given = {"spm_sha256": spm_sha, "dict_sha256": dict_sha} if spm_sha else {"vocab_size": self.vocab_size}
        same = {"normalization": self.normalization, "keep_text": self.keep_text, "skip_bad": self.skip_bad}
        return {**self.inputs, **given, **same}


# --- cleaning ------------------------------------------------------------------------------------------------------


@dataclass
class Split:
    """Counts of one split; word and token counts are per document."""

    documents: int = 0
    dropped: int = 0
    characters: int = 0
    words: dict[str, array.array] = field(default_factory=lambda: {side: array.array("i") for side in SIDES})
    tokens: dict[str, array.array] = field(default_factory=lambda: {side: array.array("i") for side in SIDES})


def _clean(job: tuple[list[Item], str]) -> list[tuple[str, str, str] | tuple[str, Bad]]:
    """Worker: (split, source, target) of each item, or (split, Bad)."""
    items, form = job
    done: list[tuple[str, str, str] | tuple[str, Bad]] = []
    for split, item in items:
        done.append((split, item) if isinstance(item, Bad) else _clean_one(split, item, form))
    return done


def _clean_one(split: str, item: Example, form: str) -> tuple[str, str, str] | tuple[str, Bad]:
    where_target = item.where_target or item.where
    source = clean_source(item.source, form)
    target = clean_target(item.target, item.sentences, form)
    if "\0" in item.source or any("\0" in part for part in item.target):
        return split, Bad(item.where, "contains a NUL character")
    for text, where, what in ((source, item.where, "document"), (target, where_target, "summary")):
        if not text:
            return split, Bad(where, f"empty {what}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return split, Bad(where, f"{what} holds half of a surrogate pair")
    return split, source, target


def _item_size(item: Item) -> int:
    return 1 if isinstance(item[1], Bad) else len(item[1].source) + 1


def _write_text(
    items: Iterable[Item], names: list[str], folder: Path, options: Options, pool: Executor | None
) -> dict[str, Split]:
    """Clean every item into SPLIT.source.txt and SPLIT.target.txt, one document a line."""
    splits = {name: Split() for name in names}
    with contextlib.ExitStack() as stack:

        def create(name: str, side: str) -> TextIO:
            return stack.enter_context(open(folder / f"{name}.{side}.txt", "w", encoding="utf-8", newline="\n"))

        files = {name: (create(name, "source"), create(name, "target")) for name in names}
        bar = stack.enter_context(tqdm(desc="reading", unit=" documents", disable=None, mininterval=0.5))
        jobs = ((batch, options.normalization) for batch in batched(items, _BATCH, _item_size))
        for result in bounded_map(pool, _clean, jobs):
            for cleaned in result:
                split = splits[cleaned[0]]
                if len(cleaned) == 2:
                    if not options.skip_bad:
                        raise cleaned[1].error()
                    split.dropped += 1
                    if split.dropped <= _SHOWN:
                        tqdm.write(f"dropped {cleaned[1].where}: {cleaned[1].why}")
                    continue
                split.documents += 1
                for text, file, side in zip(cleaned[1:], files[cleaned[0]], SIDES, strict=True):
                    file.write(f"{text}\n")
                    split.characters += len(text)
                    split.words[side].append(len(plain(text).split()))
            bar.update(len(result))
    for name, split in splits.items():
        if split.documents == 0:
            raise UserError(f"split {name}: no documents" + (f" ({split.dropped} dropped)" if split.dropped else ""))
    return splits


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line.removesuffix("\n")


# --- encoding ------------------------------------------------------------------------------------------------------

_WORKER: dict[str, Any] = {}


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start_worker(serialized: bytes, name: str, ids: np.ndarray, dtype: np.dtype) -> None:
    _WORKER.update(spm=spm.load_spm(serialized, name), ids=ids, dtype=dtype)


def _start_pool_worker(*arguments: Any) -> None:
    _ignore_interrupts()
    _start_worker(*arguments)


def _encode(lines: list[str]) -> list[np.ndarray]:
    """Worker: dictionary indices of each line, EOS last."""
    ids, dtype = _WORKER["ids"], _WORKER["dtype"]
    pieces = (ids[np.asarray(_WORKER["spm"].encode(line), dtype=np.int64)] for line in lines)
    return [np.append(piece, EOS).astype(dtype) for piece in pieces]


def _encode_split(name: str, split: Split, text: Path, out: Path, types: int, pool: Executor | None) -> np.ndarray:
    """Write both sides of a split; returns how often each dictionary entry occurs."""
    counts = np.zeros(types, dtype=np.int64)
    with tqdm(total=2 * split.documents, desc=f"encoding {name}", unit=" texts", disable=None, mininterval=0.5) as bar:
        for side, short in SIDES.items():
            batches = batched(_lines(text / f"{name}.{side}.txt"), _BATCH, len)
            with TokenWriter(out / f"{name}.src-tgt.{short}", token_dtype(types)) as writer:
                for arrays in bounded_map(pool, _encode, batches):
                    for tokens in arrays:
                        writer.add(tokens)
                    counts += np.bincount(np.concatenate(arrays), minlength=types)
                    bar.update(len(arrays))
            split.tokens[side] = writer.sizes
    return counts


def _model(text: Path, train: str, split: Split, options: Options) -> tuple[bytes, str]:
    """The serialized model, and the name to use in messages."""
    if options.spm_file is not None:
        return read_file(options.spm_file), str(options.spm_file)
    print(f"training a sentencepiece model of {options.vocab_size:,} types on {train}", flush=True)
    both = (line for side in SIDES for line in _lines(text / f"{train}.{side}.txt"))
    return spm.train_spm(both, split.characters, options.vocab_size, options.normalization), "spm.model"


def _write_dictionary(folder: Path, symbols: list[str], counts: np.ndarray) -> None:
    text = "".join(f"{symbol} {count}\n" for symbol, count in zip(symbols, counts[len(SPECIALS) :], strict=True))
    for short in SIDES.values():
        (folder / f"dict.{short}.txt").write_text(text, encoding="utf-8", newline="\n")


# --- the whole -----------------------------------------------------------------------------------------------------


def _percentiles(values: array.array) -> dict[str, int]:
    numbers = np.frombuffer(values, dtype=np.int32)
    found = {f"p{p}": int(np.percentile(numbers, p)) for p in (5, 50, 90, 95, 99)}
    return {"mean": int(numbers.mean()), **found, "max": int(numbers.max()), "total": int(numbers.sum(dtype=np.int64))}


def _report(
    splits: dict[str, Split], symbols: list[str], unknown: dict[str, float], options: Options
) -> dict[str, Any]:
    described = {}
    for name, split in splits.items():
        sides = {
            f"{side}_{unit}": _percentiles(counts[side])
            for unit, counts in (("words", split.words), ("tokens", split.tokens))
            for side in SIDES
        }
        described[name] = {"documents": split.documents, "dropped": split.dropped, "unknown": unknown[name], **sides}
    types = len(symbols) + len(SPECIALS)
    return {
        "types": types,
        "splits": described,
        "versions": package_versions(),
        "options": options.fingerprint(),
    }


def _dictionary_for(processor: Any, options: Options) -> tuple[list[str], np.ndarray]:
    """Symbols in order and the map from sentencepiece ids; a dictionary beside a given model keeps its order."""
    path = options.dict_file
    if path is None and options.spm_file is not None and options.spm_file.with_name("dict.src.txt").is_file():
        path = options.spm_file.with_name("dict.src.txt")
    symbols = spm.model_pieces(processor) if path is None else spm.read_dictionary(path)
    return symbols, spm.id_map(processor, symbols, str(path))


def _pool(stack: contextlib.ExitStack, workers: int, start: Callable[..., None], *state: Any) -> Executor | None:
    """Processes that end with the stack, whatever waits for them; None for one worker."""
    if workers < 2:
        return None
    pool = ProcessPoolExecutor(workers, get_context("fork"), start, state)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


def prepare(read: Callable[[], Iterable[Item]], names: list[str], options: Options) -> dict[str, Any]:
    """Write fairseq data of the splits ``names`` into the destination; returns the report (also in prepare.json).

    ``read`` yields (split, document) pairs. Raises UserError for the first bad line unless ``skip_bad``.
    """
    train = train_split(names)
    with staging(options.destination) as out, contextlib.ExitStack() as stack:
        text = out if options.keep_text else out / "text"
        text.mkdir(exist_ok=True)
        pool = _pool(stack, options.workers, _ignore_interrupts)
        splits = _write_text(read(), names, text, options, pool)
        serialized, model_name = _model(text, train, splits[train], options)
        processor = spm.load_spm(serialized, model_name)
        symbols, ids = _dictionary_for(processor, options)
        types = len(symbols) + len(SPECIALS)
        state = (serialized, model_name, ids, token_dtype(types))
        if pool is not None:
            pool = _pool(stack, options.workers, _start_pool_worker, *state)
        else:
            _start_worker(*state)
        counts = {name: _encode_split(name, split, text, out, types, pool) for name, split in splits.items()}
        unknown = {name: round(float(found[UNK] / found.sum()), 6) for name, found in counts.items()}
        _write_dictionary(out, symbols, counts[train])
        (out / "spm.model").write_bytes(serialized)
        if not options.keep_text:
            shutil.rmtree(text)
        return write_report(out, _report(splits, symbols, unknown, options))
