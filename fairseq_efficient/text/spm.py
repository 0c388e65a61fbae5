"""Sentencepiece models that know the sentence mark, and the fairseq dictionary that belongs to one."""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.sentences import SENTENCE_MARK
from fairseq_efficient.text.symbols import SPECIALS, UNK

SAMPLE_CHARACTERS = 30_000_000
_CHUNK = 1000  # characters; the trainer skips lines beyond 4192 bytes
_THREADS = 4  # fixed: the trainer's sums, and so its model, depend on it


def chunks(lines: Iterable[str], size: int = _CHUNK) -> Iterator[str]:
    """Lines cut at spaces into pieces of about ``size`` characters (an endless word is cut anywhere)."""
    for line in lines:
        start = 0
        while start < len(line):
            stop = min(start + size, len(line))
            if stop < len(line):
                space = line.rfind(" ", start, stop)
                stop = space if space > start else stop
            yield line[start:stop]
            start = stop
            while start < len(line) and line[start] == " ":
                start += 1


def sample(items: Iterable[str], kept: int, total: int) -> Iterator[str]:
    """About ``kept`` of ``total`` characters, evenly spread and always the same ones."""
    if kept >= total:
        yield from items
        return
    for number, item in enumerate(items):
        if (number + 1) * kept // total > number * kept // total:
            yield item


def _train(lines: Iterable[str], characters: int, flag: str, **options: Any) -> bytes:
    """A serialized unigram model; deterministic. UserError, naming ``flag``, if sentencepiece cannot make one."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(chunks(lines), SAMPLE_CHARACTERS, characters),
            model_writer=model,
            model_type="unigram",
            hard_vocab_limit=False,
            num_threads=_THREADS,
            minloglevel=2,
            **options,
        )
    except RuntimeError as err:
        why = " ".join(str(err).split()).rpartition("] ")[2]
        raise UserError(f"{flag}: sentencepiece cannot train: {why[:200]}") from None
    return model.getvalue()


def train_spm(
    lines: Iterable[str], characters: int, types: int, form: str = "nfkc", marks: tuple[str, ...] = (SENTENCE_MARK,)
) -> bytes:
    """A serialized unigram model; deterministic.

    ``lines`` hold ``characters`` characters in all, of which a sample is used. ``types`` is the size of the
    dictionary in the model that will be trained, fairseq's four special types included. A corpus too small for
    that gives fewer. ``form``: nfkc, nfkc_cf (also in lower case) or none; ``marks`` are pieces whatever the text.
    UserError if ``types`` is too small for the corpus's characters.
    """
    return _train(
        lines,
        characters,
        f"--vocab-size {types}",
        vocab_size=types - len(SPECIALS) + 1,
        character_coverage=0.9999,
        normalization_rule_name=f"nmt_{form}" if form in ("nfkc", "nfkc_cf") else "identity",
        user_defined_symbols=list(marks),
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
    )


def train_segmenter(lines: Iterable[str], characters: int, types: int) -> bytes:
    """A serialized unigram model that cuts words into pieces of at most 16 characters and changes none.

    ``types`` is sentencepiece's own vocabulary size (its three control types included); else as :func:`train_spm`.
    """
    return _train(
        lines,
        characters,
        f"--unigram-vocab {types}",
        vocab_size=types,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentencepiece_length=16,
        split_by_whitespace=True,
        split_digits=True,
    )


def load_model(serialized: bytes, name: str) -> Any:
    """The processor of a model; UserError naming the file if it is no model."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(serialized)
    except (RuntimeError, OSError):
        loaded = False
    if not loaded:
        raise UserError(f"{name}: not a sentencepiece model")
    return processor


def load_spm(serialized: bytes, name: str) -> Any:
    """As :func:`load_model`; UserError too if the model does not know the sentence mark."""
    processor = load_model(serialized, name)
    pieces = processor.encode(f"a.{SENTENCE_MARK} b", out_type=str)
    if SENTENCE_MARK not in pieces:
        raise UserError(
            f"{name}: does not have the piece {SENTENCE_MARK} (train it with user_defined_symbols={SENTENCE_MARK})"
        )
    return processor


def model_pieces(processor: Any) -> list[str]:
    """Pieces that text can be encoded into, in the model's order."""
    ids = range(processor.get_piece_size())
    return [processor.id_to_piece(i) for i in ids if not (processor.is_control(i) or processor.is_unknown(i))]


def read_dictionary(path: Path) -> list[str]:
    """Symbols of a fairseq dictionary file, in order, without fairseq's four. UserError naming the line."""
    symbols: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: {getattr(err, 'strerror', None) or 'not UTF-8'}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            symbol, _, count = line.rpartition(" ")
            if not symbol or not count.isdigit():
                raise UserError(f"{path}:{number}: not '<symbol> <count>'")
            symbols.append(symbol)
    return symbols


def id_map(processor: Any, symbols: list[str], name: str) -> np.ndarray:
    """Sentencepiece id -> dictionary index, int64. UserError if dictionary and model are not of the same making."""
    index = {symbol: i for i, symbol in enumerate(itertools.chain(SPECIALS, symbols))}
    missing = [piece for piece in model_pieces(processor) if piece not in index]
    extra = set(symbols) - set(model_pieces(processor))
    extra = {symbol for symbol in extra if not symbol.startswith("madeupword")}
    if missing or extra:
        example = missing[0] if missing else min(extra)
        raise UserError(
            f"{name}: is not the model's dictionary ({len(missing)} missing, {len(extra)} unknown, as {example!r})"
        )
    ids = range(processor.get_piece_size())
    return np.array([index.get(processor.id_to_piece(i), UNK) for i in ids], dtype=np.int64)
