"""Text as the tokens a model was trained on, and back: what the prepared data says about it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.clean import clean_source
from fairseq_efficient.text.language_models.binarize import Coder
from fairseq_efficient.text.language_models.clean import clean_text
from fairseq_efficient.text.language_models.subwords import SubwordCoder
from fairseq_efficient.text.prepared import read_file, read_report
from fairseq_efficient.text.symbols import NEWLINE, SPACE, SPECIALS, decode_bytes, decode_characters

MODEL = "spm.model"


class TextCoder(NamedTuple):
    """``clean``: text as the training data had it. ``encode``: clean text -> tokens (T,) int64, no EOS. ``decode``:
    symbols of the dictionary -> text."""

    clean: Callable[[str], str]
    encode: Callable[[str], Tensor]
    decode: Callable[[Sequence[str]], str]


def text_coder(folder: Path, dictionary: Any) -> TextCoder | None:
    """By the ``prepare.json`` in ``folder``; None without one (fairseq-preprocess made the data).

    Raises:
        UserError: prepare.json is damaged, the sentencepiece model is missing or not the dictionary's.
    """
    report = read_report(folder)
    if report is None:
        return None
    options = report.get("options")
    if not isinstance(options, dict):
        raise UserError(f"{folder / 'prepare.json'}: damaged; prepare the data again")
    kind = options.get("symbols")
    symbols = dictionary.symbols[len(SPECIALS) :]
    if kind is None:
        return _of_documents(folder, symbols, options.get("normalization", "nfkc"))
    clean = _Cleaner(options)
    if kind == "subwords":
        processor = spm.load_model(read_file(folder / MODEL), str(folder / MODEL))
        pieces = SubwordCoder(processor, symbols, str(folder / MODEL))
        return TextCoder(clean, partial(_encode, pieces), _join_pieces)
    coder = Coder(symbols, kind)
    if kind == "words":
        return TextCoder(clean, partial(_encode, coder), " ".join)
    kinds = {"bytes": (_encode_bytes, decode_bytes)}
    encode, decode = kinds.get(kind, (_encode, decode_characters))
    return TextCoder(clean, partial(encode, coder), partial(_decode, decode))


def _encode(coder: Any, text: str) -> Tensor:
    return _tensor(coder.encode(text))


def _encode_bytes(coder: Any, text: str) -> Tensor:
    return _tensor(coder.encode(text.encode()))


def _decode(decode: Callable[[str], str], symbols: Sequence[str]) -> str:
    return decode(" ".join(symbols))


class _Cleaner:
    """What ``prepare_lm.py`` did to the text. A space at the end stays: what comes next is a new word."""

    def __init__(self, options: dict[str, Any]):
        self.kind, self.lang = options.get("clean") or "none", options.get("lang") or "en"
        self.raw, self.lower = bool(options.get("raw")), bool(options.get("lower_case"))
        self.lower &= options["symbols"] != "subwords"  # their model does it
        self.one_line = options.get("newlines") == "space"

    def __call__(self, text: str) -> str:
        if self.raw:
            return text
        text = text.casefold() if self.lower else text
        text = text.replace("\n", " ") if self.one_line else text
        cleaned = clean_text(text, self.kind, self.lang)
        return cleaned + " " if cleaned and text.endswith(" ") and not cleaned.endswith(" ") else cleaned


def _of_documents(folder: Path, symbols: list[str], form: str) -> TextCoder:
    """Of ``prepare_summarization.py``."""
    processor = spm.load_spm(read_file(folder / MODEL), str(folder / MODEL))
    table = spm.id_map(processor, symbols, "the dictionary")

    return TextCoder(partial(clean_source, form=form), partial(_encode_pieces, processor, table), _join_pieces)


def _encode_pieces(processor: Any, table: np.ndarray, text: str) -> Tensor:
    return _tensor(table[np.array(processor.encode(text, out_type=int), dtype=np.int64)])


def _join_pieces(pieces: Sequence[str]) -> str:
    return "".join(pieces).replace(SPACE, " ").replace(NEWLINE, "\n").strip(" ")


def _tensor(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))
