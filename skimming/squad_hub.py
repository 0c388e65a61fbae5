"""A trained model that answers questions behind one call: question and paragraph in, a span of the paragraph out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq import utils
from torch import nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.text_models import check_texts
from fairseq_efficient.text.subwords import find_tokenizer, read_subwords
from skimming.hub import token_table
from skimming.squad_decode import Answer, decode
from skimming.squad_windows import SquadDataset

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """``text`` is characters ``start`` to ``end`` (excluded) of the paragraph; "" (and 0, 0) if it has no answer.

    ``score``: of its start and end together. ``null_odds``: how much more no answer scores than the best span; only a
    model of SQuAD 2.0 has learned what that means.
    """

    text: str
    start: int
    end: int
    score: float
    null_odds: float


class _Rows(list[torch.Tensor]):
    """Token rows as a data set of fairseq has them."""

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(row) for row in self], dtype=np.int64)


class _Asked:
    """What :class:`SquadDataset` and :func:`decode` read of a :class:`skimming.squad_windows.SquadSplit`, in memory."""

    name = "asked"

    def __init__(self, pairs: Sequence[tuple[str, str]], subwords: Any, table: np.ndarray):
        places: dict[str, int] = {}
        self.paragraph_of = np.array([places.setdefault(text, len(places)) for _, text in pairs], dtype=np.int64)
        encoded = subwords.encode_offsets(list(places))
        self._offsets = [offsets for _, offsets in encoded]
        self.paragraphs = _Rows(torch.from_numpy(table[ids]) for ids, _ in encoded)
        self.questions = _Rows(torch.from_numpy(table[ids]) for ids in subwords.encode_ids([text for text, _ in pairs]))

    def offsets_of(self, question: int) -> np.ndarray:
        found: np.ndarray = self._offsets[int(self.paragraph_of[question])]
        return found


class QuestionAnswerer(nn.Module):
    """A model of task ``skim_squad`` in evaluation mode, and the tokenizer of its data.

    Args:
        data: the folder of the data (dictionary and tokenizer.json).
        max_tokens: padded tokens of a batch at most; a question whose windows are more is a batch of its own.

    Raises:
        UserError: the checkpoint has no head for questions; the tokenizer is not the dictionary's.
    """

    def __init__(self, model: Any, task: Any, data: Path, max_tokens: int = 16384):
        super().__init__()
        self.model, self.task, self.max_tokens = model, task, max_tokens
        self.eval()
        self.head = task.cfg.classification_head_name
        if self.head in getattr(model, "untrained_heads", ()):
            raise UserError(f"the checkpoint has no head {self.head} for questions: fine-tune it")
        self.subwords = read_subwords(find_tokenizer(data))
        self.table = token_table(self.subwords, task)

    def answer(
        self, question: str | Sequence[str], paragraph: str | Sequence[str], threshold: float = 0.0, longest: int = 30
    ) -> Any:
        """The :class:`Reply` to a question about a paragraph, or to each of several, in their order.

        Args:
            question: one, or several.
            paragraph: one for all questions, or as many as there are.
            threshold: of a model of SQuAD 2.0: no answer where that scores more than so much higher.
            longest: tokens of an answer.

        Raises:
            UserError: an empty question or paragraph, or not as many of the one as of the other; longest < 1.
        """
        if longest < 1:
            raise UserError(f"longest={longest}: must be at least 1")
        if isinstance(question, str):
            return self.answer([question], paragraph, threshold, longest)[0]
        question = check_texts(question)
        texts = check_texts([paragraph] * len(question) if isinstance(paragraph, str) else paragraph)
        if len(texts) != len(question):
            raise UserError(f"{len(question):,} questions, but {len(texts):,} paragraphs")
        pairs = list(zip(question, texts, strict=True))
        for place, (one, text) in enumerate(pairs):
            if not one.strip() or not text.strip():
                raise UserError(f"question {place} (from 0): empty {'question' if not one.strip() else 'paragraph'}")
        found = self._answers(_Asked(pairs, self.subwords, self.table), longest) if pairs else {}
        replies = []
        for place, (_, text) in enumerate(pairs):
            answer = found[place]
            if not answer.spans or (self.task.version2 and answer.null_odds > threshold):
                replies.append(Reply("", 0, 0, answer.null, answer.null_odds))
            else:
                score, start, end = answer.spans[0]
                replies.append(Reply(text[start:end], start, end, score, answer.null_odds))
        return replies

    forward = answer

    @torch.inference_mode()
    def _answers(self, asked: _Asked, longest: int) -> dict[int, Answer]:
        cfg, found = self.task.cfg, {}
        dataset: Any = SquadDataset(
            asked,  # type: ignore[arg-type]
            self.task.source_dictionary,
            limit=cfg.max_seq_length,
            stride=cfg.doc_stride,
            longest_question=cfg.max_query_length,
            init=cfg.init_token,
            separator=cfg.separator_token,
            training=False,
        )
        if dataset.cut_questions:
            logger.warning(f"{dataset.cut_questions:,} questions cut to {cfg.max_query_length} tokens")
        device = next(self.model.parameters()).device
        for batch in dataset.batch_by_size(dataset.ordered_indices(), max_tokens=self.max_tokens):
            sample = dataset.collater([dataset[place] for place in batch])
            sample = utils.move_to_cuda(sample, device) if device.type == "cuda" else sample
            logits = self.model(**sample["net_input"], features_only=True, classification_head_name=self.head)[0]
            found.update({one.question: one for one in decode(logits, sample, asked, 1, longest)})
        return found
