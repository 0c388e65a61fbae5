"""Task ``long_summarization``: translation of long documents. Too long is cut and counted, nothing is dropped."""

import argparse
import functools
import logging
import os
from dataclasses import dataclass, field, fields
from typing import Any, Callable, Dict, List, Optional

import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.data.iterators import CountingIterator, EpochBatchIterator
from fairseq.dataclass.configs import GenerationConfig
from fairseq.logging import metrics
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset

from fairseq_efficient.data.long_documents import LongDocumentDataset, cut_targets, select_rows
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.text.reading import parse_json
from fairseq_efficient.text.summarization.rouge import KINDS, score_pair

logger = logging.getLogger(__name__)

PRINTED_SAMPLES = 3


@dataclass
class LongSummarizationConfig(TranslationConfig):
    """Flags of ``long_summarization``."""

    source_lang: Optional[str] = field(
        default=None,
        metadata={"help": "suffix of the documents (default: read off the files, else src)", "argparse_alias": "-s"},
    )
    target_lang: Optional[str] = field(
        default=None,
        metadata={"help": "suffix of the summaries (default: read off the files, else tgt)", "argparse_alias": "-t"},
    )
    max_source_positions: int = field(
        default=0, metadata={"help": "cut documents to so many tokens, EOS included (default 0: what the model takes)"}
    )
    left_pad_source: bool = field(default=False, metadata={"help": "pad documents on the left (default: on the right)"})
    truncate_source: bool = field(default=False, metadata={"help": "no effect: this task cuts unless --no-truncate"})
    no_truncate: bool = field(
        default=False, metadata={"help": "stop with an error where a document or training summary is too long to fit"}
    )
    eval_rouge: bool = field(
        default=False,
        metadata={"help": "decode the validation set and report rouge1, rouge2, rougeL, rougeLsum (F1, stemmed)"},
    )
    eval_rouge_args: Optional[str] = field(
        default="{}",
        metadata={"help": 'how to decode, as JSON: \'{"beam": 4, "max_len_b": 200}\' (names as of fairseq-generate)'},
    )
    eval_rouge_remove_bpe: Optional[str] = field(
        default="sentencepiece",
        metadata={"help": "how to get words back from pieces, as --post-process (default: sentencepiece)"},
    )
    eval_rouge_max_samples: int = field(
        default=0, metadata={"help": "decode only the first N documents of a split; 0: all (the log says rouge_n)"}
    )
    eval_rouge_print_samples: bool = field(
        default=False, metadata={"help": "print the first few hypotheses and references at each validation"}
    )


def generation_args(text: Optional[str]) -> Dict[str, Any]:
    """``--eval-rouge-args``; UserError unless it is a JSON object of fairseq generation options."""
    try:
        found = parse_json(text or "{}")
    except ValueError as err:
        raise UserError(f"--eval-rouge-args: not JSON ({err})") from None
    if not isinstance(found, dict):
        raise UserError("--eval-rouge-args: not a JSON object")
    known = {item.name for item in fields(GenerationConfig)}
    for name in found:
        if name not in known:
            raise UserError(f"--eval-rouge-args: {name!r}: no such option of fairseq-generate (write max_len_b)")
    return found


def _smaller(*limits: Optional[int]) -> Optional[int]:
    given = [int(limit) for limit in limits if limit is not None]
    return min(given) if given else None


class _CheckedIterator(CountingIterator):
    """Calls ``check`` when the last batch has been used, that is when one more is asked for."""

    def __init__(self, inner: Any, check: Callable[[], None]) -> None:
        super().__init__(inner, start=getattr(inner, "n", 0), total=len(inner))
        self.check: Optional[Callable[[], None]] = check

    def __next__(self) -> Any:
        if not self.has_next() and self.check is not None:
            check, self.check = self.check, None
            check()
        return super().__next__()


