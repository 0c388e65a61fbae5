"""Text cut where a trained model ends its segments."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from dynamic_pooling.boundaries import BoundaryOptions
from fairseq_efficient.errors import UserError
from fairseq_efficient.text.symbols import (
    BYTE_SYMBOLS,
    decode_bytes,
    decode_characters,
    encode_bytes,
    encode_characters,
)


def is_of_bytes(dictionary: Dictionary) -> bool:
    """Whether a dictionary is one of bytes (it has all 256)."""
    return all(symbol in dictionary.indices for symbol in BYTE_SYMBOLS)


class TextSegmenter:
    """Segments of texts, by a ``dynamic_pooling_lm`` in evaluation mode.

    Args:
        window: characters (or bytes) read at once, with half as many before them as context.
    """

    def __init__(self, model: Any, dictionary: Dictionary, window: int = 2048):
        rule = getattr(getattr(model, "decoder", None), "boundary_rule", None)
        if rule is None:
            raise UserError("this model has no segments (--boundaries-type none, or another kind of model)")
        model.eval()  # returns nothing after prepare_for_inference_
        self.model, self.dictionary, self.window = model, dictionary, window
        self.options: BoundaryOptions = rule.options
        self.bytes = is_of_bytes(dictionary)
        self.unknown = 0  # symbols that the dictionary lacks, so far

    def symbols(self, text: str) -> list[str]:
        """A text as symbols of the dictionary."""
        encoded = encode_bytes(text) if self.bytes else encode_characters(text)
        return encoded.split(" ") if text else []

    @torch.no_grad()
    def boundaries(self, symbols: Sequence[str]) -> Tensor:
        """(n,) bool: which symbols are the last of their segment. The text is taken for the start of a document."""
        words = self.dictionary
        ids = torch.tensor([words.eos(), *(words.index(symbol) for symbol in symbols)])
        self.unknown += int(ids[1:].eq(words.unk()).sum())
        found = torch.ones(len(ids), dtype=torch.bool)
        device = next(self.model.parameters()).device
        phase = self.options.fixed_sf if self.options.type == "fixed" else 1
        for start, early in _windows(len(ids), self.window, phase):
            part = ids[early : start + self.window].to(device)
            closed = self.model(part[None])[1]["boundaries"][0].cpu()
            found[start : start + self.window] = closed[start - early :]
        return found[1:]

    def segments(self, text: str) -> list[str]:
        """Pieces whose concatenation is the text (a character that a byte boundary splits comes out as U+FFFD)."""
        symbols = self.symbols(text)
        decode = decode_bytes if self.bytes else decode_characters
        ends = [0, *(self.boundaries(symbols).nonzero().flatten() + 1).tolist()] if symbols else []
        if ends and ends[-1] < len(symbols):
            ends.append(len(symbols))
        return [decode(" ".join(symbols[start:end])) for start, end in pairwise(ends)]


def _windows(total: int, size: int, phase: int) -> Iterator[tuple[int, int]]:
    """(start, where its context starts): at a multiple of ``phase``, so that fixed segments keep theirs."""
    for start in range(0, total, size):
        early = max(start - size // 2, 0)
        yield start, early - early % phase
