import pytest

from fairseq_efficient.text.clean import clean_source, clean_target
from fairseq_efficient.text.sentences import mark_sentences, plain, sentences_of, split_sentences, unmark_sentences


@pytest.mark.parametrize(
    "text, expected",
    [
        ("We propose it. It works.", ["We propose it.", "It works."]),
        (
            "As in Fig. 3 the loss falls. See Eq. 2 and Tab. 1.",
            ["As in Fig. 3 the loss falls.", "See Eq. 2 and Tab. 1."],
        ),
        ("Smith et al. (2004) did. We do not.", ["Smith et al. (2004) did.", "We do not."]),
        ("It was shown by Smith et al. We go on.", ["It was shown by Smith et al.", "We go on."]),
        ("It is 3.5 % of 1.2 e.g. Here. Done", ["It is 3.5 % of 1.2 e.g. Here.", "Done"]),
        ("J. R. Smith and K. Jones wrote. Dr. Who read.", ["J. R. Smith and K. Jones wrote.", "Dr. Who read."]),
        ("They took vitamin C. We did not.", ["They took vitamin C.", "We did not."]),
        (
            'He said "no." She left! Why? (Nobody knows.) End',
            ['He said "no."', "She left!", "Why?", "(Nobody knows.)", "End"],
        ),
        ("It depends ... on this. E. coli grows.", ["It depends ... on this.", "E. coli grows."]),
        ("BACKGROUND\nWe ask.\nRESULTS\nWe see. And so", ["BACKGROUND", "We ask.", "RESULTS", "We see.", "And so"]),
        ("all lower case here. the second one, i. e. this, is here. a third.", None),
        ("It ends with U.S. The next begins.", ["It ends with U.S.", "The next begins."]),
        ("tokenised text ends . The next one .", ["tokenised text ends .", "The next one ."]),
        ("\u7b2c\u4e00\u3002\u7b2c\u4e8c\u3002", ["\u7b2c\u4e00\u3002", "\u7b2c\u4e8c\u3002"]),
        ("  \n ", []),
        ("No end", ["No end"]),
    ],
)
def test_split(text: str, expected: list[str] | None) -> None:
    if expected is None:
        expected = ["all lower case here.", "the second one, i. e. this, is here.", "a third."]
    assert split_sentences(text) == expected


def test_splitting_loses_nothing() -> None:
    text = "A b. C d (e.g. F). G. H. Smith et al. say so! Right? no.  12. End. vitamin C."
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_marks_round_trip() -> None:
    sentences = ["One here.", "Two there.", "Three"]
    marked = mark_sentences(sentences)
    assert marked == "One here.<q> Two there.<q> Three"
    assert unmark_sentences(marked) == sentences == sentences_of(marked)
    assert plain(marked) == "One here. Two there. Three"
    assert unmark_sentences("<q> A <q><q>") == ["A"]
    assert sentences_of("One. Two.") == ["One.", "Two."]


def test_cleaning() -> None:
    assert clean_source(" a\u00a0b\tc\r\nd\u200be <q> \ufb01n\x07 ") == "a b c d e fin"
    assert clean_source("\ufb01", "nfc") == "\ufb01" == clean_source("\ufb01", "none")
    assert clean_target(("A b. C d.",), False) == "A b.<q> C d."
    assert clean_target(("A b. C d.",), True) == "A b. C d."
    assert clean_target(("A b. C d.", " ", "E <q> f"), True) == "A b. C d.<q> E f"
    assert clean_target(("A b. C <q> d. E",), False) == "A b. C<q> d. E"
    assert clean_target((" \n ",), False) == ""
