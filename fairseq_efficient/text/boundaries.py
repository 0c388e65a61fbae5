"""Where a sentencepiece model ends its pieces, character by character (or byte by byte).

A boundary is 1 on the last character of a segment. Words are what stands between separators: space, newline and, in the
streams of :mod:`.language_models.read`, the end of a document. Each word is encoded by itself, once, and every piece of
it is a segment, except that the separator after the word joins its last piece and so carries the boundary. A separator
without a word before it (the second of two spaces) is a segment of its own. A word at the end of a text closes with its
last character. Joined, the segments are the text; between the letters of a word they are the model's own pieces.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.language_models.read import END

MOST_WORD = 2**20  # a word of a dictionary of words; what is longer is no text
LONGEST_WORD = 2**16  # a word for the tokenizer; a stream without separators is cut at these lengths
_CACHE = 500_000  # words
_MARK = "▁"


def _without_mark(pieces: list[str], word: str) -> list[str] | None:
    """The pieces of a word without the mark that the model puts before (or behind) it; None if they spell another."""
    joined = "".join(pieces)
    if joined == _MARK + word:
        return [pieces[0][1:], *pieces[1:]]
    if joined == word + _MARK:
        return [*pieces[:-1], pieces[-1][:-1]]
    return pieces if joined == word else None


class Segmenter:
    """Boundaries of text (``str``) or of UTF-8 bytes (``bytes``) by one sentencepiece model.

    ``respelled`` counts the distinct words that the model cannot spell, because it normalizes them or because they are
    not UTF-8: each of those is one segment.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.respelled = 0
        self._patterns: dict[str | bytes, bytes] = {}

    def pieces(self, word: str) -> list[str]:
        """The segments of one word without separators."""
        found = _without_mark(self.processor.encode(word, out_type=str), word) if word else []
        if found is None:
            self.respelled += 1
            return [word]
        return [piece for piece in found if piece]

    def _pattern(self, word: str | bytes) -> bytes:
        """0 and 1 for each unit of the word and the separator after it."""
        try:
            text = word.decode("utf-8") if isinstance(word, bytes) else word
            lengths = [len(piece.encode("utf-8") if isinstance(word, bytes) else piece) for piece in self.pieces(text)]
        except UnicodeDecodeError:
            self.respelled += 1
            lengths = [len(word)]
        pattern = bytearray(len(word) + 1)
        for end in np.cumsum(lengths[:-1], dtype=np.int64):
            pattern[end - 1] = 1
        pattern[-1] = 1
        if len(self._patterns) >= _CACHE:
            self._patterns.clear()
        made = self._patterns[word] = bytes(pattern)
        return made

    def boundaries(self, text: str | bytes, end: bool = True) -> np.ndarray:
        """uint8 (len(text),). ``end``: END is a separator too."""
        words: list[Any]
        if isinstance(text, str):
            text = text.replace("\n", " ")
            words = (text.replace(END, " ") if end else text).split(" ")
        else:
            text = text.replace(b"\n", b" ")
            words = (text.replace(b"\0", b" ") if end else text).split(b" ")
        known, make = self._patterns.get, self._pattern
        joined = b"".join([known(word) or make(word) for word in words])
        found = np.frombuffer(joined, dtype=np.uint8)[:-1].copy()
        if words[-1]:
            found[-1] = 1
        return found


def whole_words(
    blocks: Iterable[Any], end: bool = True, longest: int | None = None, most: int | None = None
) -> Iterator[Any]:
    """Blocks (all ``str`` or all ``bytes``) that end after a separator (END is one if ``end``), so that no word is cut.

    Only the last word may have none, and what has no separator for ``longest`` units is cut there; UserError for what
    has none for ``most``.
    """
    rest = None
    for block in blocks:
        rest = block if rest is None else rest + block
        separators: tuple[Any, ...] = (" ", "\n", END) if isinstance(block, str) else (b" ", b"\n", b"\0")
        stop = max(rest.rfind(one) for one in separators[: 3 if end else 2]) + 1
        if stop:
            yield rest[:stop]
            rest = rest[stop:]
        while longest is not None and len(rest) >= longest:
            yield rest[:longest]
            rest = rest[longest:]
        if most is not None and len(rest) > most:
            raise UserError(f"{most:,} symbols without a space: not a text of words ({str(rest[:20])!r} ...)")
    if rest:
        yield rest
