# ruff: noqa: RUF001 - letters of other alphabets are meant
"""The text8 cleaner: known lines, five alphabets, any cut of the stream."""

import random
import unicodedata

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.language_models.clean import ALPHABETS, DIGITS, clean_text, cleaner
from fairseq_efficient.text.language_models.read import END, ignore

LETTERS = (
    "abcxyzqwABCIÉéåÅöşŞçğİıIđĐœßŁøẞ" + "ệẾựỡ" + "שלוםםץֹׁ־׳״" + "АбвΣςαΩ" + "中文ｆｕＬ𝐁ﬁǆſⅣ"
    "0123456789٣²½" + "\u0300\u0301\u0302\u0303\u0307\u0309\u0323\u031b\u0331\u20dd\u1161\u11a8\u1100\uac00"
    "\u00ad\u200b\u200d\ufeff \t\n\r\u00a0\u2003▁.,-'\"™㎏…\x07" + END
)  # fmt: skip


def texts(count: int, longest: int = 60) -> list[str]:
    """Strings of everything that a cleaner may meet, in NFC or NFD or neither."""
    draw = random.Random(1)
    made = ["".join(draw.choices(LETTERS, k=draw.randrange(longest))) for _ in range(count)]
    return [unicodedata.normalize(draw.choice(("NFC", "NFD")), one) if draw.random() < 0.6 else one for one in made]


@pytest.mark.parametrize(
    "lang, text, expected",
    [
        (
            "en",
            "Anarchism originated as a term of abuse first used against early working class radicals including the "
            "[[Diggers]] of the [[English Revolution]]",
            "anarchism originated as a term of abuse first used against early working class radicals including the "
            "diggers of the english revolution",
        ),
        ("en", "20 cats", "two zero cats"),
        ("en", "  in 1789, don't!", "in one seven eight nine don t"),
        ("en", "Café naïve ﬁne Ｆｕｌｌ 𝐁old Straße x² Ⅳ", "cafe naive fine full bold strasse x iv"),
        ("en", "soft\u00adhyphen zero\u200bwidth Москва", "softhyphen zero width"),
        ("fi", "Åbo, šakki 10 €", "åbo sakki yksi nolla"),
        ("he", "1 שָׁלוֹם 20", "אחד שלום שניים אפס"),
        ("tr", "IĞDIR İstanbul Çağ", "ığdır istanbul çağ"),
        ("tr", "IĞDIR, I\u0307zmir wax 5", "ığdır izmir a beş"),
        ("vi", "Tiếng Việt 3 wifi", "tiếng việt ba i i"),
        ("en", "One\n\n Two \n three" + END + "4" + END, "one\ntwo\nthree" + END + "four" + END),
    ],
)
def test_known_lines(lang: str, text: str, expected: str) -> None:
    assert clean_text(text, "text8", lang) == expected


@pytest.mark.parametrize("lang", ALPHABETS)
def test_alphabets_and_digits(lang: str) -> None:
    sizes = {"en": 26, "fi": 29, "he": 30, "tr": 29, "vi": 89}
    assert len(ALPHABETS[lang]) == len(set(ALPHABETS[lang])) == sizes[lang]
    assert unicodedata.is_normalized("NFC", ALPHABETS[lang])
    words = DIGITS[lang].split()
    assert len(set(words)) == 10 and set("".join(words)) <= set(ALPHABETS[lang])
    assert clean_text("0123456789", "text8", lang) == DIGITS[lang]
    assert clean_text(ALPHABETS[lang], "text8", lang) == ALPHABETS[lang]
    assert not set("qwx") & set(ALPHABETS["tr"]) and not set("fjwz") & set(ALPHABETS["vi"])


@pytest.mark.parametrize("lang", ALPHABETS)
def test_properties_of_any_text(lang: str) -> None:
    allowed = set(ALPHABETS[lang]) | set(" \n" + END)
    for text in texts(400):
        clean = clean_text(text, "text8", lang)
        assert set(clean) <= allowed
        assert clean_text(clean, "text8", lang) == clean
        for form in ("NFC", "NFD"):
            assert clean_text(unicodedata.normalize(form, text), "text8", lang) == clean
        for document in clean.split(END):
            assert document == document.strip(" \n")
            assert not any(run in document for run in ("  ", " \n", "\n ", "\n\n"))


@pytest.mark.parametrize("kind, lang", [("text8", "en"), ("text8", "vi"), ("text8", "tr"), ("spaces", "en")])
def test_any_cut_of_the_stream_gives_the_same(kind: str, lang: str) -> None:
    clean = cleaner(kind, lang)
    for text in texts(60, 120):
        counts = []
        whole = "".join(clean([text], counts.append))
        for size in range(1, 51):
            dropped: list[int] = []
            blocks = [text[start : start + size] for start in range(0, len(text), size)]
            assert "".join(clean(blocks, dropped.append)) == whole
            assert sum(dropped) == sum(counts)


def test_empty_documents_are_counted() -> None:
    dropped: list[int] = []
    text = f"{END}...{END}a{END} 😀 \n{END}{END}b"
    assert "".join(cleaner("text8")([text], dropped.append)) == f"a{END}b{END}"
    assert sum(dropped) == 4


def test_spaces_changes_nothing_else() -> None:
    assert clean_text("  A\t\u00a0b  \r\n\n C\u2028D ', é ", "spaces") == "A b\nC D ', é"
    assert clean_text(" a  b ", "none") == " a  b "


def test_unknown_language() -> None:
    with pytest.raises(UserError, match="--lang xx: not known; there are en, fi"):
        cleaner("text8", "xx")


def test_a_long_run_is_not_slow() -> None:
    assert clean_text("a" + " ." * 200_000 + "b" + "\u0301" * 2000, "text8") == "a b"
    assert "".join(cleaner("spaces")([" " * 100_000] * 20, ignore)) == ""
