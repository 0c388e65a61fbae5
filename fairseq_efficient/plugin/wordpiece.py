"""``--bpe wordpiece``: text as the pieces of a BERT tokenizer (or a RoBERTa one), as they stand in the dictionary."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.subwords import read_subwords


@dataclass
class WordPieceConfig(FairseqDataclass):
    """Flags of ``--bpe wordpiece``."""

    wordpiece_vocab: Optional[str] = field(
        default=None,
        metadata={
            "help": "tokenizer.json, vocab.txt (WordPiece), vocab.json with merges.txt beside it, or the folder of one"
        },
    )
    wordpiece_case: ChoiceEnum(["auto", "cased", "uncased"]) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "whether a vocab.txt keeps case (auto: tokenizer_config.json beside it, else whether it has "
            "capitals); other files say it themselves"
        },
    )


@register_bpe("wordpiece", dataclass=WordPieceConfig)
class WordPiece:
    """Raises UserError if no tokenizer is given, or one that cannot be read."""

    def __init__(self, cfg: WordPieceConfig) -> None:
        path = cfg.wordpiece_vocab
        if not path:
            raise UserError("--bpe wordpiece: give its tokenizer with --wordpiece-vocab FILE")
        case = str(cfg.wordpiece_case)
        self.subwords = read_subwords(Path(path), None if case == "auto" else case == "cased")

    def encode(self, text: str) -> str:
        return " ".join(self.subwords.encode(text))

    def decode(self, text: str) -> str:
        return self.subwords.decode(text.split())

    def is_beginning_of_word(self, symbol: str) -> bool:
        return self.subwords.starts_word(symbol)
