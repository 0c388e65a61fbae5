"""From text to fairseq's language-model data: clean, count, write tokens and the boundaries of a unigram tokenizer.

Everything streams, block by block, through a temporary folder beside the destination, which is renamed when it is
complete. The text is read once, cleaned into ``SPLIT.txt`` with END after each document, and encoded from there.
"""

import codecs
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.boundaries import LONGEST_WORD, MOST_WORD, Segmenter, whole_words
from fairseq_efficient.text.language_models.binarize import (
    Coder,
    SymbolCounter,
    WordCounter,
    dictionary_text,
    write_split,
)
from fairseq_efficient.text.language_models.clean import CLEANERS, cleaner
from fairseq_efficient.text.language_models.read import END, Tell, raw_blocks
from fairseq_efficient.text.language_models.subwords import DEFAULT_TYPES, SubwordCoder, piece_entries
from fairseq_efficient.text.prepared import package_versions, read_file, sha256_or_none, staging, write_report
from fairseq_efficient.text.symbols import NEWLINE, SPACE, SPECIALS, SYMBOL_KINDS, check_symbols

Raw = bytes
Block = str | Raw
Dropped = Callable[[str, int], object]  # split, documents
Reader = Callable[[Dropped, Tell], Iterator[tuple[str, Block]]]
MODEL = "unigram.model"
SUBWORDS = "spm.model"


@dataclass(frozen=True)
class Options:
    """What to make of the text. ``inputs`` describes where it comes from, to recognise an unchanged run."""

    destination: Path
    symbols: str = "characters"
    raw: bool = False  # bytes as they are, one document a split
    clean: str = "none"
    lang: str = "en"
    newlines: str = "keep"
    lower_case: bool = False
    eos: bool = True
    threshold: int = 1
    vocab_size: int | None = None
    dict_file: Path | None = None
    spm_file: Path | None = None
    unigram_vocab: int | None = None
    unigram_file: Path | None = None
    keep_text: bool = False
    overwrite: bool = False
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def unigram(self) -> bool:
        return self.unigram_vocab is not None or self.unigram_file is not None

    def check(self, names: list[str]) -> None:
        """UserError for options that do not go together, or with these splits."""
        for flag, value, known in (
            ("--symbols", self.symbols, SYMBOL_KINDS),
            ("--clean", self.clean, CLEANERS),
            ("--newlines", self.newlines, ("keep", "space")),
        ):
            if value not in known:
                raise UserError(f"{flag} {value}: not known; there are {', '.join(known)}")
        cleaner(self.clean, self.lang)
        for wrong, why in (*self._wrong_text(), *self._wrong_symbols(names)):
            if wrong:
                raise UserError(why)

    def _wrong_text(self) -> Iterator[tuple[bool, str]]:
        """(Whether it is so, what to say) of options of the text and of a tokenizer's boundaries."""
        raw = "raw bytes stay as they are (give --format text)"
        yield self.raw and self.clean != "none", f"--clean {self.clean}: {raw}"
        yield self.raw and self.newlines != "keep", f"--newlines space: {raw}"
        yield self.raw and self.lower_case, f"--lower-case: {raw}"
        both = self.unigram_vocab is not None and self.unigram_file is not None
        yield both, "give --unigram-vocab or --unigram-spm"
        yield (
            self.unigram and self.symbols not in ("characters", "bytes"),
            "--unigram-vocab, --unigram-spm: need --symbols characters or bytes",
        )

    def _wrong_symbols(self, names: list[str]) -> Iterator[tuple[bool, str]]:
        """The same of options of the symbols and of the splits."""
        subwords, given, sized = self.symbols == "subwords", self.dict_file is not None, self.vocab_size is not None
        yield self.threshold < 1, f"--threshold {self.threshold}: must be at least 1"
        yield self.threshold > 1 and self.symbols == "bytes", "--threshold: bytes are all in the dictionary"
        yield self.threshold > 1 and subwords, "--threshold: sub-words are all in the dictionary (say --vocab-size)"
        yield sized and self.symbols not in ("words", "subwords"), "--vocab-size: needs --symbols words or subwords"
        yield (self.vocab_size or 5) < 5, f"--vocab-size {self.vocab_size}: must be at least 5"
        yield (
            given and (self.threshold > 1 or sized),
            "--dict: the dictionary is given, so --threshold and --vocab-size have nothing to do",
        )
        yield self.spm_file is not None and not subwords, "--spm: needs --symbols subwords"
        yield (
            self.spm_file is not None and (sized or self.lower_case),
            "--spm: the model is given, so --vocab-size and --lower-case have nothing to do",
        )
        yield subwords and given and self.spm_file is None, "--dict: sub-words need their model too (--spm)"
        yield "train" not in names and not given, "no split named train: give the dictionary with --dict"
        yield "train" not in names and self.unigram_vocab is not None, "--unigram-vocab: no split named train"

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result, JSON-able."""
        same = ("symbols", "raw", "clean", "newlines", "eos", "threshold", "vocab_size", "unigram_vocab", "keep_text")
        files = {"dict_sha256": sha256_or_none(self.dict_file), "unigram_sha256": sha256_or_none(self.unigram_file)}
        lang = self.lang if self.clean == "text8" else None
        found = {**self.inputs, **{name: getattr(self, name) for name in same}, "lang": lang, **files}
        if self.lower_case:
            found["lower_case"] = True
        if self.spm_file is not None:
            found["spm_sha256"] = sha256_or_none(self.spm_file)
        return found


# --- reading and cleaning ------------------------------------------------------------------------------------------


@dataclass
class Split:
    """Counts of one split. ``characters`` and ``bytes`` (as UTF-8) are those of the cleaned text, EOS not included."""

    documents: int = 0
    dropped: int = 0
    characters: int = 0
    bytes: int = 0
    marks: int = 0  # of ▁ in the input, taken for spaces
    tokens: int = 0
    unknown: int = 0
    longest: int = 0  # tokens of the longest document
    segments: int = 0

    def add_text(self, block: str, data: Raw) -> None:
        ends = block.count(END)
        self.documents += ends
        self.characters += len(block) - ends
        self.bytes += len(data) - ends

    def add_raw(self, data: Raw) -> None:
        self.documents = 1
        self.characters += int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) & 0xC0 != 0x80))
        self.bytes += len(data)

    def drop(self, documents: int) -> None:
        self.dropped += documents


def _plain(blocks: Iterable[str], split: Split, options: Options) -> Iterator[str]:
    """Blocks whose ``▁`` are spaces, as they would be in the symbols anyway, and whose newlines and case are as asked
    for; the case of sub-words is their model's."""
    for block in blocks:
        if options.symbols in ("characters", "subwords"):
            split.marks += block.count(SPACE)
            block = block.replace(SPACE, " ")
        if options.lower_case and options.symbols != "subwords":
            block = block.casefold()
        yield block.replace("\n", " ") if options.newlines == "space" else block


