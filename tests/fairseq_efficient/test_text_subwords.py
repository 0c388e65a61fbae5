"""Tokenizers and the dictionaries that belong to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.subwords import Subwords, dictionary_beside, read_subwords, train_subwords
from fairseq_efficient.text.symbols import SPECIALS
from tests.bert_reference import VOCABULARY


def write_vocabulary(path: Path, tokens: list[str] = VOCABULARY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def write_bytes_bpe(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt"), special: bool = True) -> Path:
    """Byte-level BPE of all bytes and a few merges, numbered as RoBERTa's."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("a", "t")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    tokens = [*SPECIALS, *tokens, "<mask>"] if special else tokens
    (folder / names[0]).write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / names[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def wordpiece(tmp_path: Path) -> Subwords:
    return read_subwords(write_vocabulary(tmp_path / "vocab.txt"))


def test_wordpiece_rows_are_a_permutation(wordpiece: Subwords) -> None:
    rows, symbols = wordpiece.rows(), wordpiece.dictionary()
    assert sorted(rows) == list(range(len(VOCABULARY)))
    assert [VOCABULARY[row] for row in rows[:4]] == ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    assert VOCABULARY[rows[-1]] == "[MASK]" and len(symbols) == len(VOCABULARY) - 5
    assert symbols == [token for token in VOCABULARY if token not in ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")]
    table = wordpiece.table(symbols, "dict.txt")
    assert np.array_equal(table[rows], np.arange(len(rows)))  # id -> row of the dictionary, and back


def test_wordpiece_pieces(wordpiece: Subwords) -> None:
    assert (
        wordpiece.encode("The film WAS played, isn't it?")
        == ("the film was play ##ed , i ##s ##n ' t i ##t ?".replace("i ##s", "is")).split()
    )
    assert wordpiece.encode("caf\u00e9 \u4e2d") == [
        "c",
        "##a",
        "##f",
        "##e",
        "<unk>",
    ]  # accents go, and what is unknown
    assert wordpiece.encode("[SEP] <s> [MASK]")[0] == "<unk>"  # special tokens written in a text are text
    assert "</s>" not in wordpiece.encode("[SEP] </s> [CLS]") and "<mask>" not in wordpiece.encode("[MASK] <mask>")


def test_case(tmp_path: Path) -> None:
    tokens = [*VOCABULARY, "The", "Film"]
    assert read_subwords(write_vocabulary(tmp_path / "a" / "vocab.txt", tokens)).encode("The Film") == ["The", "Film"]
    path = write_vocabulary(tmp_path / "b" / "vocab.txt", tokens)
    assert read_subwords(path, cased=False).encode("The Film") == ["the", "film"]
    (path.parent / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert read_subwords(path).encode("The Film") == ["the", "film"]
    assert read_subwords(path, cased=True).encode("The Film") == ["The", "Film"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" abcdefgist.,!?'-()09$#[]{}%:;\u00e9\u4e2d\u0130\u00df", max_size=40))
def test_decoded_wordpieces_encode_into_the_same(text: str) -> None:
    subwords = _SHARED["wordpiece"]
    pieces = subwords.encode(text)
    assert not any(any(letter.isspace() for letter in piece) for piece in pieces)
    again = subwords.decode(pieces)
    if "<unk>" not in pieces:
        assert subwords.encode(again) == pieces


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_byte_level_comes_back_exactly(text: str) -> None:
    subwords = _SHARED["bytes"]
    assert subwords.decode(subwords.encode(text)) == text
    ids, offsets = subwords.encode_offsets([text])[0]
    assert len(ids) == len(offsets) and (offsets[:, 0] <= offsets[:, 1]).all()


_SHARED: dict[str, Subwords] = {}


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizers")
    _SHARED["wordpiece"] = read_subwords(write_vocabulary(folder / "vocab.txt"))
    _SHARED["bytes"] = read_subwords(write_bytes_bpe(folder / "bytes"))


def test_decoding_sets_english_punctuation(wordpiece: Subwords) -> None:
    for text in ("the film isn't bad, is it?", "was (not) good!", "the film's play"):
        assert wordpiece.decode(wordpiece.encode(text)) == text
    assert wordpiece.decode(["the", "<unk>", "<mask>", "nowhere"]) == "the <unk> <mask> nowhere"
    assert wordpiece.decode([]) == "" and wordpiece.decode(["##ed"]) == "##ed"


def test_words_begin(wordpiece: Subwords) -> None:
    assert wordpiece.starts_word("the") and not wordpiece.starts_word("##ed") and wordpiece.starts_word("<s>")
    assert _SHARED["bytes"].starts_word("\u0120the") and not _SHARED["bytes"].starts_word("at")


def test_byte_level_rows_and_offsets(tmp_path: Path) -> None:
    subwords = read_subwords(write_bytes_bpe(tmp_path))
    assert np.array_equal(subwords.rows(), np.arange(len(subwords.tokens)))  # RoBERTa's order is fairseq's
    text = "that the \u00e9t\u00e9"
    ids, offsets = subwords.encode_offsets([text])[0]
    assert [text[a:b] for a, b in offsets][:3] == ["th", "at", "the"]  # without the space
    assert subwords.encode(text)[2] == "\u0120the" and len(ids) == len(subwords.encode(text))
    assert subwords.decode([*subwords.encode("that"), "<mask>", *subwords.encode(" the")]) == "that <mask> the"


def test_fairseqs_own_dictionary_of_numbers(tmp_path: Path) -> None:
    """encoder.json has no special tokens; the dictionary's symbols are its ids, by frequency."""
    subwords = read_subwords(write_bytes_bpe(tmp_path, ("encoder.json", "vocab.bpe"), special=False))
    order = list(np.random.default_rng(0).permutation(len(subwords.tokens)))
    symbols = [*map(str, order), "madeupword0000"]
    table = subwords.table(symbols, "dict.txt")
    assert table[order[0]] == len(SPECIALS) and table[order[5]] == len(SPECIALS) + 5
    with pytest.raises(UserError, match=r"dict\.txt: is not the dictionary of .*encoder\.json \(1 missing, 0 unknown"):
        subwords.table(symbols[1:], "dict.txt")


def test_a_tokenizer_json_is_the_same(wordpiece: Subwords, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer.json").write_text(wordpiece.to_json(), encoding="utf-8")
    again = read_subwords(tmp_path / "m")
    assert again.symbols == wordpiece.symbols and np.array_equal(again.rows(), wordpiece.rows())
    assert again.encode("the film isn't [SEP]") == wordpiece.encode("the film isn't [SEP]")
    ids = again.encode_ids(["a film", "", "the"])
    assert [len(one) for one in ids] == [2, 0, 1] and ids[0].dtype == np.int64
    offsets = again.encode_offsets(["  a film"])[0][1]
    assert offsets.tolist() == [[2, 3], [4, 8]]
    assert dictionary_beside(tmp_path / "m", again) == (again.dictionary(), None)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_special_tokens_in_a_text_are_text(kind: str, tmp_path: Path) -> None:
    """Also where a tokenizer.json lists them as special, and adds them, and cuts, and pads."""
    names = ("[CLS]", "[SEP]", "[MASK]") if kind == "wordpiece" else ("<s>", "</s>", "<mask>")
    plain = _SHARED[kind]
    tokenizer = Tokenizer.from_str(plain.to_json())
    tokenizer.add_special_tokens(list(names))
    ids: list[Any] = [tokenizer.token_to_id(name) for name in names]
    tokenizer.post_processor = processors.BertProcessing((names[1], ids[1]), (names[0], ids[0]))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    text = f"{names[0]} the good{names[1]} {names[2]}"
    assert tokenizer.encode(text).ids[0] == ids[0] and len(tokenizer.encode(text).ids) == 9
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    subwords = read_subwords(tmp_path)
    assert subwords.encode(text) == plain.encode(text) and len(subwords.encode(text)) > 3
    assert not {"<s>", "</s>", "<mask>"} & set(subwords.encode(text))
    assert np.array_equal(subwords.rows(), plain.rows())


def test_holes_and_tokens_that_fairseq_cannot_read(tmp_path: Path) -> None:
    tokens = [*VOCABULARY[:2], "", "a\u00a0b", *VOCABULARY[2:], "good"]  # a blank line, a blank inside, one twice
    subwords = read_subwords(write_vocabulary(tmp_path / "vocab.txt", tokens), rows=len(tokens) + 3)
    symbols = subwords.dictionary()
    assert len(symbols) == len(tokens) + 3 - 5 and len(set(symbols)) == len(symbols)
    assert "a<0xA0>b" in symbols and not any(any(c.isspace() for c in symbol) for symbol in symbols)
    assert sum(symbol.startswith("madeupword") for symbol in symbols) == 5  # blank, the first "good", 3 rows
    subwords.table(symbols, "dict.txt")


def test_mistakes(tmp_path: Path, wordpiece: Subwords) -> None:
    def fails(why: str, path: Path, **kwargs: object) -> None:
        with pytest.raises(UserError, match=why):
            read_subwords(path, **kwargs)  # type: ignore[arg-type]

    fails("No such file", tmp_path / "no.json")
    (tmp_path / "empty").mkdir()
    fails("no tokenizer in this folder", tmp_path / "empty")
    (tmp_path / "bad.json").write_text("{}")
    fails(r"bad\.json: not a tokenizer", tmp_path / "bad.json")
    (tmp_path / "latin.txt").write_bytes(b"[UNK]\ncaf\xe9\n")
    fails(r"latin\.txt: not UTF-8", tmp_path / "latin.txt")
    fails("not a WordPiece vocabulary", write_vocabulary(tmp_path / "a.txt", ["a", "b"]))
    fails(r"has no token \[CLS\]", write_vocabulary(tmp_path / "b.txt", ["[UNK]", "[PAD]", "[SEP]"]))
    fails("is one of fairseq's own", write_vocabulary(tmp_path / "c.txt", [*VOCABULARY, "<pad>"]))
    fails("ids .* are both", write_vocabulary(tmp_path / "d.txt", [*VOCABULARY, "x\u00a0y", "x<0xA0>y"]))
    fails("more than the 10 rows", write_vocabulary(tmp_path / "e.txt"), rows=10)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "tokenizer.json").write_text(wordpiece.to_json(), encoding="utf-8")
    fails("says itself whether it keeps case", tmp_path / "f", cased=True)
    folder = write_bytes_bpe(tmp_path / "g")
    (folder / "merges.txt").write_text("a b c\n")
    fails(r"merges\.txt:1: not two tokens", folder)
    (folder / "merges.txt").unlink()
    fails(r"merges\.txt: No such file", folder)
    with pytest.raises(
        UserError, match=r"d\.txt: is not the dictionary of .*vocab\.txt \(0 missing, 1 unknown, as 'zz'"
    ):
        wordpiece.table([*wordpiece.dictionary(), "zz"], "d.txt")
    with pytest.raises(UserError, match=f"{len(VOCABULARY) - 5} missing, 2 unknown"):
        wordpiece.table(["zz", "yy"], "d.txt")


def test_a_unigram_tokenizer(tmp_path: Path) -> None:
    pieces = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581the", -1.0),
        ("\u2581", -2.0),
        ("a", -3.0),
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    subwords = read_subwords(tmp_path)
    assert (
        subwords.encode("the a") == ["\u2581the", "\u2581", "a"]
        and subwords.decode(["\u2581the", "\u2581", "a"]) == "the a"
    )
    assert np.array_equal(subwords.rows(), np.arange(8))


def test_a_trained_tokenizer(tmp_path: Path) -> None:
    """Any text comes back, in lower case; the same texts make the same tokenizer; a reader reads it."""
    texts = ["The film was played, and it was GOOD", "the films are played again", "\u00e9t\u00e9 \u4e2d <s> </s>"] * 9
    subwords = train_subwords(iter(texts), 300)
    assert len(subwords.symbols) == 300 and subwords.kind == "BPE"
    assert train_subwords(texts, 300).to_json() == subwords.to_json()
    assert subwords.symbols[:4] == list(SPECIALS) and len(subwords.dictionary()) == 295
    assert "\u0120was" in subwords.encode("it was")  # learned
    for text in (*texts, "never seen: \U0001f600\n\t[SEP]"):
        assert subwords.decode(subwords.encode(text)) == text.lower()
    (tmp_path / "tokenizer.json").write_text(subwords.to_json(), encoding="utf-8")
    assert read_subwords(tmp_path).encode(texts[0]) == subwords.encode(texts[0])
    cased = train_subwords(texts, 300, cased=True)
    assert cased.decode(cased.encode(texts[0])) == texts[0]
    assert len(train_subwords(["ab ab"], 9000).symbols) == 263  # all there is to learn: ab, and with a space
    with pytest.raises(UserError, match="--vocab-size 200: must be at least 261"):
        train_subwords(texts, 200)
