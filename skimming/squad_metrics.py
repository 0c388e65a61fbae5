"""Exact match and F1 as the official evaluation scripts of SQuAD 1.1 and 2.0 count them."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra blanks (the same in both versions)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1_of(prediction: str, gold: str, version2: bool) -> float:
    """F1 of the two bags of words. In version 2.0 an answer of no words is right if both have none; in 1.1 it is 0."""
    found, wanted = normalize(prediction).split(), normalize(gold).split()
    if version2 and (not found or not wanted):
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted)) if same else 0.0


class Score(NamedTuple):
    """Exact match (0 or 1) and F1 (0 to 1) of one prediction, best over the gold answers."""

    exact: float
    f1: float


WRONG = Score(0.0, 0.0)


def gold_answers(answers: Iterable[str], version2: bool) -> list[str]:
    """What a prediction is compared with: 2.0 drops answers of no words and takes "" if none is left."""
    kept = [one for one in answers if normalize(one)] if version2 else list(answers)
    return kept or ([""] if version2 else [])


def score(prediction: str, answers: Sequence[str], version2: bool) -> Score:
    """Best over the gold ``answers`` (:func:`gold_answers`); 0 without any."""
    words = normalize(prediction)
    return Score(
        float(any(words == normalize(gold) for gold in answers)),
        max((f1_of(prediction, gold, version2) for gold in answers), default=0.0),
    )


def evaluate(predictions: Mapping[str, str], gold: Mapping[str, Sequence[str]], version2: bool) -> dict[str, float]:
    """The official script's numbers, in per cent: exact, f1, total; in 2.0 also HasAns_* and NoAns_*.

    A question without a prediction counts as wrong.

    Args:
        gold: answers of each question as they stand in the data; none for an unanswerable one.
    """
    scores = _scores(predictions, gold, version2)
    found = _means(scores, list(scores), "")
    if version2:
        for prefix, kind in (("HasAns_", True), ("NoAns_", False)):
            names = [name for name in scores if bool(gold[name]) is kind]
            found.update(_means(scores, names, prefix) if names else {})
    return found


def _scores(predictions: Mapping[str, str], gold: Mapping[str, Sequence[str]], version2: bool) -> dict[str, Score]:
    return {
        name: score(predictions[name], gold_answers(answers, version2), version2) if name in predictions else WRONG
        for name, answers in gold.items()
    }


def _means(scores: Mapping[str, Score], names: list[str], prefix: str) -> dict[str, float]:
    total = max(len(names), 1)
    return {
        f"{prefix}exact": 100.0 * sum(scores[name].exact for name in names) / total,
        f"{prefix}f1": 100.0 * sum(scores[name].f1 for name in names) / total,
        f"{prefix}total": len(names),
    }


def best_thresholds(
    answers: Mapping[str, str], gold: Mapping[str, Sequence[str]], null_odds: Mapping[str, float]
) -> dict[str, float]:
    """The best exact match and F1 (version 2.0) over all thresholds: best_exact, best_f1, and with _thresh where.

    As the official script: starting from "" everywhere, questions are answered in the order of their odds.

    Args:
        answers: the best answer to each question that is not "".
        null_odds: score of no answer minus that of the best one; above the threshold the answer is "".
    """
    scores, found = _scores(answers, gold, version2=True), {}
    order = sorted((name for name in null_odds if name in gold), key=lambda name: null_odds[name])
    for place, label in ((0, "exact"), (1, "f1")):
        current = best = float(sum(not answered for answered in gold.values()))
        threshold = 0.0
        for name in order:
            if bool(gold[name]):
                current += scores[name][place]
            elif answers.get(name, ""):
                current -= 1
            if current > best:
                best, threshold = current, null_odds[name]
        found[f"best_{label}"] = 100.0 * best / max(len(gold), 1)
        found[f"best_{label}_thresh"] = threshold
    return found
