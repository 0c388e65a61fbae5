"""The most frequent class and naive Bayes, against counts by hand and on data as it is prepared."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fairseq_efficient.text.classification.floors import Bags, majority, naive_bayes
from tests.fairseq_efficient.test_text_subwords import write_vocabulary
from tests.util import ROOT, error_line, run_cli

SCRIPT = str(ROOT / "scripts" / "floors.py")


def bags(texts: list[list[int]], classes: list[int]) -> Bags:
    rows = [row for row, text in enumerate(texts) for _ in text]
    return Bags(np.array([one for text in texts for one in text]), np.array(rows), np.array(classes))


def by_hand(train: list[list[int]], classes: list[int], text: list[int], types: int, once: bool) -> int:
    scores = {}
    for kind in sorted(set(classes)):
        own = [sorted(set(one)) if once else one for one, found in zip(train, classes, strict=True) if found == kind]
        counts = Counter(token for one in own for token in one)
        score = math.log(len(own) / len(train))
        for token in sorted(set(text)) if once else text:
            score += math.log((counts[token] + 1) / (counts.total() + types))
        scores[kind] = score
    return max(scores, key=lambda kind: scores[kind])


@pytest.mark.parametrize("once", [False, True])
def test_naive_bayes_is_that_of_the_formula(once: bool):
    draw = np.random.default_rng(3)
    texts = [draw.integers(0, 9, draw.integers(1, 8)).tolist() for _ in range(60)]
    classes = [int(draw.integers(0, 3)) for _ in texts]
    train, known = texts[:40], classes[:40]
    right = [by_hand(train, known, text, 9, once) == kind for text, kind in zip(texts[40:], classes[40:], strict=True)]
    found = naive_bayes(bags(train, known), bags(texts[40:], classes[40:]), 9, 3, once)
    assert found == pytest.approx(np.mean(right))


def test_words_that_tell_and_the_most_frequent_class():
    train = bags([[5, 7], [5, 8], [6, 7]], [0, 0, 1])
    test = bags([[6, 7], [5, 7], [6], [5]], [1, 0, 1, 0])
    assert naive_bayes(train, test, 9, 2) == 1 and majority(train.classes, test.classes) == 0.5


def refused(flags: list[str]) -> str:
    return error_line(run_cli(SCRIPT, flags, expect=2))


def write(folder: Path, *flags: str) -> Path:
    texts = {"pos": ("good film", "very good", "the film is good"), "neg": ("bad film", "bad bad", "bad play")}
    rows = [(text, label) for label, found in texts.items() for text in found]
    for split, found in (("train", rows * 2), ("test", [("good", "pos"), ("bad", "neg"), ("the bad film", "neg")])):
        lines = ["\t".join(row) for row in (("text", "label"), *found)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    splits = [f"--split={split}={folder / split}.tsv" for split in ("train", "test")]
    vocabulary = write_vocabulary(folder / "vocab.txt")
    script = str(ROOT / "scripts" / "prepare_classification.py")
    run_cli(script, [str(folder / "data"), *splits, "--tokenizer", str(vocabulary), *flags])
    return folder / "data"


def test_the_script(tmp_path: Path):
    data, out = write(tmp_path), tmp_path / "floors.json"
    said = run_cli(SCRIPT, [str(data), "--json", str(out)])
    assert said.splitlines() == ["3 texts", "most frequent class: 66.67%", "naive Bayes, bag of tokens: 100.00%"]
    assert json.loads(out.read_text()) == {"texts": 3, "majority": pytest.approx(2 / 3), "naive_bayes": 1.0}
    assert "no labelled split valid" in refused([str(data), "--subset", "valid"])
    report = json.loads((data / "prepare.json").read_text())
    (data / "prepare.json").write_text(json.dumps({**report, "classes": []}))
    assert "has no classes" in refused([str(data)])
    (data / "prepare.json").write_text("[]")
    assert "not prepared by scripts/prepare_classification.py" in refused([str(data)])