@register_task("long_summarization", dataclass=LongSummarizationConfig)
class LongSummarizationTask(TranslationTask):
    """Documents to summaries.

    Sources longer than the task's, the checkpoint's or the model's length are cut (EOS kept), training targets too;
    references stay whole, only the teacher-forced validation loss sees their first ``max_target_positions`` tokens.
    Every line of every split gets into a batch, and decoding checks that each document of a split got a hypothesis.
    """

    cfg: LongSummarizationConfig

    def __init__(self, cfg: LongSummarizationConfig, src_dict: Any, tgt_dict: Any) -> None:
        super().__init__(cfg, src_dict, tgt_dict)
        self.target_limit: Optional[int] = None
        self.model_limit: Optional[int] = None
        self.checkpoint_limits: Dict[str, Optional[int]] = {}
        self.decoded: set = set()
        self.rouge_generator: Any = None

    @classmethod
    def setup_task(cls, cfg: LongSummarizationConfig, **kwargs: Any) -> "LongSummarizationTask":
        """UserError if the data folder or a dictionary is not there, or an option does not go with this task."""
        paths = utils.split_paths(cfg.data or "")
        if not paths or not os.path.isdir(paths[0]):
            raise UserError(f"{cfg.data}: no such data folder")
        if cfg.num_batch_buckets or cfg.load_alignments:
            flag = "--num-batch-buckets" if cfg.num_batch_buckets else "--load-alignments"
            raise UserError(f"{flag}: not supported by --task long_summarization")
        if cfg.max_source_positions in (None, 0):
            cfg.max_source_positions = ANY_LENGTH
        if cfg.max_source_positions < 2 or cfg.max_target_positions < 2:
            raise UserError("--max-source-positions and --max-target-positions: must be at least 2")
        if cfg.source_lang is None or cfg.target_lang is None:
            source, target = data_utils.infer_language_pair(paths[0])
            cfg.source_lang = cfg.source_lang or source or "src"
            cfg.target_lang = cfg.target_lang or target or "tgt"
        for lang in (cfg.source_lang, cfg.target_lang):
            if not os.path.isfile(os.path.join(paths[0], f"dict.{lang}.txt")):
                raise UserError(f"{os.path.join(paths[0], f'dict.{lang}.txt')}: No such file (is this prepared data?)")
        if cfg.eval_rouge:
            generation_args(cfg.eval_rouge_args)
        task: LongSummarizationTask = super().setup_task(cfg, **kwargs)
        return task

    # --- data ------------------------------------------------------------------------------------------------------

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Load a split; for evaluation with ``task_cfg``, a checkpoint's: documents no longer than it was built for."""
        paths = utils.split_paths(self.cfg.data)
        paths = paths if split == self.cfg.train_subset else paths[:1]
        try:
            pairs = load_langpair_dataset(
                paths[(epoch - 1) % len(paths)],
                split,
                self.cfg.source_lang,
                self.src_dict,
                self.cfg.target_lang,
                self.tgt_dict,
                combine=combine,
                dataset_impl=self.cfg.dataset_impl,
                upsample_primary=self.cfg.upsample_primary,
                left_pad_source=self.cfg.left_pad_source,
                left_pad_target=self.cfg.left_pad_target,
                max_source_positions=self.cfg.max_source_positions,
                max_target_positions=self.cfg.max_target_positions,
                shuffle=(split != "test"),
                pad_to_multiple=self.cfg.required_seq_len_multiple,
            )
        except FileNotFoundError:
            raise UserError(f"{paths[0]}: no split {split!r} ({self.cfg.source_lang}-{self.cfg.target_lang})") from None
        self.checkpoint_limits[split] = getattr(task_cfg, "max_source_positions", None)
        self.datasets[split] = LongDocumentDataset(
            pairs.src,
            pairs.src_sizes,
            self.src_dict,
            pairs.tgt,
            pairs.tgt_sizes,
            self.tgt_dict,
            left_pad_source=self.cfg.left_pad_source,
            left_pad_target=self.cfg.left_pad_target,
            shuffle=pairs.shuffle,
            pad_to_multiple=self.cfg.required_seq_len_multiple,
            name=split,
            training=split == self.cfg.train_subset and task_cfg is None,
        )

    def build_dataset_for_inference(
        self, src_tokens: List[torch.Tensor], src_lengths: List[int], constraints: Any = None
    ) -> LongDocumentDataset:
        """Documents typed into fairseq-interactive; cut like any other."""
        return LongDocumentDataset(
            src_tokens,
            src_lengths,
            self.source_dictionary,
            tgt_dict=self.target_dictionary,
            left_pad_source=self.cfg.left_pad_source,
            constraints=constraints,
            name="input",
            training=False,
        )

    def _cut(self, dataset: LongDocumentDataset, max_positions: Any) -> None:
        """Cut to the smallest of the task's, the checkpoint's and ``max_positions`` (the model's); say how much."""
        if max_positions is None:
            max_positions = self.max_positions()
        if not isinstance(max_positions, (tuple, list)):
            max_positions = (max_positions, max_positions)
        saved = self.checkpoint_limits.get(dataset.name)
        saved = None if saved == ANY_LENGTH else saved
        max_source = _smaller(max_positions[0], self.cfg.max_source_positions, saved, self.model_limit)
        max_target = _smaller(max_positions[1], self.cfg.max_target_positions)
        self.target_limit = max_target
        if self.cfg.no_truncate:
            found = dataset.too_long(max_source, max_target)
            if len(found):
                what = f"{dataset.name}: {len(found):,} of {len(dataset):,} pairs are too long, first #{found[0]}"
                raise UserError(f"--no-truncate: {what} (limits: {max_source} source, {max_target} target tokens)")
        if not dataset.cut_to(max_source, max_target):
            return
        cut = bool((dataset.full_src_sizes > dataset.src_sizes).any())
        if dataset.name != "input" or cut:
            logger.info(dataset.describe_cut())
        if cut and max_source is not None and max_source < self.cfg.max_source_positions < ANY_LENGTH:
            reason = "the checkpoint's" if saved == max_source else "the model's or --max-tokens'"
            asked = f"below the {self.cfg.max_source_positions:,} asked for"
            logger.info(f"{dataset.name}: {max_source:,} tokens is {reason} limit, {asked}")

    def get_batch_iterator(self, dataset: Any, max_tokens: Optional[int] = None, **kwargs: Any) -> EpochBatchIterator:
        """Batches that hold every line of the dataset exactly once; RuntimeError if they would not."""
        if not isinstance(dataset, LongDocumentDataset):
            return super().get_batch_iterator(dataset, max_tokens=max_tokens, **kwargs)
        if len(dataset) == 0:
            raise UserError(f"{dataset.name}: the split is empty")
        self._cut(dataset, kwargs.pop("max_positions", None))
        if not dataset.training:
            kwargs["required_batch_size_multiple"] = 1
        if max_tokens is not None:
            longest = int(dataset.sizes.max())
            if longest > max_tokens:
                logger.info(f"{dataset.name}: --max-tokens {max_tokens:,} raised to the longest line, {longest:,}")
                max_tokens = longest
        batches = super().get_batch_iterator(dataset, max_tokens=max_tokens, max_positions=None, **kwargs)
        planned = sum(map(len, batches.frozen_batches))
        if planned != len(dataset):
            raise RuntimeError(f"{dataset.name}: batches hold {planned:,} of {len(dataset):,} lines")
        if not dataset.training and not isinstance(batches.next_epoch_itr, functools.partial):
            batches.next_epoch_itr = functools.partial(self._checked_epoch, batches, batches.next_epoch_itr)
        return batches

    def _checked_epoch(self, batches: EpochBatchIterator, start: Callable[..., Any], **kwargs: Any) -> CountingIterator:
        """An epoch that ends with :meth:`_check_decoded`."""
        self.decoded.clear()
        return _CheckedIterator(start(**kwargs), functools.partial(self._check_decoded, batches))

    def _check_decoded(self, batches: EpochBatchIterator) -> None:
        """RuntimeError if documents of this rank's batches were decoded, but not all of them."""
        own = list(batches.frozen_batches)[batches.shard_id :: batches.num_shards]
        expected = {int(i) for batch in own for i in batch}
        if self.rouge_generator is not None and self.cfg.eval_rouge_max_samples > 0:
            expected = {i for i in expected if i < self.cfg.eval_rouge_max_samples}
        name = batches.dataset.name
        missing = sorted(expected - self.decoded)
        if self.decoded and missing:
            raise RuntimeError(f"{name}: {len(missing):,} documents got no hypothesis, first #{missing[0]}")
        if self.decoded and name != "input":
            logger.info(f"{name}: {len(expected):,} documents, {len(self.decoded & expected):,} hypotheses")

    # --- decoding and ROUGE ----------------------------------------------------------------------------------------

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)
        self.model_limit = _smaller(self.model_limit, getattr(model.encoder, "source_limit", None))
        if self.cfg.eval_rouge:
            args = argparse.Namespace(**generation_args(self.cfg.eval_rouge_args))
            self.rouge_generator = self.build_generator([model], args)
        return model

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Decode a batch; RuntimeError unless every row got a hypothesis."""
        if isinstance(generator, SequenceScorer):  # --score-reference: scores only what the model has positions for
            sample = self._within_limit(sample)
        hypotheses = super().inference_step(generator, models, sample, prefix_tokens, constraints)
        rows = sample["net_input"]["src_tokens"].size(0)
        if len(hypotheses) != rows or not all(hypotheses):
            raise RuntimeError(f"{sum(map(bool, hypotheses))} of {rows} documents of a batch got a hypothesis")
        if "id" in sample:
            self.decoded.update(sample["id"].tolist())
        return hypotheses

    def _within_limit(self, sample: Any) -> Any:
        return sample if self.target_limit is None else cut_targets(sample, self.target_limit, self.tgt_dict.pad())

    def train_step(self, sample: Any, *args: Any, **kwargs: Any) -> Any:
        # only a validation batch that the trainer keeps as its dummy can still be too long here
        return super().train_step(self._within_limit(sample), *args, **kwargs)

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """The loss on targets cut to ``max_target_positions``; ROUGE against the whole references."""
        loss, sample_size, logging_output = super().valid_step(self._within_limit(sample), model, criterion)
        if self.cfg.eval_rouge:
            logging_output.update(self._rouge_sums(sample, model))
        return loss, sample_size, logging_output

    def _words(self, tokens: torch.Tensor) -> str:
        text: str = self.tgt_dict.string(tokens.int().cpu(), self.cfg.eval_rouge_remove_bpe)
        return text

    def _rouge_sums(self, sample: Any, model: Any) -> Dict[str, float]:
        """Sums over the batch's documents, which ranks can add up. Draws from no generator that training uses."""
        sums = {f"_{kind}": 0.0 for kind in ("rouge_n", *KINDS)}
        limit = self.cfg.eval_rouge_max_samples
        rows = sample["id"] < limit if limit > 0 else torch.ones_like(sample["id"], dtype=torch.bool)
        if not rows.any():
            return sums
        sample = select_rows(sample, rows)
        sampling = bool(generation_args(self.cfg.eval_rouge_args).get("sampling"))
        with torch.random.fork_rng(enabled=sampling):
            if sampling:
                torch.manual_seed(int(sample["id"].sum()))
            found = self.inference_step(self.rouge_generator, [model], sample)
        for number, target, hypotheses in zip(sample["id"].tolist(), sample["target"], found, strict=True):
            reference = self._words(utils.strip_pad(target, self.tgt_dict.pad()))
            hypothesis = self._words(hypotheses[0]["tokens"])
            if self.cfg.eval_rouge_print_samples and number < PRINTED_SAMPLES:
                logger.info(f"example {number} hypothesis: {hypothesis}")
                logger.info(f"example {number} reference: {reference}")
            sums["_rouge_n"] += 1
            for kind, score in zip(KINDS, score_pair(reference, hypothesis), strict=True):
                sums[f"_{kind}"] += 100 * score
        return sums

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        if not self.cfg.eval_rouge or not any("_rouge_n" in log for log in logging_outputs):
            return
        for name in ("rouge_n", *KINDS):
            metrics.log_scalar(f"_{name}", sum(float(log.get(f"_{name}", 0)) for log in logging_outputs))

        def mean(meters: Any, key: str) -> float:
            return round(meters[key].sum / max(meters["_rouge_n"].sum, 1), 4)

        for kind in KINDS:
            metrics.log_derived(kind, functools.partial(mean, key=f"_{kind}"))
        metrics.log_derived("rouge_n", lambda meters: int(meters["_rouge_n"].sum))
