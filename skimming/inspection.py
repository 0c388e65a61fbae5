"""Where a model skips the tokens of a text: each token with the first layer that no longer computes it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fairseq_efficient.errors import UserError
from skimming.classification_hub import Classifier, Prediction, Row


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


def inspect(classifier: Classifier, texts: Sequence[tuple[str, ...]]) -> list[Inspection]:
    """Inspections of texts (one or a pair each), in their order.

    Raises:
        UserError: the model does not skip tokens.
    """
    if not hasattr(classifier.model, "untrained_predictors"):
        raise UserError("this checkpoint is not of a skim_roberta model: it skips no tokens")
    found = []
    for text, row in zip(texts, classifier.rows(texts), strict=True):
        logits, extra = classifier.logits([row.tokens], return_skim_masks=True)
        entered = extra["skim_masks"][:, 0, : len(row.tokens)].bool().cpu()
        counts = entered.sum(0).tolist()  # a token that is skipped never comes back
        skipped = [None if count == len(entered) else count for count in counts]
        kept = entered.float().mean(1).tolist()
        found.append(Inspection(_tokens(classifier, text, row, skipped), kept, classifier.prediction(logits[0])))
    return found


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


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Plain values, for a report or a file."""
    return {
        "tokens": [token._asdict() for token in inspection.tokens],
        "kept": inspection.kept,
        "label": inspection.prediction.label,
        "probabilities": inspection.prediction.probabilities,
    }
