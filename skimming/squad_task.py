"""Task ``skim_squad``: answers to questions as spans of a paragraph, SQuAD 1.1 and 2.0."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from fairseq import models
from fairseq.data import Dictionary
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.sentence_prediction import SentencePredictionTask

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.prepared import read_report
from skimming.config import SkimSquadConfig
from skimming.squad_windows import SquadDataset, SquadSplit

logger = logging.getLogger(__name__)


@register_task("skim_squad", dataclass=SkimSquadConfig)
class SkimSquadTask(FairseqTask):
    """Training batches are of windows, validation batches of questions with all their windows."""

    def __init__(self, cfg: SkimSquadConfig, dictionary: Dictionary):
        super().__init__(cfg)
        self.dictionary = dictionary
        self.version2 = (read_report(Path(cfg.data)) or {}).get("version2")

    @classmethod
    def setup_task(cls, cfg: SkimSquadConfig, **kwargs: Any) -> "SkimSquadTask":
        """Raises UserError for numbers that make no windows and for a folder without a dictionary."""
        for name, least in (("max_seq_length", 8), ("doc_stride", 0), ("max_query_length", 1)):
            if getattr(cfg, name) < least:
                flag = f"--{name.replace('_', '-')} {getattr(cfg, name)}"
                raise UserError(f"{flag}: must be at least {least}")
        path = os.path.join(cfg.data, "input0", "dict.txt")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; prepare with scripts/prepare_classification.py --format squad")
        return cls(cfg, SentencePredictionTask.load_dictionary(path))

    def load_dataset(self, split: str, combine: bool = False, training: bool | None = None, **kwargs: Any) -> None:
        """Windows over ``split``; says how many questions were cut, or left out of training.

        Args:
            training: items are windows, with targets; else questions. None: of ``train`` (``combine``, as fairseq
                loads what it trains on).
        """
        data = SquadSplit(self.cfg.data, split, self.dictionary)
        if training is None:
            training = combine and not split.startswith("valid")  # --combine-valid-subsets
        if self.version2 is None:
            self.version2 = any(record["impossible"] for record in data.records)
        dataset = SquadDataset(
            data,
            self.dictionary,
            limit=self.cfg.max_seq_length,
            stride=self.cfg.doc_stride,
            longest_question=self.cfg.max_query_length,
            init=self.cfg.init_token,
            separator=self.cfg.separator_token,
            training=training,
        )
        if training and not self.cfg.no_shuffle:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.cfg.seed)
                dataset.order = torch.randperm(len(dataset)).tolist()
        logger.info(f"{split}: {len(data):,} questions, {len(dataset.question):,} windows")
        if dataset.cut_questions:
            limit = self.cfg.max_query_length
            logger.warning(f"{split}: {dataset.cut_questions:,} questions cut to --max-query-length {limit} tokens")
        if training and len(dataset.unusable):
            logger.warning(f"{split}: {len(dataset.unusable):,} questions left out: none of their answers is in place")
        if not len(dataset):
            raise UserError(f"{self.cfg.data}: split {split} has no question that can be used")
        self.datasets[split] = dataset

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Raises UserError for a model without a head for questions, or one that reads shorter rows."""
        model = models.build_model(cfg, self, from_checkpoint)
        if not hasattr(model, "register_question_answering_head"):
            raise UserError(f"--arch {getattr(cfg, 'arch', cfg._name)}: task skim_squad needs a skim_roberta model")
        if model.max_positions() < self.cfg.max_seq_length:
            limit = model.max_positions()
            raise UserError(f"--max-seq-length {self.cfg.max_seq_length}: the model reads {limit} tokens")
        model.register_question_answering_head(self.cfg.classification_head_name)
        return model

    def max_positions(self) -> int:
        return self.cfg.max_seq_length

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary
