"""Whitespace and Unicode made regular, so that one document is one line."""

import re
import unicodedata

from fairseq_efficient.text.sentences import SENTENCE_MARK, mark_sentences, sentences_of

NORMALIZATIONS = ("nfkc", "nfc", "none")

# control characters (tabs and line ends are dealt with before), zero-width spaces and the byte-order mark
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")


def _unicode(text: str, form: str) -> str:
    return text if form == "none" else unicodedata.normalize("NFC" if form == "nfc" else "NFKC", text)


def clean_source(text: str, form: str = "nfkc") -> str:
    """A document on one line: Unicode form, no control characters, single spaces, no sentence marks."""
    text = _INVISIBLE.sub(" ", _unicode(text, form)).replace(SENTENCE_MARK, " ")
    return " ".join(text.split())


def clean_target(parts: tuple[str, ...], sentences: bool, form: str = "nfkc") -> str:
    """A summary on one line with :data:`SENTENCE_MARK` between its sentences.

    ``parts`` are sentences if ``sentences``; otherwise each part is split by the marks it has, or else by rules.
    """
    found: list[str] = []
    for part in parts:
        part = _INVISIBLE.sub(" ", _unicode(part, form))
        split = [part.replace(SENTENCE_MARK, " ")] if sentences else sentences_of(part)
        found += [" ".join(sentence.split()) for sentence in split]
    return mark_sentences([sentence for sentence in found if sentence])
