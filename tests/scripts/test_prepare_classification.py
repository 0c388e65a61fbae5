"""scripts/prepare_classification.py from files to what fairseq's sentence_prediction reads."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionTask

from fairseq_efficient.text.subwords import read_subwords
from tests.bert_reference import VOCABULARY
from tests.fairseq_efficient.test_text_subwords import write_bytes_bpe
from tests.scripts.prepare_classification_here import (
    GOOD,
    files_fixture,  # noqa: F401
    prepare_fixture,  # noqa: F401
    rows,
    tokenizer_fixture,  # noqa: F401
    write_rows,
)
from tests.squad_data import SCRIPT
from tests.util import error_line, run_cli


def test_single_texts(prepare: Any, files: list[str], tokenizer: Path, tmp_path: Path) -> None:
    out = prepare(tmp_path / "data", *files)
    assert "classes: 0 neg, 1 pos" in out and "train: 18 texts" in out and "1 of them also in train" in out
    assert "--num-classes 2 --init-token 0" in out
    assert rows(tmp_path / "data", "valid") == [("<s> the film is good </s>", [1]), ("<s> bad </s>", [0])]
    assert rows(tmp_path / "data", "train")[1] == ("<s> the play is good </s>", [1])
    assert (tmp_path / "data" / "input0" / "dict.txt").read_bytes() == (tokenizer / "dict.txt").read_bytes()
    assert (tmp_path / "data" / "label" / "dict.txt").read_text() == "0 9\n1 9\n"
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert report["classes"] == ["neg", "pos"] and report["inputs"] == 1 and not report["separator"]
    train = report["splits"]["train"]
    assert train["documents"] == 18 and train["classes"] == [9, 9] and train["truncated"] == train["dropped"] == 0
    assert train["tokens"] == sum(len(words.split()) for words, _ in rows(tmp_path / "data", "train"))
    assert report["types"] == len(VOCABULARY) and read_subwords(tmp_path / "data").encode("a film") == ["a", "film"]
    # the same options the same bytes
    prepare(tmp_path / "again", *files)
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file() and path.name != "prepare.json":
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "data")).read_bytes()


def test_pairs_and_truncation(prepare: Any, tmp_path: Path) -> None:
    pairs = [("good film", "bad play", "1"), ("good " * 9, "bad " * 3, "0"), ("good " * 9, "bad " * 9, "0")]
    path = write_rows(tmp_path / "a.tsv", pairs * 2, "one\ttwo\tlabel")
    args = ["--split", f"train={path}", "--text-field", "one,two", "--max-tokens", "12"]
    out = prepare(tmp_path / "data", *args)
    assert "4 texts cut by 24 tokens" in out and "longest 12" in out and "separator" not in out.partition("wrote")[0]
    expected = [("good film", "bad play"), ("good " * 6, "bad " * 3), ("good " * 5, "bad " * 4)]
    found = [words for words, _ in rows(tmp_path / "data", "train")]
    assert found[:3] == [f"<s> {a.strip()} </s> {b.strip()} </s>" for a, b in expected]
    out = prepare(tmp_path / "roberta", *args, "--separator", "yes")
    assert "--separator-token 2" in out
    found = [words for words, _ in rows(tmp_path / "roberta", "train", separator_token=2)]
    assert found[0] == "<s> good film </s> </s> bad play </s>" and max(len(one.split()) for one in found) == 12


def test_holdout(prepare: Any, tmp_path: Path) -> None:
    draw = random.Random(0)
    data = [(" ".join(draw.choices(["good", "bad", "film", "play", "a"], k=6)), draw.choice("xy")) for _ in range(80)]
    train = write_rows(tmp_path / "train.tsv", data)
    args = ["--split", f"train={train}", "--holdout", "20", "--holdout", "test=10", "--keep-text"]
    out = prepare(tmp_path / "data", *args)
    assert "train: 50 texts" in out and "valid: 20 texts, held out of train" in out and "test: 10 texts" in out
    found = {split: rows(tmp_path / "data", split) for split in ("train", "valid", "test")}
    assert {split: len(one) for split, one in found.items()} == {"train": 50, "valid": 20, "test": 10}
    everything = sorted((f"<s> {text} </s>", ["xy".index(label)]) for text, label in data)
    assert sorted(item for items in found.values() for item in items) == everything
    assert not {text for text, _ in found["train"]} & {text for text, _ in found["valid"]}
    for split, items in found.items():
        lines = [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()]
        assert [(f"<s> {one['texts'][0]} </s>", ["xy".index(one["label"])]) for one in lines] == items
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert [report["splits"][split]["documents"] for split in ("train", "valid", "test")] == [50, 20, 10]
    assert sum(report["splits"]["valid"]["classes"]) == 20 and report["splits"]["valid"]["also_in_train"] == 0
    shuffled = write_rows(tmp_path / "shuffled.tsv", data[::-1])
    prepare(tmp_path / "other", "--split", f"train={shuffled}", *args[2:])
    assert sorted(rows(tmp_path / "other", "valid")) == sorted(found["valid"])


def test_labels_out_of_range(prepare: Any, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "valid.tsv").write_text("text\tlabel\na film\tpos\nbad\tmixed\n")
    why = prepare(tmp_path / "x", *files, expect=2)
    assert "valid.tsv:3: label 'mixed' is not one of neg, pos" in why
    out = prepare(tmp_path / "data", *files, "--skip-bad")
    assert "valid: 1 texts, 1 dropped" in out
    assert "train.tsv:2: label 'pos' is not one of a, b" in prepare(tmp_path / "y", *files, "--labels", "a,b", expect=2)
    prepare(tmp_path / "given", *files, "--labels", "pos,neg,mixed")
    assert rows(tmp_path / "given", "valid", num_classes=3) == [("<s> a film </s>", [0]), ("<s> bad </s>", [2])]
    numbers = write_rows(tmp_path / "n.tsv", [("a film", str(number)) for number in (10, 9, 2, -1)])
    prepare(tmp_path / "numbers", "--split", f"train={numbers}")
    assert json.loads((tmp_path / "numbers" / "prepare.json").read_text())["classes"] == ["-1", "2", "9", "10"]


def test_bad_texts(prepare: Any, files: list[str], tmp_path: Path) -> None:
    bad = [("  ", "pos"), ("\u200b\ufffd", "pos"), ("a film", "")]
    path = write_rows(tmp_path / "bad.tsv", [("good", "pos"), ("bad", "neg"), *bad])
    with open(path, "ab") as file:
        file.write(b"caf\xe9\tpos\nfine\tneg\textra\n")
    for number, why in ((4, "empty text"), (5, "without a token"), (6, "no label"), (7, "not UTF-8"), (8, "3 columns")):
        lines = path.read_bytes().split(b"\n")
        one = tmp_path / "one.tsv"
        one.write_bytes(b"\n".join([*lines[:3], lines[number - 1]]) + b"\n")
        out = prepare(tmp_path / "x", "--split", f"train={one}", expect=2)
        assert "one.tsv:4: " in out and why in out
    out = prepare(tmp_path / "data", "--split", f"train={path}", "--skip-bad")
    assert "train: 2 texts, 5 dropped" in out
    assert json.loads((tmp_path / "data" / "prepare.json").read_text())["splits"]["train"]["dropped"] == 5
    objects = tmp_path / "a.jsonl"
    objects.write_text('{"text": "a", "label": 0}\n{"text": "\\ud800", "label": 1}\n')
    args = ["--split", f"train={objects}", "--format", "jsonl"]
    assert "a.jsonl:2: holds half of a surrogate pair" in prepare(tmp_path / "x", *args, expect=2)
    objects.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": null}\n')
    assert "a.jsonl:2: no label, though others have one" in prepare(tmp_path / "x", *args, expect=2)


def test_unlabelled_splits(prepare: Any, files: list[str], tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.tsv", [("a film",), ("bad",)], "text")
    prepare(tmp_path / "data", *files, "--split", f"test={test}")
    assert rows(tmp_path / "data", "test") == [("<s> a film </s>", None), ("<s> bad </s>", None)]
    assert not (tmp_path / "data" / "label" / "test.bin").exists()
    assert "split train: no labels" in prepare(tmp_path / "x", "--split", f"train={test}", expect=2)


def test_dictionaries_must_agree(prepare: Any, files: list[str], tokenizer: Path, tmp_path: Path) -> None:
    words = (tokenizer / "dict.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "short.txt").write_text("\n".join(words[1:]) + "\n", encoding="utf-8")
    why = prepare(tmp_path / "x", *files, "--dict", tmp_path / "short.txt", expect=2)
    assert "short.txt: is not the dictionary of" in why and "1 missing" in why
    (tmp_path / "mixed.txt").write_text("\n".join([*words, "other 1"]) + "\n", encoding="utf-8")
    assert "as 'other'" in prepare(tmp_path / "x", *files, "--dict", tmp_path / "mixed.txt", expect=2)
    shuffled = [*words[5:], *words[:5]]
    (tmp_path / "moved.txt").write_text("\n".join(shuffled) + "\n", encoding="utf-8")
    prepare(tmp_path / "data", *files, "--dict", tmp_path / "moved.txt")
    assert rows(tmp_path / "data", "valid")[0][0] == "<s> the film is good </s>"
    (tokenizer / "dict.txt").unlink()
    prepare(tmp_path / "made", *files)  # without a dictionary: the tokenizer's own
    assert Dictionary.load(str(tmp_path / "made" / "input0" / "dict.txt")).symbols[4:] == [
        word.rpartition(" ")[0] for word in words
    ]


def test_roberta_tokenizer(prepare: Any, tmp_path: Path) -> None:
    model = write_bytes_bpe(tmp_path / "bytes")
    path = write_rows(tmp_path / "a.tsv", [("that the", "cat", "0"), ("a", "\u00e9", "1")], "one\ttwo\tlabel")
    out = prepare(
        tmp_path / "data", "--split", f"train={path}", "--text-field", "one,two", "--tokenizer", model / "vocab.json"
    )
    assert "--separator-token 2" in out
    assert rows(tmp_path / "data", "train", separator_token=2)[0][0] == "<s> th at \u0120the </s> </s> c at </s>"


def test_run_again(prepare: Any, files: list[str], tmp_path: Path) -> None:
    dest = tmp_path / "data"
    prepare(dest, *files)
    assert "nothing to do" in prepare(dest, *files)
    assert "with other options" in prepare(dest, *files, "--max-tokens", "9", expect=2)
    prepare(dest, *files, "--max-tokens", "9", "--overwrite")
    (dest / "input0" / "checkpoint.pt").touch()
    assert "would delete input0/checkpoint.pt" in prepare(dest, *files, "--overwrite", expect=2)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bad_commands(prepare: Any, files: list[str], tmp_path: Path) -> None:
    one = files[:2]
    rte = tmp_path / "RTE"
    rte.mkdir()
    (rte / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tbad\tentailment\n")
    for args, why in (
        ([], "give one kind of input"),
        ([*one, "--corpus", "wiki-topics"], "give one kind of input"),
        ([*one, "--glue-task", "RTE"], "--glue-task: belongs to --glue"),
        (["--glue", rte, "--labels", "a,b"], "are known"),
        (["--glue", rte, "--format", "csv"], "--format: belongs to --split"),
        ([*one, "--text-field", "a,b,c"], "give one column, or two"),
        ([*one, "--text-field", "no"], "train.tsv:1: no column 'no'; there are 'text', 'label'"),
        ([*one, "--label-field", "no"], "split train: no labels; is --label-field right?"),
        ([*one, "--format", "jsonl", "--no-header"], "--no-header: belongs to"),
        ([*one, "--format", "csv", "--quoted"], "--quoted: belongs to"),
        ([*one, "--format", "yelp", "--text-field", "x"], "--format yelp has its own"),
        ([*one, "--max-tokens", "7"], "--max-tokens 7: must be at least 8"),
        ([*one, "--holdout", "x"], "--holdout x: expected N or NAME=N"),
        ([*one, "--holdout", "18"], "would leave none for train"),
        ([*one, "--holdout", "0"], "--holdout: must be at least 1"),
        ([*files, "--holdout", "2"], "--holdout valid: there is a split of that name"),
        ([files[2], files[3]], "no split named train: give the classes"),
        ([*one, "--labels", "a,a"], "--labels a,a: a name is there twice"),
        ([*one, "--labels", "a"], "--labels a: needs two or more"),
        ([*one, "--top", "5"], "--top: belongs to --regression"),
        ([*one, "--regression"], "train.tsv:2: label 'pos' is not a number"),
        (["--split", f"train={tmp_path}/no.tsv"], "no.tsv: No such file"),
        (["--imdb", tmp_path], "no train/pos"),
        (["--newsgroups", tmp_path / "no"], "not a folder"),
        ([*one, "--tokenizer", tmp_path / "no"], "no: No such file"),
        ([*one, "--case", "cased", "--tokenizer", tmp_path], "no tokenizer in this folder"),
    ):
        assert why in prepare(tmp_path / "out", *args, expect=2), args
    same = write_rows(tmp_path / "same.tsv", [("a", "x"), ("bad", "x")])
    assert "all labels are 'x'" in prepare(tmp_path / "out", "--split", f"train={same}", expect=2)
    many = write_rows(tmp_path / "many.tsv", [("a", f"l{number}") for number in range(1002)])
    assert "more than 1,000 different labels" in prepare(tmp_path / "out", "--split", f"train={many}", expect=2)
    empty = write_rows(tmp_path / "empty.tsv", [])
    assert "split train: no texts" in prepare(tmp_path / "out", "--split", f"train={empty}", expect=2)
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_in_a_process_of_its_own(files: list[str], tokenizer: Path, tmp_path: Path) -> None:
    out = run_cli(str(SCRIPT), [str(tmp_path / "data"), *files, "--tokenizer", str(tokenizer)], fresh=True)
    assert "wrote" in out
    broken = [str(tmp_path / "x"), "--split", "train=no", "--tokenizer", str(tokenizer)]
    assert error_line(run_cli(str(SCRIPT), broken, expect=2, fresh=True))
    shutil.rmtree(tmp_path / "data")


def test_data_are_memory_mapped(prepare: Any, files: list[str], tmp_path: Path) -> None:
    prepare(tmp_path / "data", *files)
    dictionary = SentencePredictionTask.load_dictionary(str(tmp_path / "data" / "input0" / "dict.txt"))
    for name in ("input0", "label"):
        found = data_utils.load_indexed_dataset(str(tmp_path / "data" / name / "train"), dictionary)
        assert type(found).__name__ == "MMapIndexedDataset" and len(found) == 18


@pytest.mark.parametrize("more", [[], ["--holdout", "10"]])
def test_by_length(prepare: Any, tmp_path: Path, more: list[str]) -> None:
    """The same texts with their labels, in order of length; those of one length not in the order of the classes."""
    draw = random.Random(0)
    data = [(" ".join(draw.choices(["good", "bad", "film", "play"], k=1 + number % 4)), "x") for number in range(40)]
    data += [(text.replace("film", "the"), "y") for text, _ in data]
    args = ["--split", f"train={write_rows(tmp_path / 'train.tsv', data)}", "--keep-text", *more]
    out = prepare(tmp_path / "sorted", *args, "--by-length")
    assert "--no-shuffle" in out
    prepare(tmp_path / "plain", *args)
    found, plain = (rows(tmp_path / name, "train") for name in ("sorted", "plain"))
    lengths = [len(words.split()) for words, _ in found]
    assert lengths == sorted(lengths) and lengths[0] == 3
    assert sorted(map(str, found)) == sorted(map(str, plain)) and found != plain
    labels = [target for words, (target,) in found if len(words.split()) == 4]
    assert labels != sorted(labels) and labels != sorted(labels, reverse=True)
    texts = [json.loads(line) for line in (tmp_path / "sorted" / "train.jsonl").read_text().splitlines()]
    assert [(f"<s> {one['texts'][0]} </s>", "xy".index(one["label"])) for one in texts] == [
        (words, target) for words, (target,) in found
    ]
    if more:
        assert rows(tmp_path / "sorted", "valid") == rows(tmp_path / "plain", "valid")
    report = json.loads((tmp_path / "sorted" / "prepare.json").read_text())
    assert report["flags"].endswith("--no-shuffle") and report["by_length"]
    assert "holds data prepared with other options" in prepare(tmp_path / "plain", *args, "--by-length", expect=2)
    valid = write_rows(tmp_path / "v.tsv", data[:4])
    lone = ["--split", f"valid={valid}", "--labels", "x,y", "--by-length"]
    assert "--by-length: there is no split named train" in prepare(tmp_path / "z", *lone, expect=2)


def test_pairs_by_length(prepare: Any, tmp_path: Path) -> None:
    pairs = [("good " * (1 + number % 3), "bad " * (1 + number % 4), str(number % 2)) for number in range(24)]
    path = write_rows(tmp_path / "a.tsv", pairs, "one\ttwo\tlabel")
    args = ["--split", f"train={path}", "--text-field", "one,two"]
    prepare(tmp_path / "sorted", *args, "--by-length")
    prepare(tmp_path / "plain", *args)
    found, plain = (rows(tmp_path / name, "train") for name in ("sorted", "plain"))
    assert [len(words.split()) for words, _ in found] == sorted(len(words.split()) for words, _ in plain)
    assert sorted(map(str, found)) == sorted(map(str, plain))


def test_the_models_positions_are_told_and_not_exceeded(
    prepare: Any, files: list[str], tokenizer: Path, tmp_path: Path
) -> None:
    """fairseq's task shares --max-positions with the model, whose table has the checkpoint's size."""
    (tokenizer / "convert.json").write_text('{"model": {"max_positions": 64}}')
    assert "--max-positions 64\n" in prepare(tmp_path / "data", *files, "--max-tokens", "20")
    file = ["--tokenizer", tokenizer / "vocab.txt"]
    assert "--max-positions 64\n" in prepare(tmp_path / "of", *files, "--max-tokens", "20", *file)
    said = prepare(tmp_path / "x", *files, expect=2)
    assert "--max-tokens 512: the tokenizer's model reads 64" in said
    for damaged in ("{", "[]", '{"model": {}}'):
        (tokenizer / "convert.json").write_text(damaged)
        assert "--max-positions 512\n" in prepare(tmp_path / f"data{len(damaged)}", *files)


def test_a_tokenizer_trained_on_train(prepare: Any, files: list[str], tmp_path: Path) -> None:
    out = prepare(tmp_path / "data", *files, "--vocab-size", "270")
    assert "training sub-words of 270 types" in out and "dictionary: 270 types" in out and "0.000% unknown" in out
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert report["types"] == 270 and report["tokenizer"] == "BPE"
    subwords = read_subwords(tmp_path / "data")
    found = [words.split()[1:-1] for words, _ in rows(tmp_path / "data", "train")]
    assert [subwords.decode(one) for one in found][:3] == list(GOOD)
    assert "already prepared" in prepare(tmp_path / "data", *files, "--vocab-size", "270")
    prepare(tmp_path / "again", *files, "--vocab-size", "270")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file() and path.name != "prepare.json":
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "data")).read_bytes()
    said = prepare(tmp_path / "cased", *files, "--vocab-size", "270", "--case", "cased")
    assert "dictionary: 270 types" in said
    for flags, why in (
        (["--vocab-size", "100"], "--vocab-size 100: must be at least 261"),
        (["--vocab-size", "270", "--tokenizer", tmp_path], "give --tokenizer or --vocab-size"),
        (["--vocab-size", "270", "--dict", tmp_path / "x"], "--vocab-size: makes the dictionary"),
        (["--vocab-size", "270", "--format", "squad"], "--vocab-size: not for --format squad"),
    ):
        assert why in prepare(tmp_path / "other", *files, *flags, expect=2)
    valid = [word.replace("train=", "other=") for word in files]
    assert "--vocab-size: there is no split named train" in prepare(
        tmp_path / "other", *valid, "--vocab-size", "270", "--labels", "neg,pos", expect=2
    )
