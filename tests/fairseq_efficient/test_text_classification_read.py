"""Readers of labelled texts: tables, JSON, GLUE's layouts, folders; and the place of every mistake."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.classification import glue, read
from fairseq_efficient.text.classification.read import Fields, Labelled
from fairseq_efficient.text.reading import Bad


def items(found: Any) -> list[Any]:
    """(texts, label) of each text, (line, why) of each that is bad."""
    return [
        (int(one.where.rpartition(":")[2]), one.why) if isinstance(one, Bad) else (*one.texts, one.label)
        for one in found
    ]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FIELDS = Fields(("text",), "label")


def test_tsv_takes_quotes_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", '\ufeffid\ttext\tlabel\r\n1\t"Oh," she said\tyes \r\n2\ta "b\tno')
    assert items(read.read_split(path, "tsv", FIELDS)) == [('"Oh," she said', "yes"), ('a "b', "no")]
    pair = Fields(("label", "text"), "id")
    assert items(read.read_split(path, "tsv", pair))[1] == ("no", 'a "b', "2")


def test_rows_of_another_width_and_blank_ones(tmp_path: Path) -> None:
    lines = ["text\tlabel", "a\t0", "b", "", "c\t1\t2", "\t", "caf\xe9\t1", "d\t1", "e\0\t1"]
    path = write(tmp_path / "a.tsv.xz", lzma.compress("\n".join(lines).encode("latin-1")))
    assert items(read.read_split(path, "tsv", FIELDS)) == [
        ("a", "0"),
        (3, "1 columns, expected 2"),
        (4, "blank line"),
        (5, "3 columns, expected 2"),
        (6, "blank line"),
        (7, "not UTF-8 (byte 0xe9 at column 4)"),
        ("d", "1"),
        (9, "contains a NUL character"),
    ]


def test_csv_is_quoted(tmp_path: Path) -> None:
    text = 'label,text\r\n1,"one, ""two""\nthree"\r\n0,four\n2,"x\n\ny"\n3,five,six\n'
    path = write(tmp_path / "a.csv.gz", gzip.compress(text.encode()))
    found = list(read.read_split(path, "csv", FIELDS))
    assert items(found) == [('one, "two"\nthree', "1"), ("four", "0"), ("x\n\ny", "2"), (8, "3 columns, expected 2")]
    assert [one.where.rpartition(":")[2] for one in found] == ["2", "4", "5", "8"]  # where each row begins
    tabs = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tb"\t1\n')
    assert items(read.read_split(tabs, "tsv", FIELDS, quoted=True)) == [("a\tb", "1")]
    write(path := tmp_path / "b.csv", 'text,label\na,1\n"b,2\nc,3\n')
    with pytest.raises(UserError, match=r"b\.csv:3: quotation marks do not match"):
        list(read.read_split(path, "csv", FIELDS))
    write(path := tmp_path / "c.csv", b"text,label\ncaf\xe9,1\nb,2\n")
    assert items(read.read_split(path, "csv", FIELDS)) == [(2, "not UTF-8 (byte 0xe9 at column 4)"), ("b", "2")]


def test_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,first,x\n2,second,y\n")
    assert items(read.read_split(path, "csv", Fields(("3", "2"), "1", header=False))) == [
        ("x", "first", "1"),
        ("y", "second", "2"),
    ]
    with pytest.raises(UserError, match="no column number '9'; there are '1', '2', '3'"):
        list(read.read_split(path, "csv", Fields(("9",), "1", header=False)))
    with pytest.raises(UserError, match=r"a\.csv:1: no column 'text'; there are '1', 'first', 'x'"):
        list(read.read_split(path, "csv", FIELDS))
    with pytest.raises(UserError, match="holds no line"):
        list(read.read_split(write(tmp_path / "e.tsv", ""), "tsv", FIELDS))
    unlabelled = write(tmp_path / "u.tsv", "text\nhello\n")
    assert items(read.read_split(unlabelled, "tsv", FIELDS)) == [("hello", None)]


def test_yelp(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", '"5","Great ""food"", \\n\\nbut \\""slow\\"" \\\\o/"\n"1","bad"\n')
    assert items(read.read_split(path, "yelp", FIELDS)) == [('Great "food", \n\nbut "slow" \\o/', "5"), ("bad", "1")]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": "x"}', '{"text": "b", "label": 3}', '{"text": "c", "label": true}',
        '{"text": "d", "label": null}', '{"text": "e"}', '{"text": 5, "label": 1}', "[1]", "", '{"label": 1}', "{",
        '{"text": "f", "label": [1]}', '{"text": "g", "label": 0.5}',
    ]  # fmt: skip
    found = items(read.read_split(write(tmp_path / "a.jsonl", "\n".join(lines)), "jsonl", FIELDS))
    assert found[:5] == [("a", "x"), ("b", "3"), ("c", "1"), ("d", None), ("e", None)]
    assert found[5:9] == [
        (6, "field 'text' is not a text"),
        (7, "not a JSON object"),
        (8, "blank line"),
        (9, "no field 'text'; there are 'label'"),
    ]
    assert found[9][1].startswith("not JSON") and found[10] == (11, "field 'label' is not a label")
    assert found[11] == ("g", "0.5")


GLUE_FILES = {
    "CoLA": {
        "train.tsv": "gj04\t1\t\tIt is.\nks08\t0\t*\tIs it it\n",
        "dev.tsv": "gj04\t0\t*\tNot is.\n",
        "test.tsv": "index\tsentence\n0\tBill is.\n",
    },
    "SST-2": {"train.tsv": "sentence\tlabel\nhide \t0\n", "test.tsv": "index\tsentence\n0\tuneasy\n"},
    "MRPC": {"train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "x\tx" he\n'},
    "QQP": {
        "train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n9\tbroken\n",
        "test.tsv": "id\tquestion1\tquestion2\n0\tA?\tB?\n",
    },
    "STS-B": {
        "dev.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tm\tf\ty\t1\tnone\tnone\tA man.\tA boy.\t2.750\n"
    },
    "MNLI": {
        "train.tsv": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\t2\tg\tp\tp\tp\tp\tA.\tB.\tneutral\tneutral\n",
        "dev_matched.tsv": "sentence1\tsentence2\tlabel1\tlabel2\tgold_label\nA\tB\tneutral\tneutral\tentailment\n",
        "dev_mismatched.tsv": "sentence1\tsentence2\tgold_label\nC\tD\tcontradiction\n",
        "test_matched.tsv": "sentence1\tsentence2\nE\tF\n",
    },
    "QNLI": {"train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tMe.\tentailment\n"},
    "RTE": {"train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n"},
    "WNLI": {"dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n"},
}
GLUE_FOUND = {
    "CoLA": {
        "train": [("It is.", "1"), ("Is it it", "0")],
        "valid": [("Not is.", "0")],
        "test": [("Bill is.", None)],
    },
    "SST-2": {"train": [("hide ", "0")], "test": [("uneasy", None)]},
    "MRPC": {"train": [('He said "x', 'x" he', "1")]},
    "QQP": {"train": [("Why?", "How?", "0"), (3, "2 columns, expected 6")], "test": [("A?", "B?", None)]},
    "STS-B": {"valid": [("A man.", "A boy.", "2.750")]},
    "MNLI": {
        "train": [("A.", "B.", "neutral")],
        "valid": [("A", "B", "entailment")],
        "valid_mismatched": [("C", "D", "contradiction")],
        "test": [("E", "F", None)],
    },
    "QNLI": {"train": [("Who?", "Me.", "entailment")]},
    "RTE": {"train": [("A.", "B.", "not_entailment")]},
    "WNLI": {"valid": [("A.", "B.", "1")]},
}


@pytest.mark.parametrize("task", sorted(glue.TASKS))
def test_glue(task: str, tmp_path: Path) -> None:
    for number, (name, content) in enumerate(GLUE_FILES[task].items()):
        raw = content.encode()
        write(tmp_path / task / (name + ".gz" * (number % 2)), gzip.compress(raw) if number % 2 else raw)
    assert glue.glue_task(tmp_path / task, None) == task == glue.glue_task(tmp_path, task.replace("-", "").lower())
    files = glue.glue_files(tmp_path / task, task)
    assert {split: items(glue.read_glue(path, task)) for split, path in files.items()} == GLUE_FOUND[task]


def test_glue_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a task of GLUE"):
        glue.glue_task(tmp_path / "GLEU", None)
    with pytest.raises(UserError, match="not a folder"):
        glue.glue_files(tmp_path / "RTE", "RTE")
    (tmp_path / "RTE").mkdir()
    with pytest.raises(UserError, match=r"no train\.tsv"):
        glue.glue_files(tmp_path / "RTE", "RTE")
    bad = write(tmp_path / "CoLA" / "train.tsv", b"gj04\t1\t\tcaf\xe9\ngj04\t1\t\tgood\n")
    assert items(glue.read_glue(bad, "CoLA")) == [(1, "not UTF-8 (byte 0xe9 at column 12)"), ("good", "1")]
    wrong = write(tmp_path / "WNLI" / "dev.tsv", "index\tsentence\tlabel\n")
    with pytest.raises(UserError, match="no column 'sentence1'"):
        list(glue.read_glue(wrong, "WNLI"))


def test_imdb_folders(tmp_path: Path) -> None:
    for name, text in (("10_9", "Ten<br /><br>more"), ("2_8", "Two"), ("1_9", "One")):
        write(tmp_path / "train" / "pos" / f"{name}.txt", text)
    write(tmp_path / "train" / "neg" / "0_1.txt", "Zero")
    write(tmp_path / "train" / "neg" / "1_1.txt", b"caf\xe9")
    write(tmp_path / "train" / "unsup" / "0_0.txt", "no label")
    write(tmp_path / "test" / "pos" / "0_9.txt", "a")
    write(tmp_path / "test" / "neg" / "0_2.txt", "b")
    splits = read.imdb_splits(tmp_path)
    assert list(splits) == ["train", "test"] and read.imdb_splits(tmp_path / "test") == {"train": tmp_path / "test"}
    found = list(read.read_imdb(splits["train"]))
    assert [one.texts[0] for one in found if isinstance(one, Labelled)] == ["Zero", "One", "Two", "Ten more"]
    bad = [one for one in found if isinstance(one, Bad)]
    assert len(bad) == 1 and bad[0].where.endswith("1_1.txt") and "not UTF-8" in bad[0].why
    with pytest.raises(UserError, match="no train/pos"):
        read.imdb_splits(tmp_path / "train" / "pos")


def test_newsgroups(tmp_path: Path) -> None:
    message = "From: a@b\nSubject: Re: A {0}\nNewsgroups: sci.{0}\n\nBody of {0}.\n\n> quoted\n"
    for group in ("space", "med"):
        write(tmp_path / "20news-bydate-train" / f"sci.{group}" / "100", message.format(group))
    write(tmp_path / "20news-bydate-train" / "sci.med" / "101", b"Subject: caf\xe9\n\nx")
    splits = read.newsgroup_splits(tmp_path)
    assert list(splits) == ["train"]
    found = [one for one in read.read_newsgroups(splits["train"]) if isinstance(one, Labelled)]
    assert [one.label for one in found] == ["sci.med", "sci.space", "sci.med"]
    assert found[0].texts[0] == "Re: A med\nBody of med.\n\n> quoted" and found[2].texts[0] == "caf\xe9\nx"
    assert "sci.space" not in found[1].texts[0]
    with pytest.raises(UserError, match="no folders of newsgroups"):
        read.newsgroup_splits(tmp_path / "20news-bydate-train" / "sci.med")
