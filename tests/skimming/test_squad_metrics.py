"""Exact match, F1 and thresholds of SQuAD's official scripts, on cases worked out by hand."""

import itertools
import random

import pytest

from skimming.squad_metrics import best_thresholds, evaluate, f1_of, gold_answers, normalize, score


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Cat's (big) hat.", "cats big hat"),
        ("An apple, a day", "apple day"),
        ("theatre another", "theatre another"),
        ("THE", ""),
        ("U.S. $5\u2013$7", "us 5\u20137"),  # only ASCII punctuation goes
        ("A-the-b", "atheb"),
        ("\u00c9t\u00e9\u00a0x", "\u00e9t\u00e9 x"),
    ],
)
def test_normalize(text: str, words: str) -> None:
    assert normalize(text) == words


def test_f1() -> None:
    assert f1_of("the big cat", "big cat", True) == 1.0
    assert f1_of("big cat cat", "cat cat dog", True) == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert f1_of("a b", "c", True) == 0.0
    assert f1_of("", "", True) == 1.0 and f1_of("the", "a", True) == 1.0 and f1_of("x", "", True) == 0.0
    assert f1_of("", "", False) == 0.0  # version 1.1 has no such rule


def test_gold_answers() -> None:
    assert gold_answers(["the", "cat"], True) == ["cat"] and gold_answers(["the"], True) == [""]
    assert gold_answers([], True) == [""] and gold_answers([], False) == [] and gold_answers(["the"], False) == ["the"]
    assert score("Cat", ["dog", "the cat"], False) == (1.0, 1.0) and score("x", [], False) == (0.0, 0.0)


def test_evaluate() -> None:
    gold = {"1": ["the cat", "a dog"], "2": ["big red cat"], "3": [], "4": []}
    predictions = {"1": "cat", "2": "red cat", "3": "", "4": "dog"}
    found = evaluate(predictions, gold, version2=True)
    assert found == {
        "exact": 50.0, "f1": pytest.approx(100 * (1 + 0.8 + 1) / 4), "total": 4,
        "HasAns_exact": 50.0, "HasAns_f1": pytest.approx(90.0), "HasAns_total": 2,
        "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
    }  # fmt: skip
    first = {name: gold[name] for name in ("1", "2")}
    assert evaluate({"1": "cat"}, first, version2=False) == {"exact": 50.0, "f1": 50.0, "total": 2}


def test_best_thresholds_against_every_threshold() -> None:
    draw = random.Random(0)
    texts = ["cat", "dog", "big cat", ""]
    for _ in range(50):
        names = [str(number) for number in range(draw.randint(1, 9))]
        gold = {name: draw.choice([[], ["cat"], ["big cat", "dog"]]) for name in names}
        answers = {name: draw.choice(texts[:3]) for name in names}
        odds = {name: draw.uniform(-3, 3) for name in names}
        found = best_thresholds(answers, gold, odds)
        for label in ("exact", "f1"):
            every = {}
            for limit in [-9.0, *odds.values()]:
                chosen = {name: answers[name] if odds[name] <= limit else "" for name in names}
                every[limit] = evaluate(chosen, gold, version2=True)[label]
            assert found[f"best_{label}"] == pytest.approx(max(every.values()))
            at = found[f"best_{label}_thresh"]
            limit = at if at in every else -9.0
            assert every[limit] == pytest.approx(found[f"best_{label}"]) or at == 0.0


def test_words_in_any_order_have_the_same_f1() -> None:
    for words in itertools.permutations(["big", "red", "cat"]):
        assert f1_of(" ".join(words), "cat red big", True) == 1.0
