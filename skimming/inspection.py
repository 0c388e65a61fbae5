"""Where a model skips the tokens of a text: each token with the first layer that no longer computes it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.symbols import SPECIALS
from skimming.hub import Classifier, Prediction, Row


class Token(NamedTuple):
    """A token of a row.

    ``text``: its characters, for a special token its symbol. ``part``: number of the text of a pair it belongs to,
    None for a special token. ``start``, ``end``: its characters in that text. ``skipped``: the first layer, from 0,
    that it does not enter; None if all layers compute it.
    """

    text: str
    part: int | None
    start: int
    end: int
    skipped: int | None


class Inspection(NamedTuple):
    """``tokens`` in the order of the row (a text that was too long is cut); ``kept``: share that enters each layer."""

    tokens: list[Token]
    kept: list[float]
    prediction: Prediction


def check_skims(model: Any) -> None:
    """Raises UserError for a model that does not skip tokens."""
    if not hasattr(model, "untrained_predictors"):
        raise UserError("this checkpoint is not of a skim_roberta model: it skips no tokens")


def inspect(classifier: Classifier, texts: Sequence[tuple[str, ...]]) -> list[Inspection]:
    """Inspections of texts (one or a pair each), in their order.

    Raises:
        UserError: the model does not skip tokens.
    """
    check_skims(classifier.model)
    found = []
    for text, row in zip(texts, classifier.rows(texts), strict=True):
        logits, extra = classifier.logits([row.tokens], return_skim_masks=True)
        skipped, kept = skipped_at(extra["skim_masks"][:, 0, : len(row.tokens)])
        found.append(Inspection(_tokens(classifier, text, row, skipped), kept, classifier.prediction(logits[0])))
    return found


def skipped_at(masks: Tensor) -> tuple[list[int | None], list[float]]:
    """From one row's masks (L, T), 1 = the token enters: the first layer that each token does not enter, None if it
    enters all, and the share of tokens that enters each layer."""
    entered = masks.bool().cpu()
    counts = entered.sum(0).tolist()  # a token that is skipped never comes back
    return [None if count == len(entered) else count for count in counts], entered.float().mean(1).tolist()


def _tokens(classifier: Classifier, texts: Sequence[str], row: Row, skipped: Sequence[int | None]) -> list[Token]:
    names = classifier.task.source_dictionary
    offsets = [iter(found.tolist()) for _, found in classifier.subwords.encode_offsets(texts)]
    tokens = []
    for index, part, layer in zip(row.tokens.tolist(), row.parts, skipped, strict=True):
        if part is None:
            tokens.append(Token(names[index], None, 0, 0, layer))
        else:
            start, end = next(offsets[part])
            tokens.append(Token(texts[part][start:end], part, start, end, layer))
    return tokens


# --- texts of a split ------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A text (or a pair) of a split, and its label or score as written; "" without one."""

    texts: tuple[str, ...]
    label: str


def texts_of_split(classifier: Classifier, subset: str, first: int, count: int) -> list[Labelled]:
    """Texts of the classifier's data: as they were (``--keep-text``), or decoded from their tokens.

    Raises:
        UserError: no such split, or fewer texts.
    """
    folder = Path(classifier.task.cfg.data)
    if not (folder / "input0" / f"{subset}.idx").is_file():
        raise UserError(f"{folder}: no split {subset!r} (--subset)")
    dataset = classifier.task.load_dataset(subset)
    if first >= len(dataset):
        raise UserError(f"--document {first}: {subset} has {len(dataset):,} texts, counted from 0")
    numbers = range(first, min(first + count, len(dataset)))
    lines = _kept_texts(folder / f"{subset}.jsonl", len(dataset))
    found = []
    for number in numbers:
        item = dataset[number]
        texts = lines[number] if lines else _decoded(classifier, item["net_input.src_tokens"])
        found.append(Labelled(texts, _label(classifier, item.get("target"))))
    return found


def _kept_texts(path: Path, size: int) -> list[tuple[str, ...]]:
    """Texts that prepare_classification.py kept; none if it did not."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        lines = [tuple(json.loads(line)["texts"]) for line in file]
    return lines if len(lines) == size else []


def _decoded(classifier: Classifier, tokens: Tensor) -> tuple[str, ...]:
    table = classifier.coder.table
    symbols = {int(index): classifier.subwords.symbols[number] for number, index in enumerate(table)}
    parts: list[list[str]] = [[]]
    for index in tokens.tolist():
        if index >= len(SPECIALS) or index == classifier.task.source_dictionary.unk():
            parts[-1].append(symbols[index])
        elif parts[-1]:
            parts.append([])
    return tuple(classifier.subwords.decode(part) for part in parts if part)


def _label(classifier: Classifier, target: Any) -> str:
    if target is None:
        return ""
    target = torch.as_tensor(target).flatten()
    if classifier.data.regression:
        return f"{float(target[0]) * (classifier.data.top or 1.0):g}"
    return classifier.classes[int(target[0])]