def _store(blocks: Iterable[Any], path: Path, split: Split, counter: Any, options: Options) -> None:
    """Clean the blocks of a split into a file; count them, and what they hold if there is a counter."""
    if not options.raw:
        blocks = cleaner(options.clean, options.lang)(_plain(blocks, split, options), split.drop)
    if options.symbols == "words":
        blocks = whole_words(blocks, most=MOST_WORD)
    with open(path, "wb") as file:
        for block in blocks:
            data = block if options.raw else block.encode("utf-8")
            if options.raw:
                split.add_raw(data)
            else:
                split.add_text(block, data)
            file.write(data)
            if counter is not None:
                counter.add(data if options.symbols == "bytes" else block)


def _read_splits(read: Reader, names: list[str], text: Path, counter: Any, options: Options) -> dict[str, Split]:
    """Store every split as ``text/SPLIT.txt``; UserError for one without documents."""
    splits = {name: Split() for name in names}
    with tqdm(desc="reading", unit="B", unit_scale=True, disable=None, mininterval=0.5) as bar:
        blocks = read(lambda name, documents: splits[name].drop(documents), bar.update)
        for name, group in itertools.groupby(blocks, key=lambda item: item[0]):
            counts = counter if name == "train" and options.dict_file is None else None
            _store((block for _, block in group), text / f"{name}.txt", splits[name], counts, options)
    for name, split in splits.items():
        if split.documents == 0:
            raise UserError(f"split {name}: no documents" + (f" ({split.dropped:,} empty)" if split.dropped else ""))
    return splits


