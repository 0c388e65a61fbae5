"""What stock ``fairseq-interactive`` makes of what it reads: patched in by :mod:`fairseq_efficient.compat`, which calls
this."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fairseq_efficient.text.reading import Bad, read_lines, read_typed


def read_what_is_typed(patch: Callable[[Any, str, Callable[[Any], Any]], None]) -> None:
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
