"""Windows over long paragraphs, and the tokens of an answer that is given in characters."""

import numpy as np

from fairseq_efficient.errors import UserError


def cut_windows(
    fixed: np.ndarray, lengths: np.ndarray, limit: int, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows that cover each text, as few as do when neighbours share ``stride`` tokens.

    Args:
        fixed: (N,) tokens of each row that are not of the text: the question and the special ones.
        lengths: (N,) tokens of each text.
        limit: tokens of a row.

    Returns:
        For each window, int64: its text (ascending), its first token, its length.

    Raises:
        UserError: no room for a text beside the longest question, or none to move on.
    """
    room = limit - fixed
    if len(room) and room.min() <= stride:
        raise UserError(
            f"--doc-stride {stride}: windows of --max-seq-length {limit} leave only {room.min()} tokens of the "
            f"paragraph beside the longest question ({fixed.max()} tokens with the special ones)"
        )
    more = np.maximum(lengths - room, 0)
    counts = 1 + -(-more // np.maximum(room - stride, 1))
    text = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * (room - stride)[text]
    return text, start, np.minimum(room[text], lengths[text] - start)


def answer_tokens(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """First and last token that hold characters ``start`` to ``end`` (excluded); None if no token does.

    Args:
        offsets: (tokens, 2) where tokens start and end, ascending.
    """
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None
