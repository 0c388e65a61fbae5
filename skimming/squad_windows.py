"""Questions and windows over their paragraphs, as ``scripts/prepare_classification.py --format squad`` wrote them."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.squad.windows import answer_tokens, cut_windows

logger = logging.getLogger(__name__)


class SquadSplit:
    """One split on disk. Paragraphs are shared by their questions.

    Raises:
        UserError: a file is missing, or the files are not of one making.
    """

    def __init__(self, folder: str, split: str, dictionary: Dictionary) -> None:
        def load(kind: str, name: str, words: Dictionary | None = dictionary) -> Any:
            path = os.path.join(folder, kind, name)
            found = data_utils.load_indexed_dataset(path, words, "mmap")
            if found is None:
                raise UserError(f"{path}.idx: no such file; prepare with prepare_classification.py --format squad")
            return found

        self.name = split
        self.questions, self.paragraphs = load("input0", split), load("input1", split)
        self._offsets = load("input1", f"{split}.offsets", None)
        self.texts: list[str] = _lines(Path(folder, "input1", f"{split}.jsonl"))
        self.records: list[dict[str, Any]] = _lines(Path(folder, "label", f"{split}.jsonl"))
        sizes = len(self.paragraphs), len(self._offsets), len(self.texts)
        if len(set(sizes)) != 1 or len(self.questions) != len(self.records):
            raise UserError(f"{folder}: the files of split {split} do not belong together; prepare it again")
        self.paragraph_of = np.array([record["paragraph"] for record in self.records], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.records)

    def offsets_of(self, question: int) -> np.ndarray:
        """(tokens, 2): where each token of the question's paragraph starts and ends, in characters."""
        return self._offsets[int(self.paragraph_of[question])].numpy().reshape(-1, 2)

    def text_of(self, question: int, start: int, end: int) -> str:
        """Characters of the question's paragraph."""
        return self.texts[self.paragraph_of[question]][start:end]

    def golds(self, question: int) -> list[str]:
        return [text for text, _ in self.records[question]["answers"]]

    def has_gold(self, question: int) -> bool:
        """Whether a prediction can be scored: it has an answer, or is known to have none."""
        return bool(self.records[question]["answers"]) or self.records[question]["impossible"]

    def answer_span(self, question: int) -> tuple[int, int] | None:
        """First and last token, in the paragraph, of the first answer that can be used; None if there is none."""
        record = self.records[question]
        for (text, start), usable in zip(record["answers"], record["usable"], strict=True):
            found = answer_tokens(self.offsets_of(question), start, start + len(text)) if usable else None
            if found is not None:
                return found
        return None


def _lines(path: Path) -> list[Any]:
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [parse_json(line) for line in file]
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: {getattr(err, 'strerror', None) or 'damaged; prepare it again'}") from None


class SquadDataset(FairseqDataset):
    """Rows ``<s> question </s> window of the paragraph </s>``.

    In training an item is one window, its target the answer's tokens or, if they are not all inside, position 0. In
    evaluation an item is one question with all its windows, so that each is scored once on whatever rank it lands.

    Args:
        limit: tokens of a row.
        stride: tokens that neighbouring windows share.
        longest_question: questions are cut to so many tokens.
        init: token before the question; None: none.
        separator: token before the paragraph, after the question's ``</s>``; None: none.
    """

    def __init__(
        self,
        data: SquadSplit,
        dictionary: Dictionary,
        *,
        limit: int,
        stride: int,
        longest_question: int,
        init: int | None,
        separator: int | None,
        training: bool,
    ) -> None:
        self.data, self.training = data, training
        self.order: Sequence[int] | None = None
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.before = [] if init is None else [init]
        self.between = [self.eos] if separator is None else [self.eos, separator]
        self.longest_question = longest_question
        asked = np.asarray(data.questions.sizes, dtype=np.int64)
        self.cut_questions = int(np.count_nonzero(asked > longest_question))
        asked = np.minimum(asked, longest_question)
        fixed = len(self.before) + len(self.between) + 1
        paragraphs = np.asarray(data.paragraphs.sizes, dtype=np.int64)[data.paragraph_of]
        self.question, self.start, self.length = cut_windows(asked + fixed, paragraphs, limit, stride)
        self.rows = (asked + fixed)[self.question] + self.length  # tokens of each window's row
        if training:
            self.targets, self.unusable = self._targets()
            kept = ~np.isin(self.question, self.unusable)
            self.first = np.flatnonzero(kept)
            self.counts = np.ones(len(self.first), dtype=np.int64)
        else:
            self.first = np.flatnonzero(np.diff(self.question, prepend=-1))
            self.counts = np.diff(self.first, append=len(self.question))
        self.sizes = np.maximum.reduceat(self.rows, self.first) if not training else self.rows[self.first]

    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Per window the positions of the answer's ends in its row, (W, 2); and the questions to leave out."""
        spans = [self.data.answer_span(question) for question in range(len(self.data))]
        lost = [i for i, span in enumerate(spans) if span is None and not self.data.records[i]["impossible"]]
        ends = np.array([(-1, -1) if span is None else span for span in spans], dtype=np.int64).reshape(-1, 2)
        found = ends[self.question]
        inside = (found[:, 0] >= self.start) & (found[:, 1] < self.start + self.length) & (found[:, 0] >= 0)
        shifted = found - self.start[:, None] + (self.rows - 1 - self.length)[:, None]
        return np.where(inside[:, None], shifted, 0), np.array(lost, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> dict[str, Any]:
        windows = range(self.first[index], self.first[index] + self.counts[index])
        return {"id": index, "windows": [self._window(window) for window in windows]}

    def _window(self, window: int) -> dict[str, Any]:
        question, start, length = (int(x[window]) for x in (self.question, self.start, self.length))
        asked = self.data.questions[question][: self.longest_question].long()
        context = self.data.paragraphs[int(self.data.paragraph_of[question])][start : start + length].long()
        head = torch.cat([asked.new_tensor(self.before), asked, asked.new_tensor(self.between)])
        return {
            "tokens": torch.cat([head, context, asked.new_tensor([self.eos])]),
            "question": question,
            "context": len(head),
            "window": start,
            "target": self.targets[window].tolist() if self.training else [0, 0],
        }

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; ``context`` (R,) is where a row's paragraph starts, ``window`` (R,) that token's place in it."""
        rows = [window for sample in samples for window in sample["windows"]]
        if not rows:
            return {}
        tokens = [row["tokens"] for row in rows]
        lengths = torch.tensor([len(row) for row in tokens])
        padded = data_utils.collate_tokens(tokens, self.pad, left_pad=False)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "split": self.data.name,
            "net_input": {"src_tokens": padded, "src_lengths": lengths},
            "nsentences": len(rows),
            "ntokens": int(lengths.sum()),
            **{key: torch.tensor([row[key] for row in rows]) for key in ("target", "question", "context", "window")},
        }

    def num_tokens(self, index: int) -> int:
        """Tokens of an item for --max-tokens: its windows, each as long as the longest."""
        return int(self.sizes[index] * self.counts[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices] * self.counts[indices]

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> Any:
        """As fairseq's; a question whose windows together have more than ``max_tokens`` is a batch of its own."""
        sizes = self.num_tokens_vec(np.asarray(indices))
        if max_tokens is not None and not self.training:
            sizes = np.minimum(sizes, max_tokens)
        return data_utils.batch_by_size(
            indices,
            num_tokens_fn=self.num_tokens,
            num_tokens_vec=sizes,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """In training the order it was given; in evaluation by length."""
        if self.order is not None:
            return np.asarray(self.order)
        return np.argsort(self.sizes, kind="stable")
