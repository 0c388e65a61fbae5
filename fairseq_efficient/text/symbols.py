"""Characters and bytes as symbols of a fairseq dictionary, which separates symbols by spaces.

A space is ``▁`` (U+2581, as in fairseq's ``--bpe characters``). Characters that fairseq would take for a separator or
that a terminal would act on (every other whitespace, every control character) are ``<0xHH>``, the code point in
hexadecimal: a newline is ``<0x0A>``. As bytes, printable ASCII is itself and every other byte is ``<0xHH>``.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from fairseq_efficient.errors import UserError

SPACE = "▁"
NEWLINE = "<0x0A>"
SYMBOL_KINDS = ("characters", "bytes", "words", "subwords")
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first four types, in its order
EOS, UNK = 2, 3
CODE_POINTS = 0x110000

_ESCAPED = re.compile(r"<0x([0-9A-F]{2,6})>")
_FILLER = re.compile(r"madeupword\d+|<.+>")  # of other makers: never text


def character_symbol(character: str) -> str:
    """The symbol of one character; ``▁`` is a space already."""
    if character in (" ", SPACE):
        return SPACE
    if character.isspace() or unicodedata.category(character) == "Cc":
        return f"<0x{ord(character):02X}>"
    return character


def byte_symbol(value: int) -> str:
    """The symbol of one byte (0 to 255)."""
    if value == 0x20:
        return SPACE
    return chr(value) if 0x20 < value < 0x7F else f"<0x{value:02X}>"


BYTE_SYMBOLS = tuple(map(byte_symbol, range(256)))
_BYTES = {symbol: value for value, symbol in enumerate(BYTE_SYMBOLS)}


def symbol_code(symbol: str) -> int | None:
    """The code point (in a dictionary of bytes: the byte) that a symbol stands for; None if it stands for none."""
    if symbol == SPACE:
        return 0x20
    if len(symbol) == 1:
        return ord(symbol)
    escaped = _ESCAPED.fullmatch(symbol)
    code = int(escaped.group(1), 16) if escaped else CODE_POINTS
    return code if code < CODE_POINTS else None


def encode_characters(text: str) -> str:
    """Text as symbols separated by spaces. A ``▁`` in the text is a space."""
    return " ".join(map(character_symbol, text))


def decode_characters(symbols: str) -> str:
    """The inverse of :func:`encode_characters`; other symbols (``<unk>``) stay as they are written."""

    def text(symbol: str) -> str:
        code = symbol_code(symbol)
        return symbol if code is None else chr(code)

    return "".join(map(text, symbols.split(" ")))


def encode_bytes(text: str) -> str:
    """The UTF-8 bytes of a text as symbols separated by spaces. A ``▁`` in the text is a space, as for characters."""
    return " ".join(map(BYTE_SYMBOLS.__getitem__, text.replace(SPACE, " ").encode("utf-8")))


def decode_bytes(symbols: str) -> str:
    """The inverse of :func:`encode_bytes`; bytes that are not UTF-8 become U+FFFD, other symbols stay."""
    parts = (bytes([_BYTES[one]]) if one in _BYTES else one.encode("utf-8") for one in symbols.split(" "))
    return b"".join(parts).decode("utf-8", errors="replace")


def check_symbols(symbols: Sequence[str], kind: str, name: str) -> None:
    """UserError, naming the line of file ``name``, unless the symbols are a dictionary of this kind."""
    if kind in ("characters", "bytes") and SPACE not in symbols:
        raise UserError(f"{name}: lacks {SPACE}, the space: not a dictionary for --symbols {kind}")
    if kind == "bytes":
        missing = [symbol for symbol in BYTE_SYMBOLS if symbol not in symbols]
        if missing:
            raise UserError(f"{name}: lacks {missing[0]}: not a dictionary for --symbols bytes, which has all 256")
    seen = set(SPECIALS)
    for number, symbol in enumerate(symbols, start=1):
        if symbol in seen:
            raise UserError(f"{name}:{number}: {symbol!r} is there twice or one of fairseq's own")
        seen.add(symbol)
        if kind == "characters" and symbol_code(symbol) is None and not _FILLER.fullmatch(symbol):
            raise UserError(f"{name}:{number}: {symbol!r} is not one character: not a dictionary for --symbols {kind}")


def lookup_table(symbols: Sequence[str], kind: str, dtype: np.dtype) -> np.ndarray:
    """Code point or byte -> dictionary index: (0x110000,) or (256,), UNK where the dictionary has no symbol."""
    table = np.full(256 if kind == "bytes" else CODE_POINTS, UNK, dtype=dtype)
    for index, symbol in enumerate(symbols, start=len(SPECIALS)):
        code = _BYTES.get(symbol) if kind == "bytes" else symbol_code(symbol)
        if code is not None:
            table[code] = index
    return table
