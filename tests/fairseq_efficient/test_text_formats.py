import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import Bad, Example, Line, read_lines
from fairseq_efficient.text.summarization import formats


def write(path: Path, data: bytes) -> Path:
    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "wb") as stream:
        stream.write(data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2"])
def test_lines(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.txt{suffix}", "\ufeffone\r\ntw\u00f6\n\nlast".encode())
    found = list(read_lines(path))
    assert [line.text for line in found if isinstance(line, Line)] == ["one", "tw\u00f6", "", "last"]
    assert found[1].where == f"{path}:2"


def test_bad_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"fine\nb\xffd\nn\0l\n")
    fine, latin, nul = read_lines(path)
    assert isinstance(fine, Line)
    assert isinstance(latin, Bad) and str(latin.error()) == f"{path}:2: not UTF-8 (byte 0xff at column 2)"
    assert isinstance(nul, Bad) and str(nul.error()) == f"{path}:3: contains a NUL character"
    with pytest.raises(UserError, match=r"a\.txt:1: the line is longer"):
        list(read_lines(path, max_bytes=3))
    with pytest.raises(UserError, match=r"missing\.txt: No such file"):
        list(read_lines(tmp_path / "missing.txt"))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_broken_archives(tmp_path: Path, suffix: str) -> None:
    import random

    path = write(tmp_path / f"a.txt{suffix}", random.Random(0).randbytes(30000).hex().encode() + b"\n")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match="broken after line 0"):
        list(read_lines(path))
    path.write_bytes(b"not an archive at all\n")
    with pytest.raises(UserError, match="broken after line 0"):
        list(read_lines(path))


def test_jsonl(tmp_path: Path) -> None:
    rows = ['{"document": ["p 1", "p 2"], "abstract": "A. B."}', '{"document": "d", "abstract": ["A", "B"], "id": 1}']
    bad = ["{", "[1]", '{"document": "d"}', '{"document": 3, "abstract": "a"}', "", "[" * 100_000]
    found = list(formats.read_jsonl(write(tmp_path / "a.jsonl", "\n".join(rows + bad).encode())))
    assert [isinstance(item, Bad) for item in found] == [False] * 2 + [True] * 6
    assert found[0] == Example(f"{tmp_path}/a.jsonl:1", "p 1\np 2", ("A. B.",))
    assert found[1] == Example(f"{tmp_path}/a.jsonl:2", "d", ("A", "B"), sentences=True)
    reasons = [item.why for item in found if isinstance(item, Bad)]
    assert reasons[0].startswith("not JSON") and reasons[1] == "not a JSON object" and reasons[4] == "blank line"
    assert reasons[2] == "no field 'abstract'; there are 'document'" and "neither a text" in reasons[3]
    other = formats.read_jsonl(write(tmp_path / "b.jsonl", b'{"a": "x", "b": "y"}'), "a", "b")
    assert [item.source for item in other if isinstance(item, Example)] == ["x"]


def test_cohan(tmp_path: Path) -> None:
    row = {"article_text": ["first .", "second ."], "abstract_text": ["<S> one , e.g. two . </S>", "<S> three . </S>"]}
    (found,) = formats.read_cohan(write(tmp_path / "a.txt", json.dumps(row).encode()))
    assert isinstance(found, Example) and found.source == "first .\nsecond ." and found.sentences
    assert [part.strip() for part in found.target] == ["one , e.g. two .", "three ."]


def test_parallel(tmp_path: Path) -> None:
    source, target = write(tmp_path / "s", b"a\nb\xff\nc\n"), write(tmp_path / "t", b"x\ny\nz")
    first, second, third = formats.read_parallel(source, target)
    assert first == Example(f"{source}:1", "a", ("x",), where_target=f"{target}:1")
    assert isinstance(second, Bad) and second.where == f"{source}:2"
    assert isinstance(third, Example)
    write(target, b"x\n")
    with pytest.raises(UserError, match=r"s has 3 lines but .*t has 1$"):
        list(formats.read_parallel(source, target))


def test_geval(tmp_path: Path) -> None:
    for name in ("train", "dev-0"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "in.tsv.xz", rb"a\nb \\n" + b"\tc\n")
        write(tmp_path / name / "expected.tsv", b"s\n")
    assert list(formats.geval_splits(tmp_path)) == ["dev-0", "train"]
    (found,) = formats.read_geval(tmp_path / "dev-0")
    assert isinstance(found, Example) and found.source == "a\nb \\n\tc" and found.target == ("s",)
    (tmp_path / "train" / "expected.tsv").unlink()
    with pytest.raises(UserError, match=r"expected\.tsv: No such file"):
        list(formats.read_geval(tmp_path / "train"))
    with pytest.raises(UserError, match="no subfolder"):
        formats.geval_splits(tmp_path / "train")
