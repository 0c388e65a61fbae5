"""Sub-words of a sentencepiece model as the symbols of a language model.

Each line is encoded by itself. Between lines stands :data:`NEWLINE`, a piece of its own, and after a document its end;
blanks at the ends of lines and runs of them are lost, as sentencepiece has it.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.binarize import token_dtype
from fairseq_efficient.text.language_models.read import END
from fairseq_efficient.text.symbols import EOS, NEWLINE, SPECIALS

DEFAULT_TYPES = 12_000
LONGEST_LINE = 2**20  # characters that are encoded at once; longer lines are cut at a space
_ENDS = re.compile(f"(\n|{END})")


def whole_lines(blocks: Iterable[str], longest: int = LONGEST_LINE) -> Iterator[str]:
    """Blocks that end after a newline or END; what has neither for ``longest`` characters is cut behind a space."""
    rest = ""
    for block in blocks:
        rest += block
        stop = max(rest.rfind("\n"), rest.rfind(END)) + 1
        if stop:
            yield rest[:stop]
            rest = rest[stop:]
        while len(rest) >= longest:
            stop = rest.rfind(" ", 0, longest) + 1 or longest
            yield rest[:stop]
            rest = rest[stop:]
    if rest:
        yield rest


class Pieces:
    """Blocks of whole lines -> sentencepiece ids, int64; ``end`` (one beyond the last id) is the end of a document."""

    def __init__(self, processor: Any, name: str):
        self.processor, self.name = processor, name
        self.end = processor.get_piece_size()
        self.newline = processor.piece_to_id(NEWLINE)

    def encode(self, block: str) -> np.ndarray:
        """(T,). UserError if there is a newline, and the model has no piece for it."""
        parts = _ENDS.split(block)  # lines, and between them what ends them
        if self.processor.is_unknown(self.newline) and "\n" in parts:
            raise UserError(f"{self.name}: has no piece {NEWLINE} for the newlines in documents: say --newlines space")
        found: list[int] = []
        for line, end in zip_longest(self.processor.encode(parts[::2], out_type=int), parts[1::2]):
            found += line
            if end:
                found.append(self.end if end == END else self.newline)
        return np.array(found, dtype=np.int64)


class SubwordCoder:
    """Blocks of whole lines -> dictionary indices; END is EOS. UserError if the dictionary is not the model's."""

    kind, raw = "subwords", False

    def __init__(self, processor: Any, symbols: list[str], name: str) -> None:
        self.pieces = Pieces(processor, name)
        self.dtype = token_dtype(len(symbols) + len(SPECIALS))
        self.table = np.append(spm.id_map(processor, symbols, "the dictionary"), EOS).astype(self.dtype)

    def encode(self, block: str) -> np.ndarray:
        """(T,) of :attr:`dtype`."""
        return self.table[self.pieces.encode(block)]


def piece_entries(processor: Any, name: str, blocks: Iterable[str]) -> list[tuple[str, int]]:
    """All pieces of the model with their counts in ``blocks``: by frequency, then by the model's order."""
    pieces = Pieces(processor, name)
    counts = np.zeros(pieces.end + 1, dtype=np.int64)
    for block in whole_lines(blocks):
        counts += np.bincount(pieces.encode(block), minlength=len(counts))
    known = spm.model_pieces(processor)
    ids = [processor.piece_to_id(piece) for piece in known]
    order = np.argsort(-counts[ids], kind="stable")
    return [(known[place], int(counts[ids[place]])) for place in order]
