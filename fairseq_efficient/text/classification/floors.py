"""What a classifier has to beat: the most frequent class, and naive Bayes over bags of the same tokens."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import token_dtype
from fairseq_efficient.text.holdout import read_tokens
from fairseq_efficient.text.prepared import read_file
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.symbols import SPECIALS


class Bags(NamedTuple):
    """Texts as tokens: all of them (N,) int64 with the text that each is in, rows (N,) int64, and classes (texts,)."""

    tokens: np.ndarray
    rows: np.ndarray
    classes: np.ndarray


def majority(train: np.ndarray, test: np.ndarray) -> float:
    """Share of ``test`` that is of the most frequent class of ``train``."""
    return float(np.mean(test == np.bincount(train).argmax()))


def naive_bayes(train: Bags, test: Bags, types: int, classes: int, once: bool = False) -> float:
    """Accuracy of multinomial naive Bayes with add-one smoothing. once: a token counts once in a text."""
    if once:
        train, test = _once(train, types), _once(test, types)
    counts = np.bincount(train.classes[train.rows] * types + train.tokens, minlength=classes * types)
    weights = np.log1p(counts.reshape(classes, types))
    weights -= np.log(counts.reshape(classes, types).sum(1, keepdims=True) + types)
    texts = np.bincount(train.classes, minlength=classes)
    scores = np.log(np.maximum(texts, 1e-9) / len(train.classes))[:, None] + np.stack(
        [np.bincount(test.rows, weights[one][test.tokens], minlength=len(test.classes)) for one in range(classes)]
    )
    return float(np.mean(scores.argmax(0) == test.classes))


def _once(bags: Bags, types: int) -> Bags:
    rows, tokens = np.divmod(np.unique(bags.rows * types + bags.tokens), types)
    return Bags(tokens, rows, bags.classes)


def read_bags(folder: Path, split: str, types: int, inputs: int) -> Bags:
    """A labelled split that scripts/prepare_classification.py wrote. UserError if there is none."""
    if not (folder / "label" / f"{split}.idx").is_file():
        raise UserError(f"{folder}: no labelled split {split}")
    tokens, rows = [], []
    for number in range(inputs):
        found, sizes = read_tokens(folder / f"input{number}" / split, token_dtype(types))
        tokens.append(np.asarray(found, dtype=np.int64))
        rows.append(np.repeat(np.arange(len(sizes)), sizes))
    labels, sizes = read_tokens(folder / "label" / split, token_dtype(len(SPECIALS)))
    classes = np.asarray(labels, dtype=np.int64).reshape(len(sizes), 2)[:, 0] - len(SPECIALS)
    return Bags(np.concatenate(tokens), np.concatenate(rows), classes)


def floors_of(folder: Path, subset: str) -> dict[str, Any]:
    """Floors of data that scripts/prepare_classification.py made, for one of its splits.

    Returns:
        ``texts``, and the accuracies ``majority`` and ``naive_bayes`` (the better of counting a token in a text once or
        as often as it is there).

    Raises:
        UserError: no such data or split, no classes.
    """
    try:
        report = parse_json(read_file(folder / "prepare.json"))
        types, classes, inputs = int(report["types"]), len(report["classes"]), int(report["inputs"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: not prepared by scripts/prepare_classification.py") from None
    if classes < 2:
        raise UserError(f"{folder}: has no classes, so no floors are known")
    train, test = (read_bags(folder, split, types, inputs) for split in ("train", subset))
    best = max(naive_bayes(train, test, types, classes, once) for once in (False, True))
    return {"texts": len(test.classes), "majority": majority(train.classes, test.classes), "naive_bayes": best}
