"""Sub-words as symbols: lines encoded one by one however the text is cut, counts, dictionaries, files."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm
from fairseq_efficient.text.language_models.binarize import dictionary_text, write_split
from fairseq_efficient.text.language_models.read import END
from fairseq_efficient.text.language_models.subwords import Pieces, SubwordCoder, piece_entries, whole_lines
from fairseq_efficient.text.symbols import EOS, NEWLINE, SPECIALS, UNK

SYLLABLES = [a + b for a in "bklmnrst" for b in ("a", "e", "i", "o")]


def text(documents: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(40)]
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 9))) + "." for _ in range(3 * documents)]
    return "".join("\n".join(lines[3 * i : 3 * i + 3]) + END for i in range(documents))


@pytest.fixture(scope="module")
def processor() -> Any:
    lines = text(80).replace(END, "\n").split("\n")
    serialized = spm.train_spm(lines, sum(map(len, lines)), 90, "nfkc_cf", (NEWLINE,))
    return spm.load_model(serialized, "m")


def cut(stream: str, seed: int) -> list[str]:
    draw, parts = random.Random(seed), []
    while stream:
        size = draw.choice((1, 3, 17, 200))
        parts.append(stream[:size])
        stream = stream[size:]
    return parts


def symbols_of(processor: Any) -> list[str]:
    return spm.model_pieces(processor)


def by_hand(processor: Any, stream: str) -> list[list[str]]:
    """The symbols of each document."""
    found = []
    for document in stream.split(END)[:-1]:
        lines = [processor.encode(line, out_type=str) for line in document.split("\n")]
        joined = [piece for line in lines for piece in (*line, NEWLINE)]
        found.append(joined[:-1])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_lines_stay_whole(seed: int):
    stream = text(9, seed)
    blocks = list(whole_lines(cut(stream, seed)))
    assert "".join(blocks) == stream and all(block[-1] in f"\n{END}" for block in blocks)
    short = list(whole_lines(cut("abc de " * 40, seed), longest=20))
    assert "".join(short) == "abc de " * 40 and max(map(len, short)) <= 20
    assert all(block.endswith(" ") for block in short)
    assert list(whole_lines(["x" * 30, "y"], longest=10)) == ["x" * 10] * 3 + ["y"]


@pytest.mark.parametrize("eos", [True, False])
def test_files_hold_the_models_pieces(processor: Any, tmp_path: Path, eos: bool):
    stream = text(30, 5) + "Kaba LOMI  bo\n\n ba" + END
    entries = piece_entries(processor, "m", cut(stream, 1))
    (tmp_path / "dict.txt").write_text(dictionary_text(entries), encoding="utf-8")
    words = Dictionary.load(str(tmp_path / "dict.txt"))
    coder = SubwordCoder(processor, [symbol for symbol, _ in entries], "m")
    written = write_split(cut(stream, 2), tmp_path / "train", coder, eos=eos)
    items = data_utils.load_indexed_dataset(str(tmp_path / "train"), words, "mmap")
    found = [[words[index] for index in item] for item in items]
    expected = by_hand(processor, stream)
    assert found == [[*document, "</s>"] if eos else document for document in expected]
    assert written.tokens == sum(map(len, found)) and written.unknown == 0
    assert found[-1][: -1 if eos else None].count(NEWLINE) == 2


def test_types_are_sorted_by_how_often_they_occur(processor: Any):
    """As an adaptive softmax needs it; every piece is there, also one that does not occur."""
    stream = text(30, 5)
    entries = piece_entries(processor, "m", [stream])
    counts: dict[str, int] = {}
    for document in by_hand(processor, stream):
        for piece in document:
            counts[piece] = counts.get(piece, 0) + 1
    assert {symbol: count for symbol, count in entries if count} == counts
    numbers = [count for _, count in entries]
    assert numbers == sorted(numbers, reverse=True) and {symbol for symbol, _ in entries} == set(symbols_of(processor))


def test_lower_case_is_the_models(processor: Any):
    coder = SubwordCoder(processor, symbols_of(processor), "m")
    assert coder.encode("KABA lo\n").tolist() == coder.encode("kaba lo\n").tolist()


def test_what_the_model_cannot_spell_is_unknown(processor: Any):
    coder = SubwordCoder(processor, symbols_of(processor), "m")
    found = coder.encode(f"ba 中 ba{END}")
    assert found.dtype == np.uint16 and found[-1] == EOS and list(found).count(UNK) == 1
    assert coder.encode(END).tolist() == [EOS] and coder.encode("").tolist() == []


def test_a_model_without_newlines():
    lines = text(80).replace(END, "\n").split("\n")
    plain = spm.load_model(spm.train_spm(lines, sum(map(len, lines)), 90, marks=()), "m")
    assert Pieces(plain, "m").encode(f"ba be{END}")[-1] == plain.get_piece_size()
    with pytest.raises(UserError, match=r"m: has no piece <0x0A> .* say --newlines space"):
        Pieces(plain, "m").encode("ba\nbe")


def test_another_dictionary_is_refused(processor: Any):
    with pytest.raises(UserError, match="is not the model's dictionary"):
        SubwordCoder(processor, symbols_of(processor)[1:], "m")
    assert len(SPECIALS) == 4
