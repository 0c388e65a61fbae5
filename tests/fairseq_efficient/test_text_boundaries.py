"""Boundaries of a unigram tokenizer against the pieces that sentencepiece itself gives."""

import io
import random
from typing import Any

import numpy as np
import pytest
import sentencepiece

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.boundaries import Segmenter, whole_words
from fairseq_efficient.text.language_models.read import END

SYLLABLES = [a + b for a in "bklmnrst" for b in ("a", "e", "i", "õ", "việ")]


def segments_of(text: str, processor: Any) -> list[str]:
    """The segments themselves; joined they are the text."""
    ends = np.flatnonzero(Segmenter(processor).boundaries(text)) + 1
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def sentence(draw: random.Random, words: int = 9) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(words))


@pytest.fixture(scope="module")
def processor() -> Any:
    draw = random.Random(0)
    lines = [sentence(draw) for _ in range(300)] + ["12 345 6789 0"] * 20
    return spm.load_model(spm.train_segmenter(lines, sum(map(len, lines)), 120), "m")


def naive(text: str, processor: Any) -> list[str]:
    """Segments of a text, word by word, from sentencepiece's pieces."""
    found, word = [], ""
    for character in text + "\1":  # \1: the end, no separator
        if character not in (" ", "\n", END, "\1"):
            word += character
            continue
        pieces = [piece.replace("▁", "") for piece in processor.encode(word, out_type=str)]
        pieces = [piece for piece in pieces if piece] or [""]
        assert "".join(pieces) == word
        last = pieces.pop() + character.replace("\1", "")
        found += [*pieces, *([last] if last else [])]
        word = ""
    return found


def test_same_segments_as_sentencepiece(processor: Any) -> None:
    draw = random.Random(1)
    for _ in range(200):
        parts = [draw.choice([sentence(draw, 2), " ", "  ", "\n", END, "Ж中x", "12", "", "\t", "z"]) for _ in range(8)]
        text = "".join(parts)
        found = segments_of(text, processor)
        assert "".join(found) == text and found == naive(text, processor)
        bits = Segmenter(processor).boundaries(text)
        assert bits.dtype == np.uint8 and len(bits) == len(text) and set(bits.tolist()) <= {0, 1}
        # of bytes: the boundary is on the last byte of the character
        expected = np.concatenate(
            [np.r_[np.zeros(len(c.encode()) - 1), bit] for c, bit in zip(text, bits, strict=True)] or [np.zeros(0)]
        )
        assert Segmenter(processor).boundaries(text.encode()).tolist() == expected.tolist()


def test_words_and_separators(processor: Any) -> None:
    word = "bakaviệ"
    own = [piece for piece in processor.encode(word, out_type=str) if piece != "▁"]
    own = [piece.replace("▁", "") for piece in own]
    assert len(own) > 1
    first, last = own[:-1], own[-1]
    assert segments_of(word, processor) == own
    assert segments_of(f"{word} {word}\n", processor) == [*first, last + " ", *first, last + "\n"]
    assert segments_of(f"  {word}\n\n", processor) == [" ", " ", *first, last + "\n", "\n"]
    assert segments_of(f"{word}{END}", processor) == [*first, last + END]
    assert segments_of("ЖЖ ", processor) == ["ЖЖ "]
    assert segments_of("2024 ", processor) == ["2", "0", "2", "4 "]
    assert segments_of("", processor) == []


def test_bytes_of_no_text(processor: Any) -> None:
    segmenter = Segmenter(processor)
    data = b"ba\xff\xfe ba\0ba \xe4"
    assert segmenter.boundaries(data, end=False).tolist()[:5] == [0, 0, 0, 0, 1]
    assert segmenter.boundaries(data, end=False)[-1] == 1 and segmenter.respelled == 2
    assert segmenter.boundaries(data)[data.index(b"\0")] == 1


def test_a_model_that_respells(processor: Any) -> None:
    model = io.BytesIO()
    draw = random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([sentence(draw) for _ in range(200)]), model_writer=model, vocab_size=80, minloglevel=2
    )
    segmenter = Segmenter(spm.load_model(model.getvalue(), "m"))
    bits = segmenter.boundaries("ﬁba\u200bka ▁▁x▁ baka")
    assert bits[:7].tolist() == [0, 0, 0, 0, 0, 0, 1] and segmenter.respelled == 2
    assert bits[-1] == 1


def test_any_cut_of_the_stream_gives_the_same(processor: Any) -> None:
    draw = random.Random(2)
    for _ in range(20):
        text = "".join(draw.choice([sentence(draw, 2), " ", "\n", END, "Ж中"]) for _ in range(10))
        whole = Segmenter(processor).boundaries(text).tolist()
        for size in range(1, 51, 3):
            for one in (text, text.encode()):
                blocks = [one[start : start + size] for start in range(0, len(one), size)]
                words: list[Any] = list(whole_words(blocks))
                assert one[:0].join(words) == one  # type: ignore[arg-type]
                if isinstance(one, str):
                    assert np.concatenate([Segmenter(processor).boundaries(word) for word in words]).tolist() == whole


def test_endless_words_are_cut() -> None:
    for size in (1, 3, 100):
        text = "ab " + "c" * 10 + " d"
        blocks = [text[start : start + size] for start in range(0, len(text), size)]
        assert "".join(whole_words(blocks, longest=4)) == text
        assert max(map(len, whole_words(["c" * 100], longest=4))) == 4


def test_training_is_deterministic() -> None:
    lines = [sentence(random.Random(seed)) for seed in range(100)]
    size = sum(map(len, lines))
    assert spm.train_segmenter(lines, size, 60) == spm.train_segmenter(lines, size, 60)
    with pytest.raises(UserError, match="--unigram-vocab 8: sentencepiece cannot train"):
        spm.train_segmenter(lines, size, 8)
    with pytest.raises(UserError, match=r"x: not a sentencepiece model"):
        spm.load_model(b"no", "x")
