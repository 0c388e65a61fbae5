"""Rows as a report draws them: pieces of text, and the layer at which each was skipped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.subwords import read_subwords
from skimming.hub import Classifier, read_data
from skimming.inspection import Inspection, inspect, skipped_at, texts_of_split
from skimming.squad_decode import decode
from skimming.squad_task import SkimSquadTask

SPECIAL = "\u2581\u25a0"


class Drawing(NamedTuple):
    """``pieces``: tokens of a row, ``▁`` where a blank goes before, ``■`` for a special one. ``skipped``: the first
    layer that each does not enter, None if it enters all; ``kept``: share that enters each layer."""

    title: str
    pieces: list[str]
    skipped: list[int | None]
    kept: list[float]


class Drawer:
    """A checkpoint of ``sentence_prediction`` or ``skim_squad`` whose rows can be drawn."""

    def __init__(self, model: Any, task: Any, classifier: Classifier | None):
        self.model, self.task, self.classifier = model.eval(), task, classifier

    @property
    def skips(self) -> bool:
        """Whether it has predictors."""
        encoder = getattr(getattr(self.model, "encoder", None), "sentence_encoder", None)
        return bool(getattr(encoder, "skim_predictors", None))

    @classmethod
    def load(cls, checkpoint: Path, data: Path | None = None) -> "Drawer":
        """Raises UserError for a checkpoint of another task, and for data that is not there."""
        given = {"data": str(data)} if data else {}
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], given)
        if isinstance(task, SkimSquadTask):
            return cls(models[0], task, None)
        if not hasattr(task, "label_dictionary"):
            raise UserError(f"{checkpoint}: neither of task sentence_prediction nor of skim_squad")
        found = read_data(Path(data or task.cfg.data), None, task)
        return cls(models[0], task, Classifier(models[0], task, found))

    def of_texts(self, texts: Sequence[tuple[str, ...]]) -> list[Drawing]:
        """Raises UserError for a model that answers questions, and for texts that are not as many as it takes."""
        if self.classifier is None:
            raise UserError("--text: not for a model that answers questions, whose paragraphs are those of its data")
        inputs = self.classifier.data.inputs
        for text in texts:
            if len(text) != inputs:
                raise UserError(f"--text: {len(text)} texts between tabs; the model takes {inputs}")
        found = zip(inspect(self.classifier, texts), texts, strict=True)
        return [_drawing(one, text, f"text {number}") for number, (one, text) in enumerate(found)]

    def of_split(self, subset: str, first: int, count: int) -> list[Drawing]:
        """Drawings of the split's texts, or of its questions' first windows. UserError if it has fewer."""
        if self.classifier is None:
            return self._questions(subset, first, count)
        labelled = texts_of_split(self.classifier, subset, first, count)
        found = inspect(self.classifier, [one.texts for one in labelled])
        drawings = []
        for number, (one, inspection) in enumerate(zip(labelled, found, strict=True), start=first):
            title = f"text {number} of {subset}" + (f", {one.label}" if one.label else "")
            drawings.append(_drawing(inspection, one.texts, title))
        return drawings

    def _questions(self, subset: str, first: int, count: int) -> list[Drawing]:
        self.task.load_dataset(subset, training=False)
        dataset = self.task.dataset(subset)
        if first >= len(dataset):
            raise UserError(f"--document {first}: {subset} has {len(dataset):,} questions, counted from 0")
        subwords = read_subwords(Path(self.task.cfg.data))
        return [
            self._question(dataset, number, subwords, f"question {number} of {subset}")
            for number in range(first, min(first + count, len(dataset)))
        ]

    @torch.inference_mode()
    def _question(self, dataset: Any, number: int, subwords: Any, title: str) -> Drawing:
        sample = dataset.collater([dataset[number]])
        head = self.task.cfg.classification_head_name
        logits, extra = self.model(
            **sample["net_input"], features_only=True, classification_head_name=head, return_skim_masks=True
        )
        (answer,) = decode(logits, sample, dataset.data, 1, 30)
        text = dataset.data.text_of(answer.question, *answer.spans[0][1:]) if answer.spans else ""
        if self.task.version2 and answer.null_odds > 0:
            text = ""
        tokens = sample["net_input"]["src_tokens"][0, : int(sample["net_input"]["src_lengths"][0])]
        skipped, kept = skipped_at(extra["skim_masks"][:, 0, : len(tokens)])
        golds = ", ".join(dict.fromkeys(dataset.data.golds(answer.question))) or "no answer"
        said = f"{title}: {text or 'no answer'} (right: {golds})"
        return Drawing(said, [_piece(self.task.dictionary, int(index), subwords) for index in tokens], skipped, kept)


def _drawing(found: Inspection, texts: Sequence[str], title: str) -> Drawing:
    prediction = found.prediction
    share = f" ({max(prediction.probabilities):.0%})" if prediction.probabilities else ""
    pieces = []
    for token in found.tokens:
        if token.part is None:
            pieces.append(SPECIAL)
            continue
        before = texts[token.part][: token.start]
        blank = not before or before[-1].isspace() or token.text[:1].isspace()
        pieces.append(("\u2581" if blank else "") + token.text.strip())
    skipped = [token.skipped for token in found.tokens]
    return Drawing(f"{title}: read as {prediction.label}{share}", pieces, skipped, found.kept)


def _piece(dictionary: Any, index: int, subwords: Any) -> str:
    symbol = dictionary[index]
    if index in (dictionary.bos(), dictionary.pad(), dictionary.eos()):
        return SPECIAL
    blank = subwords.starts_word(symbol)
    return ("\u2581" if blank else "") + symbol.removeprefix("##").lstrip("\u0120\u2581")