def _stored(path: Path, options: Options, watch: Tell = lambda size: None) -> Iterator[Any]:
    """The blocks of a stored split: ``bytes`` if these are the symbols, else ``str``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in raw_blocks(path, watch):
        yield block if options.symbols == "bytes" else decoder.decode(block)


# --- the tokenizer whose boundaries are written --------------------------------------------------------------------


def _lines(blocks: Iterable[Any]) -> Iterator[str]:
    for block in whole_words(blocks, longest=LONGEST_WORD):
        text = block.decode("utf-8", errors="ignore") if isinstance(block, bytes) else block
        yield from text.replace(END, "\n").split("\n")


def _unigram(text: Path, splits: dict[str, Split], options: Options) -> bytes | None:
    """The serialized model, given or trained on the cleaned train text."""
    if options.unigram_file is not None:
        return read_file(options.unigram_file)
    if options.unigram_vocab is None:
        return None
    print(f"training a unigram model of {options.unigram_vocab:,} types on train", flush=True)
    lines = _lines(_stored(text / "train.txt", options))
    return spm.train_segmenter(lines, splits["train"].characters, options.unigram_vocab)


def _subwords(text: Path, out: Path, splits: dict[str, Split], options: Options) -> Any:
    """The processor of the sub-words, given or trained on the cleaned train text; its model is written to ``out``."""
    if options.spm_file is not None:
        serialized = read_file(options.spm_file)
    else:
        types = DEFAULT_TYPES if options.vocab_size is None else options.vocab_size
        print(f"training sub-words of {types:,} types on train", flush=True)
        lines = _lines(_stored(text / "train.txt", options))
        form, marks = "nfkc_cf" if options.lower_case else "nfkc", (NEWLINE,) if options.newlines == "keep" else ()
        serialized = spm.train_spm(lines, splits["train"].characters, types, form, marks)
    (out / SUBWORDS).write_bytes(serialized)
    return spm.load_model(serialized, str(options.spm_file or SUBWORDS))


# --- the whole -----------------------------------------------------------------------------------------------------


def _dictionary(counter: Any, options: Options) -> tuple[list[str], bytes]:
    """The symbols in order and the content of dict.txt; a given dictionary stays as it is."""
    path = options.dict_file
    if path is not None:
        symbols = spm.read_dictionary(path)
        check_symbols(symbols, options.symbols, str(path))
        return symbols, read_file(path)
    entries = counter.entries(options.threshold, options.vocab_size)
    if not entries:
        raise UserError(f"--threshold {options.threshold}: no word of train is that frequent")
    return [symbol for symbol, _ in entries], dictionary_text(entries).encode("utf-8")


def _coder(
    text: Path, out: Path, splits: dict[str, Split], known: tuple[list[str], bytes] | None, options: Options
) -> tuple[Coder | SubwordCoder, list[str], bytes]:
    """What encodes the text, its symbols, and dict.txt; of sub-words the dictionary may not be ``known`` yet."""
    if options.symbols != "subwords":
        assert known is not None
        return (Coder(known[0], options.symbols, options.raw), *known)
    processor, name = _subwords(text, out, splits, options), str(options.spm_file or SUBWORDS)
    if known is None:
        entries = piece_entries(processor, name, _stored(text / "train.txt", options))
        known = [symbol for symbol, _ in entries], dictionary_text(entries).encode("utf-8")
        check_symbols(known[0], options.symbols, name)
    return (SubwordCoder(processor, known[0], name), *known)


def _encode(
    splits: dict[str, Split],
    text: Path,
    out: Path,
    coder: Coder | SubwordCoder,
    segmenter: Segmenter | None,
    options: Options,
) -> None:
    """Write the token files, and the boundary files if there is a segmenter."""
    total = sum((text / f"{name}.txt").stat().st_size for name in splits)
    with tqdm(total=total, desc="encoding", unit="B", unit_scale=True, disable=None, mininterval=0.5) as bar:
        for name, split in splits.items():
            blocks = _stored(text / f"{name}.txt", options, bar.update)
            written = write_split(blocks, out / name, coder, segmenter, options.eos)
            for field_name, value in asdict(written).items():
                setattr(split, field_name, value)


def _keep_text(text: Path, out: Path, names: Iterable[str], options: Options) -> None:
    """SPLIT.txt for people: raw bytes as they are, else a document a line with its newlines as ``<0x0A>``."""
    for name in names:
        with open(out / f"{name}.txt", "wb") as file:
            for block in raw_blocks(text / f"{name}.txt"):
                if not options.raw:
                    block = block.replace(b"\n", NEWLINE.encode()).replace(END.encode(), b"\n")
                file.write(block)


def prepare(read: Reader, names: list[str], options: Options) -> dict[str, Any]:
    """Write fairseq data of the splits ``names`` into the destination; returns the report (also in prepare.json).

    ``read(dropped, watch)`` yields (split, block), split by split, and tells of empty documents and of bytes read.
    Raises UserError for wrong options and for the first mistake in the text.
    """
    options.check(names)
    counter: Any = None  # sub-words are not known yet
    if options.symbols != "subwords":
        counter = WordCounter() if options.symbols == "words" else SymbolCounter(options.symbols, options.raw)
    with staging(options.destination) as out:
        text = out / "text"
        text.mkdir()
        given = _dictionary(None, options) if options.dict_file is not None else None
        for path in (options.unigram_file, options.spm_file):
            if path is not None:
                spm.load_model(read_file(path), str(path))
        splits = _read_splits(read, names, text, counter, options)
        known = _dictionary(counter, options) if given is None and counter is not None else given
        coder, symbols, dictionary = _coder(text, out, splits, known, options)
        serialized = _unigram(text, splits, options)
        segmenter = None
        if serialized is not None:
            segmenter = Segmenter(spm.load_model(serialized, str(options.unigram_file or MODEL)))
            (out / MODEL).write_bytes(serialized)
        _encode(splits, text, out, coder, segmenter, options)
        (out / "dict.txt").write_bytes(dictionary)
        if options.keep_text:
            _keep_text(text, out, splits, options)
        shutil.rmtree(text)
        report: dict[str, Any] = {
            "types": len(symbols) + len(SPECIALS),
            "splits": {name: asdict(split) for name, split in splits.items()},
            "versions": package_versions(),
            "options": options.fingerprint(),
        }
        if segmenter is not None and serialized is not None:
            types = segmenter.processor.get_piece_size()
            digest = sha256(serialized).hexdigest()
            report["unigram"] = {"types": types, "sha256": digest, "respelled_words": segmenter.respelled}
        if options.symbols == "subwords":
            report["subwords"] = {"sha256": sha256(read_file(out / SUBWORDS)).hexdigest()}
        return write_report(out, report)
