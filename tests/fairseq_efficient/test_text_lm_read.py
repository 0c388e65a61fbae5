"""Streams of blocks: the same documents however the file is read, and mistakes with their place."""

import gzip
import lzma
import random
import zipfile
from pathlib import Path

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.language_models.read import (
    END,
    cut_blocks,
    line_documents,
    raw_blocks,
    read_text,
    wiki40b_documents,
    without_cr,
)

WIKI = (
    "\n_START_ARTICLE_\nFirst ABC\n_START_SECTION_\nHistory\n_START_PARAGRAPH_\nOne._NEWLINE_TWO_NEWLINE_"
    "\n_START_ARTICLE_\nSecond\n_START_PARAGRAPH_\nend_START_ of _X_\n"
)
ARTICLES = f"First ABC\nHistory\nOne.\nTWO{END}Second\nend_START_ of _X_{END}"


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def test_lines_are_documents() -> None:
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(draw.choices("ab \n\r", k=30))
        lines = text.replace("\r\n", "\n").split("\n")
        expected = "".join(line + END for line in lines if line)
        empty = lines[:-1].count("")  # what follows the last line end is no line
        for size in (1, 2, 3, 7, 100):
            dropped: list[int] = []
            assert "".join(line_documents(without_cr(pieces(text, size)), dropped.append)) == expected
            assert sum(dropped) == empty


@pytest.mark.parametrize("size", [1, 2, 5, 13, 1000])
def test_wiki40b(size: int) -> None:
    assert "".join(wiki40b_documents(pieces(WIKI, size), "w")) == ARTICLES
    assert "".join(wiki40b_documents(pieces("before" + WIKI, size), "w")) == "before" + END + ARTICLES
    text = WIKI.replace("First", "\n_START_ARTICLE_\n_START_ARTICLE_\nFirst") + "_START_ARTICLE_\n"
    assert "".join(wiki40b_documents(pieces(text, size), "w")) == ARTICLES  # articles of nothing are none
    with pytest.raises(UserError, match="w: no _START_ARTICLE_ marker"):
        list(wiki40b_documents(pieces("_START_SECTION_ some text", size), "w"))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zip"])
def test_one_document_of_any_file(tmp_path: Path, suffix: str) -> None:
    text, path = "é\r\n\n" + "ab c" * 100 + "\n\n", tmp_path / f"a.txt{suffix}"
    data = b"\xef\xbb\xbf" + text.encode()
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", data)
    else:
        path.write_bytes({"": lambda x: x, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](data))
    expected = "é\n\n" + "ab c" * 100 + END
    for size in (1, 3, 4, 64, 10_000):
        assert "".join(read_text(path, "text8", size=size)) == expected
        assert "".join(read_text(path, "raw", size=size)) == text + END
        assert b"".join(raw_blocks(path, size=size)) == data


def test_places_of_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for data, size, why in (
        (b"one\ntw\0o", 4, r"a.txt:2: contains a NUL character \(byte offset 6\)"),
        (b"\xef\xbb\xbfone\n\ntw\xffo", 3, r"a.txt:3: not UTF-8 \(byte 0xff\) \(byte offset 10\)"),
        (b"one \xc3", 2, r"a.txt:1: not UTF-8 \(byte 0xc3\) \(byte offset 4\)"),
        (b"one \xed\xa0\x80", 100, r"a.txt:1: not UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=why):
            list(read_text(path, "text", size=size))
    with pytest.raises(UserError, match="No such file"):
        list(read_text(tmp_path / "no", "text"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(random.Random(0).randbytes(9000))[:8000])
    with pytest.raises(UserError, match=r"b\.gz: broken after byte"):
        list(raw_blocks(tmp_path / "b.gz", size=100))
    (tmp_path / "c.zip").write_bytes(b"no")
    with pytest.raises(UserError, match=r"c\.zip: .*not a zip"):
        list(raw_blocks(tmp_path / "c.zip"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a", "a")
        archive.writestr("b", "b")
    with pytest.raises(UserError, match=r"d\.zip: holds 2 files"):
        list(raw_blocks(tmp_path / "d.zip"))


@pytest.mark.parametrize("raw", [False, True])
def test_cut_at_exact_characters(tmp_path: Path, raw: bool) -> None:
    text = "".join(random.Random(0).choices("aé中 b\n", k=200)) + "z"
    path = tmp_path / "text8"
    path.write_bytes(text.encode() if raw else text.encode() + b"\n")
    whole = text.encode() if raw else text
    for size in (1, 7, 64, 10_000):
        found = {"train": whole[:0], "valid": whole[:0], "test": whole[:0]}
        for name, block in cut_blocks(path, raw, size=size):
            found[name] += block
        if not raw:
            assert all(one.endswith(END) and one.count(END) == 1 for one in found.values())
            found = {name: one[:-1] for name, one in found.items()}
        assert list(map(len, found.values())) == [
            len(whole) * 90 // 100,
            len(whole) * 95 // 100 - len(whole) * 90 // 100,
            len(whole) - len(whole) * 95 // 100,
        ]
        assert whole[:0].join(found.values()) == whole
    path.write_text("ten chars!")
    with pytest.raises(UserError, match=r"--cut .*text8: 10 .* are too few"):
        list(cut_blocks(path, raw))
