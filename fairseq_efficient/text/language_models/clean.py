# ruff: noqa: RUF001, RUF002 - letters of other alphabets are meant
"""Cleaners of text for language models. They work on streams of blocks (:mod:`.read`) and give the same text however
the stream was cut.

``text8``: the small alphabet of the text8 corpus, for five languages. In this order: Unicode form NFC; lower case by
the language's rules (Turkish I is ı and İ is i); a digit is spelled as a word; what the alphabet lacks is folded if it
is a form of a letter that the alphabet has; combining marks and invisible format characters that remain are removed;
every other character is a space; runs of spaces are one space, runs of newlines (with spaces) one newline, and
documents have neither at their ends. Doing it again changes nothing.

Folded are (all derived from the Unicode database, except the few letters of ``_NO_DECOMPOSITION``):
- fullwidth and halfwidth forms, mathematical alphabets, ligatures and digraphs (ﬁ, ǆ), long s, Roman numerals;
- a letter with marks to the letter with fewer marks, as far as needed: é is e in English, ü stays in Turkish.
Not folded: letters of another script that look the same (Cyrillic а), which would make words of no language, and
signs such as ™ or ㎏.

``spaces``: Unicode text as it is, with runs of whitespace made one space or, if a newline is among them, one newline.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.language_models.read import END, Joiner, Tell, ignore

CLEANERS = ("none", "text8", "spaces")

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_TONES = ("", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323")
_VOWELS = unicodedata.normalize("NFC", "".join(vowel + tone for vowel in "aăâeêioôơuưy" for tone in _TONES))

ALPHABETS = {
    "en": _LATIN,
    "fi": _LATIN + "åäö",
    "he": "אבגדהוזחטיכךלמםנןסעפףצץקרשת" + "\u05be\u05f3\u05f4",  # and maqaf, geresh, gershayim
    "tr": "abcçdefgğhıijklmnoöprsştuüvyz",
    "vi": "bcdđghklmnpqrstvx" + _VOWELS,
}
DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "fi": "nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän",
    "he": "אפס אחד שניים שלושה ארבעה חמישה שישה שבעה שמונה תשעה",
    "tr": "sıfır bir iki üç dört beş altı yedi sekiz dokuz",
    "vi": "không một hai ba bốn năm sáu bảy tám chín",
}
_LOWER = {"tr": {"I": "ı", "İ": "i"}}
_NO_DECOMPOSITION = {
    "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "þ": "th", "ŧ": "t",
    "װ": "וו", "ױ": "וי", "ײ": "יי",
}  # fmt: skip
_FOLDED_FORMS = ("<wide>", "<narrow>", "<font>", "<compat>")


class _Text8(dict[int, str]):
    """For ``str.translate``: a character of NFC text -> what becomes of it, worked out once."""

    def __init__(self, lang: str) -> None:
        super().__init__({ord(one): one for one in (*ALPHABETS[lang], END, "\n", " ")})
        self.digits = [f" {word} " for word in DIGITS[lang].split()]
        self.lower = _LOWER.get(lang, {})

    def __missing__(self, code: int) -> str:
        made = self[code] = self._make(chr(code))
        return made

    def _make(self, one: str) -> str:
        if one in "0123456789":
            return self.digits[int(one)]
        low = self.lower.get(one) or (one.lower() if len(one.lower()) == 1 else one)
        if low != one:
            return self[ord(low)]
        category = unicodedata.category(one)
        if category in ("Mn", "Me") or (category == "Cf" and one != "\u200b"):
            return ""
        return self._fold(one, category)

    def _fold(self, one: str, category: str) -> str:
        parts = unicodedata.decomposition(one).split()
        if parts and parts[0].startswith("<"):
            foldable = parts[0] in _FOLDED_FORMS and category[0] in "LN"
            parts = parts[1:] if foldable else []
        letters = [chr(int(part, 16)) for part in parts] or list(_NO_DECOMPOSITION.get(one, ""))
        return "".join(self[ord(letter)] for letter in letters) or " "


@functools.cache
def _joins_before() -> frozenset[str]:
    """Characters that NFC may merge with or move before the one before them, though they are no combining marks."""
    found = set(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))  # Hangul vowels and finals
    for code in range(0x80, 0x20000):
        parts = unicodedata.decomposition(chr(code)).split()
        if parts and not parts[0].startswith("<"):
            found.update(chr(int(part, 16)) for part in parts[1:])
            if unicodedata.combining(chr(int(parts[0], 16))):
                found.add(chr(code))
    return frozenset(found)


def nfc_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Unicode form NFC; a block is held back from the last character that what follows cannot change."""
    rest = ""
    for block in blocks:
        text = rest + block
        cut = len(text) - 1
        while cut > 0 and (unicodedata.combining(text[cut]) or text[cut] in _joins_before()):
            cut -= 1
        cut = max(cut, 0)
        yield unicodedata.normalize("NFC", text[:cut])
        rest = text[cut:]
    yield unicodedata.normalize("NFC", rest)


_RUNS = ((re.compile("  +"), " "), (re.compile(" ?\n[ \n]*"), "\n"), (re.compile(f"[ \n]?{END}[ \n]*"), END))


def collapse_spaces(blocks: Iterable[str], dropped: Tell = ignore) -> Iterator[str]:
    """One space or newline for a run of them, none at the ends of documents; documents that are left empty go."""
    joiner, held, start = Joiner(dropped), "", True
    for block in blocks:
        text = held + block
        for run, one in _RUNS:
            text = run.sub(one, text) if one in text else text
        text = text.lstrip(" \n") if start else text
        body = text.rstrip(" \n")
        held = text[len(body) :]
        if body:
            start = body.endswith(END)
            yield joiner.add(body)
    yield joiner.close()


_OTHER_SPACE = re.compile(r"[^\S\n ]")


def cleaner(kind: str, lang: str = "en") -> Callable[[Iterable[str], Tell], Iterator[str]]:
    """The function (blocks, dropped) -> blocks of one of :data:`CLEANERS`; UserError for an unknown language."""
    if lang not in ALPHABETS:
        raise UserError(f"--lang {lang}: not known; there are {', '.join(ALPHABETS)}")
    if kind == "none":
        return lambda blocks, dropped: iter(blocks)
    if kind == "spaces":
        return lambda blocks, dropped: collapse_spaces((_OTHER_SPACE.sub(" ", one) for one in blocks), dropped)
    table = _Text8(lang)
    return lambda blocks, dropped: collapse_spaces((one.translate(table) for one in nfc_blocks(blocks)), dropped)


def clean_text(text: str, kind: str, lang: str = "en") -> str:
    """One text (which may hold several documents, each ended by END) cleaned; the last needs no END."""
    cleaned = "".join(cleaner(kind, lang)([text], ignore))
    return cleaned if text.endswith(END) else cleaned.removesuffix(END)
