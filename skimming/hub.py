"""A trained classifier behind one call: texts in, labels and probabilities out, in the order of the texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from torch import Tensor, nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.text_models import check_texts
from fairseq_efficient.text.classification.read import Labelled
from fairseq_efficient.text.classification.rows import Coder
from fairseq_efficient.text.prepared import read_report
from fairseq_efficient.text.subwords import Subwords, find_tokenizer, read_subwords
from fairseq_efficient.text.symbols import SPECIALS


class Row(NamedTuple):
    """``tokens`` (T,) int64, and which text of a pair each belongs to, None for special tokens."""

    tokens: Tensor
    parts: list[int | None]


class Prediction(NamedTuple):
    """``probabilities`` by class, in the order of :attr:`Classifier.classes`; a regression has a ``score`` instead."""

    label: str
    probabilities: list[float]
    score: float | None = None


@dataclass
class Counts:
    """What was predicted so far."""

    texts: int = 0
    tokens: int = 0
    cut: int = 0
    kept: int = 0  # tokens that layers computed
    all: int = 0  # tokens that layers of a dense model would have computed


@dataclass(frozen=True)
class Data:
    """What the prepared data knows: names of the classes, the top score, texts of a row, the tokenizer."""

    classes: list[str]
    regression: bool
    top: float | None
    inputs: int
    tokenizer: Path


def read_data(folder: Path, tokenizer: Path | None, task: Any) -> Data:
    """From prepare.json; of data that fairseq-preprocess made, from the task's dictionaries. UserError without any
    tokenizer, or for a damaged prepare.json."""
    report = read_report(folder) or {}
    if tokenizer is None:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder}: no tokenizer.json inside; give the model's with --tokenizer")
        tokenizer = folder / "tokenizer.json"
    regression = bool(getattr(task.cfg, "regression_target", False))
    symbols = [] if regression else task.label_dictionary.symbols[task.label_dictionary.nspecial :]
    classes = report.get("classes") or [symbol for symbol in symbols if symbol != "<mask>"]
    inputs = report.get("inputs") or (2 if (folder / "input1").is_dir() else 1)
    return Data(classes[: task.cfg.num_classes], regression, report.get("top"), inputs, find_tokenizer(tokenizer))


def token_table(subwords: Subwords, task: Any) -> np.ndarray:
    """The tokenizer's ids -> those of the task's dictionary, int64. UserError if they are not of one making."""
    symbols = [one for one in task.source_dictionary.symbols[len(SPECIALS) :] if one != "<mask>"]
    return subwords.table(symbols, f"{task.cfg.data}/input0/dict.txt")


class Classifier(nn.Module):
    """A model with a classification head, in evaluation mode, and the tokenizer of its data.

    Args:
        task: a ``sentence_prediction`` task (or a subclass).
        max_tokens: padded tokens of a batch at most.
    """

    def __init__(self, model: Any, task: Any, data: Data, max_tokens: int = 16384, batch_size: int = 256):
        super().__init__()
        self.model, self.task, self.data = model, task, data
        self.eval()
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.head = task.cfg.classification_head_name
        missing = self.head in getattr(model, "untrained_heads", ())
        if missing or self.head not in getattr(model, "classification_heads", {}):
            raise UserError(f"the checkpoint has no classification head {self.head} for these classes: fine-tune it")
        self.subwords = read_subwords(data.tokenizer)
        table = token_table(self.subwords, task)
        self.limit = min(task.cfg.max_positions, model.max_positions())
        separator = task.cfg.separator_token
        self.coder = Coder(self.subwords, table, np.dtype(np.int64), self.limit, separator is not None)
        self.before = [] if task.cfg.init_token is None else [task.cfg.init_token]
        self.between = [] if separator is None else [separator]
        self.counts = Counts()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def classes(self) -> list[str]:
        """Names of the labels, in the order of the probabilities; empty for scores."""
        return self.data.classes

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        folder: Path | None = None,
        tokenizer: Path | None = None,
        overrides: dict[str, Any] | None = None,
        cpu: bool = False,
        **batches: int,
    ) -> "Classifier":
        """From a checkpoint of ``sentence_prediction``. ``folder``: its data, if that was moved.

        Raises:
            UserError: no such checkpoint or data, another task, a tokenizer that is not the dictionary's.
        """
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint}: no such file")
        given = {**(overrides or {}), **({"data": str(folder)} if folder else {})}
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], given)
        if not hasattr(task, "label_dictionary"):
            raise UserError(f"{checkpoint}: not of task sentence_prediction, so it has no classes")
        model = models[0]
        if torch.cuda.is_available() and not cpu:
            model.cuda()
        return cls(model, task, read_data(Path(folder or task.cfg.data), tokenizer, task), **batches)

    # --- rows -------------------------------------------------------------------------------------------------------

    def rows(self, texts: Sequence[tuple[str, ...]]) -> list[Row]:
        """Token rows as the task builds them, cut like its data, and counted."""
        encoded = self.coder.encode([Labelled("", one, None) for one in texts])
        self.counts.cut += sum(cut > 0 for _, cut in encoded)
        return [self._row(parts) for parts, _ in encoded]

    def _row(self, texts: Sequence[np.ndarray]) -> Row:
        parts: list[int | None] = [None] * len(self.before)
        tokens = [np.array(self.before, dtype=np.int64)]
        for number, text in enumerate(texts):  # each ends with EOS
            between = np.array(self.between if number else [], dtype=np.int64)
            tokens += [between, text]
            parts += [None] * len(between) + [number] * (len(text) - 1) + [None]
        return Row(torch.from_numpy(np.concatenate(tokens)), parts)

    def _batches(self, rows: Sequence[Tensor]) -> Iterator[list[int]]:
        """Places of rows of like length, the longest first."""
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        batch: list[int] = []
        for place in order:
            longest = len(rows[batch[0]]) if batch else 0
            if batch and (len(batch) == self.batch_size or longest * (len(batch) + 1) > self.max_tokens):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    # --- predictions ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(self, rows: Sequence[Tensor], **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """One batch: (B, classes) and what the model says beside it."""
        tokens = data_utils.collate_tokens(list(rows), self.task.source_dictionary.pad()).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        given = {"features_only": True, "classification_head_name": self.head, **kwargs}
        return self.model(src_tokens=tokens, src_lengths=lengths, **given)

    def predict(
        self, texts: Sequence[tuple[str, ...]], done: Callable[[int], object] = lambda count: None
    ) -> list[Prediction]:
        """Predictions in the order of the texts (one text or a pair each), computed in batches of like length.

        ``done`` is called after each batch with its number of texts.
        """
        rows = [row.tokens for row in self.rows(texts)]
        found: list[Prediction | None] = [None] * len(rows)
        for places in self._batches(rows):
            logits, extra = self.logits([rows[place] for place in places])
            for place, values in zip(places, logits.float().cpu(), strict=True):
                found[place] = self.prediction(values)
            tokens = sum(len(rows[place]) for place in places)
            kept, total = (extra.get("stats") or {}).get("keep_ratio", (1, 1))
            self.counts.kept += int(kept)
            self.counts.all += int(total)
            self.counts.tokens += tokens
            self.counts.texts += len(places)
            done(len(places))
        return [one for one in found if one is not None]

    def classify(self, texts: Any) -> Any:
        """The prediction for each text, in their order: texts, or pairs of texts; one for a single text.

        Raises:
            UserError: what is no text, or not as many to a row as the model was trained with.
        """
        if isinstance(texts, str):
            return self.classify([texts])[0]
        rows = [(text,) if isinstance(text, (str, bytes)) else tuple(text) for text in texts]
        for place, row in enumerate(rows):
            if len(row) != self.data.inputs:
                raise UserError(f"row {place} (from 0): {len(row)} texts, the model takes {self.data.inputs}")
            check_texts(row)
        return self.predict(rows)

    forward = classify

    def prediction(self, logits: Tensor) -> Prediction:
        """What scores (classes,) mean."""
        logits = logits.float().cpu()
        if self.data.regression:
            score = float(logits[0]) * (self.data.top or 1.0)
            return Prediction(f"{score:.4f}", [], score)
        shares = logits.softmax(0)
        return Prediction(self.classes[int(shares.argmax())], shares.tolist())
