"""What a language model has to beat: count models and xz that have read the same training tokens."""

import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import token_dtype
from fairseq_efficient.text.holdout import read_tokens
from fairseq_efficient.text.prepared import read_file
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.spm import read_dictionary
from fairseq_efficient.text.symbols import EOS, SPECIALS, byte_symbol, symbol_code


class CountModel(NamedTuple):
    """``bits`` per token, and how many numbers (of events and of contexts, of all orders) the model keeps."""

    bits: float
    numbers: int


def count_models(train: np.ndarray, test: np.ndarray, types: int, order: int) -> list[CountModel]:
    """Interpolated count models of orders 0 to ``order`` on ``test``: order n sees n tokens.

    ``p_n(x | c) = (N(c x) + T(c) p_{n-1}(x | c')) / (N(c) + T(c))`` (Witten and Bell, 1991, method C): N counts in
    ``train``, T(c) is the number of types seen after c, c' is c without its first token, p_{-1} is 1 / ``types``. A
    context never seen has the estimate of the shorter one. Nothing is learned from ``test``.

    Args:
        train, test: tokens (N,) and (M,), integers below ``types``; before each stand ends of documents.
    """
    pad = np.full(order, EOS, dtype=np.int64)
    stream = np.concatenate([pad, train.astype(np.int64), pad, test.astype(np.int64)])
    learn, score = slice(order, order + len(train)), slice(2 * order + len(train), None)
    context = np.zeros_like(stream)  # a number for the last n tokens before each place
    found, shares, numbers = [], np.full(len(test), 1 / types), 0
    for size in range(order + 1):
        if size:
            _, context[1:] = np.unique(context[:-1] * types + stream[:-1], return_inverse=True)
        events, counts = np.unique(context[learn] * types + stream[learn], return_counts=True)
        kinds = np.bincount(events // types, minlength=int(context.max()) + 1)[context[score]]
        total = np.bincount(context[learn], minlength=int(context.max()) + 1)[context[score]]
        wanted = context[score] * types + stream[score]
        place = np.searchsorted(events, wanted).clip(max=len(events) - 1)
        hits = np.where(events[place] == wanted, counts[place], 0)
        shares = (hits + np.where(total, kinds, 1) * shares) / np.where(total, total + kinds, 1)
        numbers += len(events) + 2 * len(np.unique(events // types))
        found.append(CountModel(float(-np.log2(shares).mean()), numbers))
    return found


def xz_bits(train: bytes, test: bytes) -> float:
    """Bits of ``test`` that ``xz -9e`` needs after ``train``: what both take together less what ``train`` takes."""
    preset = 9 | lzma.PRESET_EXTREME
    return 8.0 * (len(lzma.compress(train + test, preset=preset)) - len(lzma.compress(train, preset=preset)))


def written(tokens: np.ndarray, symbols: Sequence[str], kind: str) -> bytes:
    """The text of tokens of characters or bytes, NUL after each document; what is unknown is U+FFFD."""
    table = ["\ufffd".encode()] * len(SPECIALS)
    table[EOS] = b"\0"
    for symbol in symbols:
        code = symbol_code(symbol)
        if kind == "bytes" and code is not None and symbol == byte_symbol(code & 0xFF):
            table.append(bytes([code]))
        else:
            table.append(symbol.encode() if code is None else chr(code).encode("utf-8", "replace"))
    return b"".join(map(table.__getitem__, tokens.tolist()))


def floors_of(folder: Path, subset: str, order: int | None = None) -> dict[str, Any]:
    """Floors of data that scripts/prepare_lm.py made, for one of its splits.

    Args:
        order: of the longest count model (default: 6 of characters and bytes, 3 of others).

    Returns:
        ``kind`` (of the symbols), ``tokens`` (predicted ones, ends of documents among them), ``count_models`` by order
        and, of characters and bytes, ``xz_bits``: bits per token.

    Raises:
        UserError: no such data or split.
    """
    try:
        kind = str(parse_json(read_file(folder / "prepare.json"))["options"]["symbols"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: not prepared by scripts/prepare_lm.py") from None
    short = kind in ("characters", "bytes")
    order = (6 if short else 3) if order is None else order
    symbols = read_dictionary(folder / "dict.txt")
    types = len(symbols) + len(SPECIALS)
    train, test = (_tokens(folder, split, types) for split in ("train", subset))
    models = [one._asdict() for one in count_models(train, test, types, order)]
    found: dict[str, Any] = {"kind": kind, "tokens": len(test), "count_models": models}
    if short:
        bits = xz_bits(written(train, symbols, kind), written(test, symbols, kind))
        found["xz_bits"] = bits / max(len(test), 1)
    return found


def _tokens(folder: Path, split: str, types: int) -> np.ndarray:
    if not (folder / f"{split}.idx").is_file():
        raise UserError(f"{folder}: no split {split}")
    return np.asarray(read_tokens(folder / split, token_dtype(types))[0])
