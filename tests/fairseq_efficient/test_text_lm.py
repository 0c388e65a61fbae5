"""Symbols, dictionaries and files of language-model data, as fairseq reads them."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.tokenizer import tokenize_line

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import spm, symbols
from fairseq_efficient.text.binarize import TokenWriter
from fairseq_efficient.text.boundaries import Segmenter
from fairseq_efficient.text.language_models.binarize import (
    Coder,
    SymbolCounter,
    WordCounter,
    dictionary_text,
    write_split,
)
from fairseq_efficient.text.language_models.read import END
from tests.util import ROOT

TEXT = "The cat,\nsat \u00a0\x07\u2028é 中😀 <0x0A> </s>\t~"


def test_symbols_invert() -> None:
    for encode, decode in (
        (symbols.encode_characters, symbols.decode_characters),
        (symbols.encode_bytes, symbols.decode_bytes),
    ):
        for text in (TEXT, "", "a", " ", "  a ", "\n\n"):
            coded = encode(text)
            assert decode(coded) == text
            assert coded == " ".join(tokenize_line(coded))  # what fairseq splits at is nowhere else
        assert encode("the cat▁") == "t h e ▁ c a t ▁"
        assert decode("a <unk> ▁ b") == "a<unk> b"
    assert symbols.encode_characters("a\n\u2028") == "a <0x0A> <0x2028>"
    assert symbols.encode_bytes("é\n") == "<0xC3> <0xA9> <0x0A>"
    assert symbols.decode_bytes("<0xC3> a") == "\ufffda"
    assert symbols.decode_characters("<0xFFFFFF>") == "<0xFFFFFF>"


def test_byte_symbols() -> None:
    assert len(set(symbols.BYTE_SYMBOLS)) == 256
    assert [symbols.BYTE_SYMBOLS[i] for i in (0, 32, 33, 126, 127, 255)] == [
        "<0x00>",
        "▁",
        "!",
        "~",
        "<0x7F>",
        "<0xFF>",
    ]
    assert all(len(tokenize_line(symbol)) == 1 for symbol in symbols.BYTE_SYMBOLS)


def load(prefix: Path) -> list[np.ndarray]:
    return [item.numpy() for item in data_utils.load_indexed_dataset(str(prefix), None, "mmap")]


def dictionary(folder: Path, entries: list[tuple[str, int]]) -> Dictionary:
    (folder / "dict.txt").write_text(dictionary_text(entries), encoding="utf-8")
    return Dictionary.load(str(folder / "dict.txt"))


DOCUMENTS = ["The cat\nsat.", " ", "é 中 é", "x" * 70_000, "😀\x07"]


@pytest.mark.parametrize("kind", ["characters", "bytes", "words"])
@pytest.mark.parametrize("eos", [True, False])
def test_files_are_what_fairseq_would_write(tmp_path: Path, kind: str, eos: bool) -> None:
    text = END.join(DOCUMENTS) + END
    stream: Any = text.encode() if kind == "bytes" else text
    counter: Any = WordCounter() if kind == "words" else SymbolCounter(kind)
    counter.add(stream)
    words = dictionary(tmp_path, counter.entries())
    encode = {"characters": symbols.encode_characters, "bytes": symbols.encode_bytes}.get(
        kind, lambda document: document.replace("\n", " <0x0A> ")
    )
    # threshold, sorting and padding as fairseq-preprocess does them
    theirs = Dictionary()
    for document in DOCUMENTS:
        theirs.encode_line(encode(document), add_if_not_exist=True, append_eos=False)
    assert {s: theirs.get_count(theirs.index(s)) for s in theirs.symbols[4:]} == {
        s: words.get_count(words.index(s)) for s in words.symbols[4:] if words.get_count(words.index(s))
    }
    if kind == "words":
        theirs.finalize(padding_factor=1)
        assert theirs.symbols == words.symbols
    if kind == "bytes":
        assert len(words) == 260
    for size in (1, 5, 1000, 10**6):
        blocks = [stream[start : start + size] for start in range(0, len(stream), size)]
        if size == 1:
            blocks = [*blocks[:30], stream[30:]]
        written = write_split(blocks, tmp_path / "train", Coder(words.symbols[4:], kind), eos=eos)
        items = load(tmp_path / "train")
        expected = [words.encode_line(encode(one), add_if_not_exist=False, append_eos=eos).numpy() for one in DOCUMENTS]
        assert [item.tolist() for item in items] == [one.tolist() for one in expected]
        assert written.tokens == sum(map(len, expected)) and written.unknown == 0
        assert written.longest == max(map(len, expected))


def test_dictionary_order_and_threshold(tmp_path: Path) -> None:
    counter = SymbolCounter("characters")
    counter.add("bbb aa\ncc中" + END)
    counter.add("中")
    assert counter.entries() == [("b", 3), ("a", 2), ("c", 2), ("中", 2), ("<0x0A>", 1), ("▁", 1)]
    assert counter.entries(threshold=2) == [("b", 3), ("a", 2), ("c", 2), ("中", 2), ("▁", 1)]
    empty = SymbolCounter("characters")
    empty.add("a")
    assert empty.entries() == [("a", 1), ("▁", 0)]
    coder = Coder(["b", "▁"], "characters")
    assert coder.dtype == np.uint16 and coder.encode("b a😀" + END).tolist() == [4, 5, 3, 3, 2]
    words = WordCounter()
    words.add("b a b </s> <unk> c" + END + "a d\n")
    assert words.entries() == [("a", 2), ("b", 2), ("<0x0A>", 1), ("c", 1), ("d", 1)]
    assert words.entries(threshold=2) == words.entries(size=6) == [("a", 2), ("b", 2)]
    coded = Coder(["a", "b"], "words").encode("b </s>\u00a0a <unk>" + END)
    assert coded.tolist() == [5, 3, 4, 3, 2]
    assert Coder([f"w{i}" for i in range(65_600)], "words").dtype == np.int32


@pytest.mark.parametrize(
    "kind, listed, why",
    [
        ("characters", ["a", "b"], "d: lacks ▁, the space"),
        ("bytes", ["▁", "a"], "d: lacks <0x00>: not a dictionary for --symbols bytes"),
        ("characters", ["▁", "the"], "d:2: 'the' is not one character"),
        ("characters", ["▁", "a", "a"], "d:3: 'a' is there twice"),
        ("words", ["a", "</s>"], "d:2: '</s>' is there twice or one of fairseq's own"),
    ],
)
def test_dictionaries_of_another_kind(kind: str, listed: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        symbols.check_symbols(listed, kind, "d")
    symbols.check_symbols(["▁", "<0x0A>", "madeupword0001", "<mask>", "é"], "characters", "d")


def test_writer_in_blocks(tmp_path: Path) -> None:
    draw = random.Random(0)
    items = [draw.choices(range(256), k=draw.randrange(1, 20)) for _ in range(40)]
    flat = np.concatenate(items).astype(np.uint8)
    ends = np.cumsum([len(item) for item in items])
    for size in (1, 3, 50, 1000):
        with TokenWriter(tmp_path / "a", np.dtype(np.uint8)) as writer:
            for start in range(0, len(flat), size):
                inside = ends[(ends > start) & (ends <= start + size)]
                writer.extend(flat[start : start + size], inside - start)
        assert [item.tolist() for item in load(tmp_path / "a")] == items
    with pytest.raises(ValueError, match="not ended"), TokenWriter(tmp_path / "b", np.dtype(np.uint8)) as writer:
        writer.extend(flat, ends[:-1])
    with TokenWriter(tmp_path / "c", np.dtype(np.uint8)) as writer:
        writer._open = 2**31 - 10
        with pytest.raises(UserError, match=r"c: a document of more than 2,147,483,647 tokens"):
            writer.extend(flat[:20], np.array([20]))
        writer._open = 0


@pytest.mark.parametrize("raw, kind", [(True, "bytes"), (False, "bytes"), (False, "characters")])
@pytest.mark.parametrize("eos", [True, False])
def test_boundaries_beside_tokens(tmp_path: Path, raw: bool, kind: str, eos: bool) -> None:
    """However the stream is cut; EOS carries the boundary of the last word, as a newline would."""
    draw = random.Random(0)
    lines = ["".join(draw.choices(["talo", "kissa", " ", "n"], k=20)) for _ in range(50)]
    processor = spm.load_model(spm.train_segmenter(lines, 2000, 30), "m")
    listed = list(symbols.BYTE_SYMBOLS) if kind == "bytes" else ["▁", *"alosn"]
    for _ in range(15):
        if raw:
            documents: list[Any] = [bytes(draw.choices(b"talo kisn\n\0 \xff\xc3\xa4", k=draw.randrange(1, 80)))]
            stream: Any = documents[0]
        else:
            documents = ["".join(draw.choices("talo kissaä\n中 ", k=draw.randrange(1, 30))) for _ in range(4)]
            documents = [one.encode() for one in documents] if kind == "bytes" else documents
            stream = b"".join(one + b"\0" for one in documents) if kind == "bytes" else END.join([*documents, ""])
        newline: Any = ("\n" if kind == "characters" else b"\n") if eos else stream[:0]
        expected = [Segmenter(processor).boundaries(one + newline, end=False).tolist() for one in documents]
        for size in (1, 2, 3, 7, 10**6):
            blocks = [stream[start : start + size] for start in range(0, len(stream), size)]
            write_split(blocks, tmp_path / "a", Coder(listed, kind, raw), Segmenter(processor), eos)
            assert [item.tolist() for item in load(tmp_path / "a.boundaries")] == expected
            assert [len(item) for item in load(tmp_path / "a")] == list(map(len, expected))


MEMORY = r"""
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fairseq_efficient.text.language_models.prepare import Options, prepare
from fairseq_efficient.text.language_models.read import read_text
folder, symbols, clean, unigram = Path(sys.argv[2]), *sys.argv[3:6]
model = Path(unigram) if unigram else None
for name in ("small", "large"):
    def read(dropped, watch):
        return (("train", block) for block in read_text(folder / f"{name}.txt", "text8", watch=watch))
    options = Options(folder / f"{name}-{symbols}-{clean}", symbols=symbols, clean=clean, unigram_file=model)
    report = prepare(read, ["train"], options)
    # not ru_maxrss, which a new process inherits from the one that starts it
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) // 1024
    print(peak, report["splits"]["train"]["longest"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("symbols_, clean, unigram", [("characters", "none", False), ("bytes", "text8", True)])
def test_memory_does_not_grow_with_the_line(tmp_path: Path, symbols_: str, clean: str, unigram: bool) -> None:
    """One line of 20 MB raises the peak by no more than a line of 20 kB has, plus 60 MB."""
    line = "".join(random.Random(0).choices(["the ", "cats ", "sät ", "on ", "mat "], k=5000))
    (tmp_path / "small.txt").write_text(line, encoding="utf-8")
    (tmp_path / "large.txt").write_text(line * (20 * 2**20 // len(line.encode()) + 1), encoding="utf-8")
    model = ""
    if unigram:
        model = str(tmp_path / "m.model")
        Path(model).write_bytes(spm.train_segmenter([line], len(line), 25))
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    command = [sys.executable, str(script), str(ROOT), str(tmp_path), symbols_, clean, model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    (before, short), (after, long) = (map(int, row.split()) for row in done.stdout.splitlines())
    assert long > 15_000_000 > 500 * short
    assert after - before < 60, f"{before} MB, then {after} MB"


def test_counts_are_exact() -> None:
    draw = random.Random(0)
    counter, expected = SymbolCounter("characters"), Counter[str]()
    for _ in range(20):
        block = "".join(draw.choices("ab é中😀", k=draw.randrange(50)))
        counter.add(block)
        expected.update(block)
    assert dict(counter.entries()) == {("▁" if key == " " else key): n for key, n in expected.items()}
