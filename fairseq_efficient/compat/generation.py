"""What stock fairseq makes of what ``fairseq-interactive`` reads, and of repeated n-grams."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairseq_efficient.compat.patching import patch
from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, read_lines, read_typed


def block_repeated_ngrams() -> None:
    """``--no-repeat-ngram-size`` blocks nothing without fairseq's CUDA extension: stock compares with the end of the
    token *buffer*, which is padding until the last step, in a Python loop over hypotheses. And it forbids a prompt
    that repeats itself, so that no hypothesis ever ends: what is forced stays possible.
    """
    import torch
    from fairseq.ngram_repeat_block import NGramRepeatBlock

    def make_block(stock: Any) -> Any:
        def _no_repeat_ngram(self: Any, tokens: Any, lprobs: Any, bsz: int, beam_size: int, step: int) -> Any:
            size = self.no_repeat_ngram_size
            if step >= size:
                seen = tokens[:, 1 : step + 1].unfold(
                    1, size, 1
                )  # (R, step - size + 1, size), without the start symbol
                last = tokens[:, step + 2 - size : step + 1].unsqueeze(1)
                row, place = (seen[:, :, :-1] == last).all(-1).nonzero(as_tuple=True)
                lprobs[row, seen[row, place, -1]] = -math.inf
            return lprobs

        return _no_repeat_ngram

    def keep_what_is_forced(stock: Any) -> Any:
        def forward(self: Any, tokens: Any, lprobs: Any, *sizes: Any, **more: Any) -> Any:
            value, place = lprobs.max(1, keepdim=True)
            forced = lprobs.isfinite().sum(1, keepdim=True) == 1
            found = stock(self, tokens, lprobs, *sizes, **more)
            return found.scatter_(1, place, torch.where(forced, value, found.gather(1, place)))

        return forward

    patch(NGramRepeatBlock, "_no_repeat_ngram", make_block)
    patch(NGramRepeatBlock, "forward", keep_what_is_forced)


def name_missing_constraints() -> None:
    """``--constraints`` where the input has none is a TypeError: only fairseq-interactive reads them."""
    from fairseq.search import LexicallyConstrainedBeamSearch

    def make(stock: Any) -> Any:
        def init_constraints(self: Any, batch_constraints: Any, beam_size: int) -> Any:
            if batch_constraints is None:
                raise UserError("--constraints: the input has none; fairseq-interactive reads them behind each line")
            return stock(self, batch_constraints, beam_size)

        return init_constraints

    patch(LexicallyConstrainedBeamSearch, "init_constraints", make)


def read_what_is_typed() -> None:
    """Stock ends in a traceback for a missing ``--input`` and for a line that is not UTF-8, and takes the mark at the
    start of a file (BOM) for a letter."""
    for name in ("fairseq_cli.interactive", "__main__"):  # the latter: python -m fairseq_cli.interactive
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "buffered_read") and hasattr(module, "make_batches"):
            patch(module, "buffered_read", lambda stock: _buffered_read)


def _buffered_read(input: str, buffer_size: int) -> Iterator[list[str]]:
    """Lines without blanks at their ends, as many at a time. Raises UserError with the number of a line that is not
    text."""
    buffer: list[str] = []
    for line in read_typed() if input == "-" else read_lines(Path(input)):
        if isinstance(line, Bad):
            raise line.error()
        buffer.append(line.text.strip())
        if len(buffer) >= buffer_size:
            yield buffer
            buffer = []
    if buffer:
        yield buffer
