"""``--bpe dp_characters`` and ``--bpe dp_bytes``: text as the symbols of ``scripts/prepare_lm.py``, and back.

fairseq-interactive strips blanks from the ends of what it reads: write a space that matters there as ``▁``
(``the cat▁``).
"""

from dataclasses import dataclass

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from fairseq_efficient.text import symbols


@dataclass
class CharactersConfig(FairseqDataclass):
    """No options."""


@dataclass
class BytesConfig(FairseqDataclass):
    """No options."""


@register_bpe("dp_characters", dataclass=CharactersConfig)
class Characters:
    """Text as the symbols that scripts/prepare_lm.py makes of characters."""

    def __init__(self, cfg: CharactersConfig) -> None:
        pass

    def encode(self, text: str) -> str:
        return symbols.encode_characters(text)

    def decode(self, text: str) -> str:
        return symbols.decode_characters(text)


@register_bpe("dp_bytes", dataclass=BytesConfig)
class Bytes:
    """Text as the symbols that scripts/prepare_lm.py makes of bytes."""

    def __init__(self, cfg: BytesConfig) -> None:
        pass

    def encode(self, text: str) -> str:
        return symbols.encode_bytes(text)

    def decode(self, text: str) -> str:
        return symbols.decode_bytes(text)
