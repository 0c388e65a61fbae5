"""Sentence ends as a symbol: splitting, marking, unmarking. Rules only, nothing to download.

A marked text is ``First sentence.<q> Second one.``: :data:`SENTENCE_MARK` glued to the sentence it ends, so that a
sentencepiece model that knows the mark spends one piece on it and still sees the next word as the start of a word.
"""

import re

SENTENCE_MARK = "<q>"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words whose full stop does not end a sentence. HARD: never. NUMBERED: not before a number (or St. before a name).
# SOFT: only if a usual first word of a sentence follows.
_HARD = _words(
    "mr mrs ms dr prof st jr sr fig figs eq eqs ref refs tab tabs sec sect chap vol vols no nos pp ed eds approx ca "
    "cf vs viz resp e.g i.e w.r.t eg ie spp sp subsp var gen col capt lt dept univ assoc proc trans conf symp"
)
_NUMBERED = _words("no nos p pp vol vols ed eds sec sp var col gen st")
_SOFT = _words("al etc inc ltd co corp u.s u.k u.n ph.d m.d b.c a.d a.m p.m")
_STARTERS = _words(
    "a an the this that these those we i it our he she they their his her its in on at by for from to with without "
    "here there however moreover furthermore thus therefore hence although though while when where because since if "
    "as after before during both all some many most no not each one two first second finally additionally also but and "
    "results background conclusion conclusions methods recently previously unlike"
)
_WIDE = "\u3002\uff01\uff1f"  # full stop, exclamation and question mark that no space follows
_CLOSING = "\"'\u201d\u2019)\\]"
_OPENING = "\"'\u201c\u2018(\\["
# a run is looked at from its start, once: without, time grows with the square of its length
_END = re.compile(rf"(?<![.!?\u2026])[.!?\u2026]++[{_CLOSING}]*+(?=\s)|[{_WIDE}]+[{_CLOSING}\u300d\u300f\uff09]*")
_LOOK_BACK = 200  # characters before a full stop, for its last two words
_ONE_LETTER = re.compile(r"[^\W\d_]\.,?")
_NEXT = re.compile(rf"\s*[{_OPENING}]*(\S+)")


def _uncased(text: str) -> bool:
    """True if sentences do not start with capitals here (lower-cased corpora)."""
    starts = re.findall(r"[.!?]\s+([^\W\d_])", text)
    return bool(starts) and sum(c.isupper() for c in starts) * 5 < len(starts)


def _is_initial(letter: str, earlier: list[str], following: str, uncased: bool) -> bool:
    """True if a letter before a full stop stands for a name or word (J. Smith, i. e.), not itself (vitamin C.)."""
    chained = _ONE_LETTER.fullmatch(following) or (earlier and _ONE_LETTER.fullmatch(earlier[-1]))
    if letter.islower():
        return bool(chained) or (uncased and following not in _STARTERS)
    first = following.rstrip(".,;:!?").lower()
    named = not earlier or earlier[-1][0].isupper() or earlier[-1] in ("by", "and", "with")
    return bool(chained) or (named and first not in _STARTERS)


def _follows_abbreviation(before: str, following: str, uncased: bool) -> bool:
    """True if the full stop at the end of ``before`` belongs to an abbreviation or an initial."""
    words = before.split()
    word = words[-1].lstrip("([{\"'\u201c\u2018") if words and not before[-1].isspace() else ""
    low = word.lower()
    if low in _NUMBERED:
        return following[:1].isdigit() or (low == "st" and following[:1].isupper())
    if low in _HARD:
        return True
    if len(word) == 1 and word.isalpha():
        return _is_initial(word, words[:-1], following, uncased)
    if low in _SOFT or re.fullmatch(r"(?:[a-z]\.)+[a-z]", low):
        return following.rstrip(".,;:!?").lower() not in _STARTERS
    return False


def _split_line(line: str, uncased: bool) -> list[str]:
    sentences, start = [], 0
    for match in _END.finditer(line):
        following = _NEXT.match(line, match.end())
        if following is None:
            continue
        word, mark = following.group(1), match.group(0)
        if mark[0] not in _WIDE:
            if word[0].islower() and not uncased:
                continue
            if (
                mark[0] == "."
                and mark[:2] != ".."
                and _follows_abbreviation(line[max(start, match.start() - _LOOK_BACK) : match.start()], word, uncased)
            ):
                continue
        sentences.append(line[start : match.end()].strip())
        start = match.end()
    sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def split_sentences(text: str) -> list[str]:
    """Sentences of a plain text, in order; a line break always ends one. Empty for a blank text."""
    uncased = _uncased(text)
    return [sentence for line in text.splitlines() for sentence in _split_line(line.strip(), uncased)]


def mark_sentences(sentences: list[str]) -> str:
    """``["A.", "B."]`` -> ``A.<q> B.``"""
    return f"{SENTENCE_MARK} ".join(sentences)


def unmark_sentences(text: str) -> list[str]:
    """The sentences of a marked text (blank ones dropped); a text without marks is one sentence."""
    return [part.strip() for part in text.split(SENTENCE_MARK) if part.strip()]


def sentences_of(text: str) -> list[str]:
    """Sentences by marks where there are any, by rules otherwise."""
    return unmark_sentences(text) if SENTENCE_MARK in text else split_sentences(text)


def plain(text: str) -> str:
    """A marked text without its marks, on one line."""
    return " ".join(text.replace(SENTENCE_MARK, " ").split())
