"""From text blocks to dictionaries, token files and boundary files of a language model."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_efficient.text.binarize import TokenWriter, token_dtype
from fairseq_efficient.text.boundaries import LONGEST_WORD, MOST_WORD, Segmenter, whole_words
from fairseq_efficient.text.language_models.read import END
from fairseq_efficient.text.language_models.subwords import SubwordCoder, whole_lines
from fairseq_efficient.text.symbols import (
    BYTE_SYMBOLS,
    CODE_POINTS,
    EOS,
    NEWLINE,
    SPECIALS,
    UNK,
    character_symbol,
    lookup_table,
)

Entry = tuple[str, int]  # symbol and count


def code_points(text: str) -> np.ndarray:
    """uint8 or uint32 (len(text),)."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def split_words(text: str) -> list[str]:
    """Words at any whitespace; a newline is a word of its own, and so is END."""
    return text.replace("\n", f" {NEWLINE} ").replace(END, f" {END} ").split()


# --- dictionaries --------------------------------------------------------------------------------------------------


class SymbolCounter:
    """Counts characters or bytes of blocks; END is not one, except in ``raw`` bytes."""

    def __init__(self, kind: str, raw: bool = False) -> None:
        self.kind, self.raw = kind, raw
        self.counts = np.zeros(256 if kind == "bytes" else CODE_POINTS, dtype=np.int64)

    def add(self, block: str | bytes) -> None:
        codes = code_points(block) if isinstance(block, str) else np.frombuffer(block, dtype=np.uint8)
        found = np.bincount(codes)
        self.counts[: len(found)] += found
        if not self.raw:
            self.counts[ord(END)] = 0

    def entries(self, threshold: int = 1, size: int | None = None) -> list[Entry]:
        """Symbols by frequency, then code point: all bytes, or the space and the characters that are not rarer."""
        order = np.argsort(-self.counts, kind="stable")
        if self.kind == "bytes":
            return [(BYTE_SYMBOLS[code], int(self.counts[code])) for code in order]
        codes = [int(code) for code in order[: np.count_nonzero(self.counts)]]
        kept = [code for code in codes if self.counts[code] >= threshold or chr(code) == " "]
        if ord(" ") not in kept:
            kept.append(ord(" "))
        return [(character_symbol(chr(code)), int(self.counts[code])) for code in kept]


class WordCounter:
    """Counts words of blocks that cut none."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, block: str) -> None:
        self.counts.update(split_words(block))

    def entries(self, threshold: int = 1, size: int | None = None) -> list[Entry]:
        """Words by frequency, then code point; at most ``size`` with fairseq's four, to which these words fall."""
        found = [one for one in self.counts.items() if one[1] >= threshold and one[0] not in (END, *SPECIALS)]
        found.sort(key=lambda one: (-one[1], one[0]))
        return found if size is None else found[: size - len(SPECIALS)]


# --- tokens --------------------------------------------------------------------------------------------------------


class _Index(dict[str, int]):
    def __missing__(self, word: str) -> int:
        return UNK


class Coder:
    """Blocks -> dictionary indices. END is EOS, except in ``raw`` bytes."""

    def __init__(self, symbols: list[str], kind: str, raw: bool = False) -> None:
        self.kind, self.raw = kind, raw
        self.dtype = token_dtype(len(symbols) + len(SPECIALS))
        if kind == "words":
            self.index = _Index((word, number) for number, word in enumerate(symbols, start=len(SPECIALS)))
            self.index[END] = EOS
        else:
            self.table = lookup_table(symbols, kind, self.dtype)
            if not raw:
                self.table[ord(END)] = EOS

    def encode(self, block: str | bytes) -> np.ndarray:
        """(T,) of :attr:`dtype`: a token for each character, byte or word."""
        if isinstance(block, bytes):
            return self.table[np.frombuffer(block, dtype=np.uint8)]
        if self.kind == "words":
            words = split_words(block)
            return np.fromiter(map(self.index.__getitem__, words), dtype=self.dtype, count=len(words))
        return self.table[code_points(block)]


@dataclass
class Written:
    """What a split became."""

    tokens: int = 0
    unknown: int = 0
    longest: int = 0
    segments: int = 0


def _arrays(
    blocks: Iterable[Any], coder: Coder | SubwordCoder, segmenter: Segmenter | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Tokens and boundaries of each block; an EOS ends each document, also the one of raw bytes."""
    if segmenter is not None:
        blocks = whole_words(blocks, end=not coder.raw, longest=LONGEST_WORD)
    elif coder.kind == "words":
        blocks = whole_words(blocks, most=MOST_WORD)
    elif coder.kind == "subwords":
        blocks = whole_lines(blocks)
    held: tuple[np.ndarray, np.ndarray | None, bool] | None = None
    for block in blocks:
        if held is not None:
            yield held[:2]
        bits = None if segmenter is None else segmenter.boundaries(block, end=not coder.raw)
        held = coder.encode(block), bits, coder.raw and not block.endswith((b" ", b"\n"))
    if held is None:
        return
    tokens, bits, joins = held
    if coder.raw:
        tokens = np.append(tokens, tokens.dtype.type(EOS))
        if bits is not None:
            bits = np.append(bits, np.uint8(1))
            bits[-2] &= not joins  # as any separator, EOS carries the boundary of the word before it
    yield tokens, bits


def _without_eos(tokens: np.ndarray, bits: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Tokens and boundaries without EOS, and where documents end; what stood before an EOS closes its segment."""
    keep = tokens != EOS
    stops = np.flatnonzero(~keep)
    if bits is not None:
        bits[stops[stops > 0] - 1] = 1
        bits = bits[keep]
    return tokens[keep], bits, stops - np.arange(len(stops))


def write_split(
    blocks: Iterable[Any],
    prefix: Path,
    coder: Coder | SubwordCoder,
    segmenter: Segmenter | None = None,
    eos: bool = True,
) -> Written:
    """Write ``PREFIX.bin/.idx`` and, with a segmenter, ``PREFIX.boundaries.bin/.idx``: one item a document.

    A boundary file has an item of the same size for each token item, uint8. Memory does not grow with the documents.
    """
    written = Written()
    with ExitStack() as stack:
        writer = stack.enter_context(TokenWriter(prefix, coder.dtype))
        sides = None
        if segmenter is not None:
            sides = stack.enter_context(TokenWriter(Path(f"{prefix}.boundaries"), np.dtype(np.uint8)))
        for tokens, bits in _arrays(blocks, coder, segmenter):
            if eos:
                ends = np.flatnonzero(tokens == EOS) + 1
            else:
                tokens, bits, ends = _without_eos(tokens, bits)
            writer.extend(tokens, ends)
            written.tokens += len(tokens)
            written.unknown += int(np.count_nonzero(tokens == UNK))
            if sides is not None and bits is not None:
                sides.extend(bits, ends)
                written.segments += int(np.count_nonzero(bits))
    written.longest = max(writer.sizes, default=0)
    return written


def dictionary_text(entries: list[Entry]) -> str:
    """dict.txt as fairseq writes it."""
    return "".join(f"{symbol} {count}\n" for symbol, count in entries)
