"""Task ``segment_lm``: language models that read a stream block by block and remember what came before."""

import logging
import os
import weakref
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional

import torch
from fairseq import utils
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import II

from fairseq_efficient.data.token_stream import Lanes, LanesIterator, StreamDataset, evaluation_lanes, training_lanes
from fairseq_efficient.data.token_windows import load_stream
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel
from fairseq_efficient.plugin.batch_split import step_by_parts
from fairseq_efficient.plugin.prefilled_generation import PromptReader
from fairseq_efficient.stream_memory import MemoryCell, StreamMemory, collect

logger = logging.getLogger(__name__)

DEFAULT_TOKENS = 512
REFUSED = {
    "self_target": "it predicts the next token only",
    "past_target": "it predicts the next token only",
    "add_bos_token": "the stream has no sentences",
    "pad_to_fixed_length": "blocks have one length",
    "pad_to_fixed_bsz": "batches have one size",
}


@dataclass
class SegmentLMConfig(LanguageModelingConfig):
    """Flags of ``segment_lm``."""

    tokens_per_sample: int = field(
        default=0,
        metadata={
            "help": "tokens that each lane reads in a step, beside its memory (default: 512; in evaluation what the "
            "model was trained with). --batch-size is the number of lanes of a rank"
        },
    )
    eval_tokens_per_sample: Optional[int] = field(
        default=None,
        metadata={"help": "tokens that each lane reads in a step of evaluation (default: --tokens-per-sample)"},
    )
    eval_mem_len: Optional[int] = field(
        default=None, metadata={"help": "tokens that the model remembers in evaluation (default: as in training)"}
    )
    eval_warmup: Optional[int] = field(
        default=None,
        metadata={
            "help": "tokens that a lane reads, unscored, before its own part in evaluation (default: all that its "
            "memory can depend on, so that perplexity is that of a single lane; 0: lanes start without memory)"
        },
    )
    shift_blocks: bool = field(
        default=False, metadata={"help": "cut the blocks of each training epoch at other places of the lanes"}
    )
    no_save_memory: bool = field(
        default=False,
        metadata={
            "help": "keep memory out of checkpoints inside an epoch: smaller files, but a resumed training first has "
            "none and goes on slightly differently"
        },
    )
    batch_split: int = field(
        default=1,
        metadata={
            "help": "compute a training batch in so many parts, one after the other: less memory, the same gradient "
            "(--update-freq, beside it, is more lanes)"
        },
    )
    update_freq: List[int] = II("optimization.update_freq")  # noqa: RUF009


@register_task("segment_lm", dataclass=SegmentLMConfig)
class SegmentLMTask(PromptReader, LanguageModelingTask):
    """Language modelling on ``dict.txt`` and ``SPLIT.{bin,idx}`` (``scripts/prepare_lm.py``, ``fairseq-preprocess``).

    How a stream is cut: :mod:`fairseq_efficient.data.token_stream`. Models: ``StreamLanguageModel``; others run
    without memory.
    """

    def __init__(self, args: Any, *rest: Any, **kwargs: Any):
        super().__init__(args, *rest, **kwargs)
        self.memory = StreamMemory()
        self._models: List[Any] = []  # weak references to the models that this task has built
        self._trained_tokens = 0  # --tokens-per-sample of the model that was loaded
        self._iterator: Optional[LanesIterator] = None  # of training
        self._saved: Dict[str, Any] = {}

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> Any:
        """Raises UserError for flags that this task cannot keep, and for a folder without dictionary."""
        for name, why in REFUSED.items():
            if getattr(args, name, False):
                raise UserError(f"--{name.replace('_', '-')} is not for the segment_lm task: {why}")
        if args.output_dictionary_size >= 0 or args.shorten_method != "none":
            raise UserError("--output-dictionary-size and --shorten-method are not for the segment_lm task")
        if str(args.sample_break_mode or "none") != "none":
            raise UserError(f"--sample-break-mode {args.sample_break_mode}: the segment_lm task reads a stream (none)")
        if args.tokens_per_sample < 0:  # fairseq-eval-lm subtracts --context-window
            raise UserError("--context-window is not for the segment_lm task: memory is the context (--eval-mem-len); "
                            "nor is a negative --tokens-per-sample")  # fmt: skip
        for name, least in (
            ("eval_tokens_per_sample", 1), ("eval_mem_len", 0), ("eval_warmup", 0), ("batch_split", 1)
        ):  # fmt: skip
            if hasattr(args, name):
                check_least(args, least, name)
        path = os.path.join(utils.split_paths(args.data or ".")[0], "dict.txt")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; prepare the data with scripts/prepare_lm.py or fairseq-preprocess")
        return super().setup_task(args, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        if from_checkpoint:
            self._trained_tokens = getattr(args, "tokens_per_sample", None) or 0
        elif getattr(args, "tokens_per_sample", None) == 0:
            args.tokens_per_sample = DEFAULT_TOKENS
        model = super().build_model(args, from_checkpoint)
        self._models = [*map(weakref.ref, self._living()), weakref.ref(model)]
        return model

    def build_criterion(self, args: Any, *rest: Any, **kwargs: Any) -> Any:
        criterion = super().build_criterion(args, *rest, **kwargs)
        for model in self._living():
            if isinstance(model, StreamLanguageModel):
                model.trained_by(criterion)
        return criterion

    def _living(self) -> List[Any]:
        """The models that this task has built and somebody still uses."""
        return [model for one in self._models if (model := one()) is not None]

    # --- data ---------------------------------------------------------------------------------------------------

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """The stream of ``split``; UserError if it is not there, was not written as mmap or is of other data."""
        paths = utils.split_paths(self.args.data)
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        stream = load_stream(path, self.dictionary, self.args.dataset_impl, combine)
        self.datasets[split] = StreamDataset(stream, path, self.dictionary.pad())

    def get_batch_iterator(
        self,
        dataset: Any,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        max_positions: Any = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        update_epoch_batch_itr: Optional[bool] = None,
        **kwargs: Any,
    ) -> Any:
        """Batches of lanes. Options that sort, filter, round or drop batches have no effect.

        Only the trainer, and only for training, says something about ``update_epoch_batch_itr``; all other readers
        get the lanes of evaluation.
        """
        loading = {"num_workers": num_workers, "epoch": epoch, "buffer_size": data_buffer_size}
        shards = {"num_shards": num_shards, "shard_id": shard_id}
        if not isinstance(dataset, StreamDataset):  # the lines of fairseq-interactive
            sizes = {"max_tokens": max_tokens, "max_sentences": max_sentences, "max_positions": max_positions}
            loading["data_buffer_size"] = loading.pop("buffer_size")
            return super().get_batch_iterator(dataset, **sizes, **shards, **loading, **kwargs)
        training = update_epoch_batch_itr is not None
        tokens = self._tokens(training)
        rows = max_sentences or (max_tokens or 0) // tokens
        if not rows:
            said = f"--max-tokens {max_tokens} holds no block of {tokens} tokens" if max_tokens else "no lanes"
            raise UserError(f"{said}; say --batch-size (lanes), for validation --batch-size-valid")
        for model in self._living():
            if tokens > model.max_positions():
                raise UserError(f"--tokens-per-sample {tokens}: the model reads at most {model.max_positions()}")
        if training:
            lanes = self._training_lanes(dataset, tokens, rows, num_shards, epoch)
        else:
            lanes = evaluation_lanes(dataset, tokens, rows * num_shards, num_shards, self._warmup(tokens))
        logger.info(f"{dataset.name}: {lanes.lanes} lane(s) of {lanes.steps} block(s) of {tokens} tokens")
        iterator = LanesIterator(lanes, **shards, **loading)
        if training:
            self._iterator = iterator
        return iterator

    def _training_lanes(self, dataset: Any, tokens: int, rows: int, ranks: int, epoch: int) -> Lanes:
        update_freq = list(self.args.update_freq)
        groups = ranks * update_freq[min(epoch, len(update_freq)) - 1]
        return training_lanes(dataset, tokens, rows, groups, epoch, self.args.seed if self.args.shift_blocks else None)

    def _tokens(self, training: bool) -> int:
        if not training and self.args.eval_tokens_per_sample:
            return int(self.args.eval_tokens_per_sample)
        return int(self.args.tokens_per_sample or self._trained_tokens or DEFAULT_TOKENS)

    def evaluation_tokens(self) -> int:
        """Tokens of a block in evaluation."""
        return self._tokens(training=False)

    def _warmup(self, tokens: int) -> Optional[int]:
        """Tokens that lanes of evaluation read first; None if there is no end to what memory can depend on."""
        if self.args.eval_warmup is not None:
            return int(self.args.eval_warmup)
        reach = 0
        for model in self._living():
            if isinstance(model, StreamLanguageModel):
                found = model.memory_reach(tokens, self.args.eval_mem_len)
                if found is None:
                    return None
                reach = max(reach, found)
        return reach

    def eval_lm_dataloader(self, dataset: Any, context_window: int = 0, **kwargs: Any) -> Any:
        """Raises UserError for a context window: memory is the context."""
        if context_window > 0:
            raise UserError("--context-window is not for the segment_lm task: memory is the context (--eval-mem-len)")
        return _Remembering(super().eval_lm_dataloader(dataset, context_window=0, **kwargs), self)

    # --- steps --------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, model: Any) -> None:
        self.memory.forget(training=False)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        place = sample.get("stream")
        real = not ignore_grad and place is not None and place.training  # a ghost batch is nowhere in the stream
        sample, cell = self.remember(sample, model) if real else (sample, None)
        parts = self.args.batch_split if real else 1
        if parts > 1:
            step = super().train_step
            inner = unwrapped(model)
            if isinstance(inner, StreamLanguageModel):
                sample = {**sample, "net_input": {**sample["net_input"], **inner.draws()}}

            def one(part: Any) -> Any:
                return step(part, model, criterion, optimizer, update_num)

            result = step_by_parts(one, sample, parts, self.dictionary.pad(), model, criterion)
        else:
            result = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        self.memory.close(cell)
        return result

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        super().optimizer_step(optimizer, model, update_num)
        model = unwrapped(model)
        if isinstance(model, StreamLanguageModel):
            model.after_update(optimizer)

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        if not sample:  # fairseq-validate on a rank without lanes
            return 0.0, 0, {}
        place = sample.get("stream")
        real = place is not None and not place.training
        sample, cell = self.remember(sample, model) if real else (sample, None)
        result = super().valid_step(sample, model, criterion)
        self.memory.close(cell)
        return result

    def remember(self, sample: Any, model: Any) -> Any:
        """(``sample`` with a cell as the model's input ``memory``, that cell); no cell if the model takes none."""
        model = unwrapped(model)
        if not isinstance(model, StreamLanguageModel):
            return sample, None
        place = sample["stream"]
        cell = self.memory.open(place, None if place.training else self.args.eval_mem_len)
        return {**sample, "net_input": {**sample["net_input"], "memory": cell}}, cell

    def can_prefill(self, models: Any) -> bool:
        return all(isinstance(model, StreamLanguageModel) for model in models)

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Every block of a split once: rows that are read again for memory alone are taken out of ``sample``.

        Prompts are read without memory; ``--score-reference`` scores with it.
        """
        if "stream" not in sample:
            return super().inference_step(generator, models, sample, prefix_tokens, constraints)
        kept = sample["target"].ne(self.dictionary.pad()).any(1).nonzero().flatten()
        if isinstance(generator, SequenceScorer):
            whole, cell = self.remember(sample, models[0])
            found = generator.generate(models, whole)
            self.memory.close(cell)
            _select(sample, kept)
            return [found[row] for row in kept.tolist()]
        prefix_tokens = None if prefix_tokens is None else prefix_tokens[kept]
        _select(sample, kept)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints) if len(kept) else []

    # --- checkpoints --------------------------------------------------------------------------------------------

    def before_save(self, epoch_itr: Any) -> None:
        """Bring the ranks' memories together; called on all of them before a checkpoint is written."""
        self._saved = {}
        if self.args.no_save_memory or not isinstance(epoch_itr, LanesIterator) or epoch_itr.end_of_epoch():
            return
        lanes, step = epoch_itr.dataset, epoch_itr.step
        found = collect(self.memory.groups(lanes.name, lanes.cut, step))
        if found and len(found) == len(lanes.bounds) - 1:
            self._saved = {"step": step, "cut": list(lanes.cut), "memory": [found[group] for group in sorted(found)]}

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        saved, self._saved = self._saved, {}
        return {type(self).__name__: saved} if saved else {}

    def set_checkpoint_dict(self, state: Dict[str, Any]) -> None:
        """Take this rank's part of a saved memory; the iterator of training stands where it was saved."""
        iterator = self._iterator
        assert iterator is not None
        lanes, memory = iterator.dataset, state.pop("memory", [])
        if tuple(state["cut"]) != lanes.cut or state["step"] != iterator.step:
            return  # the iterator has told that the lanes are others
        groups = [group for group in range(len(lanes.bounds) - 1) if group % iterator.num_shards == iterator.shard_id]
        rows = int(lanes.bounds[1])
        if len(memory) != len(lanes.bounds) - 1:
            memory = _regroup(memory, rows)
        places = [lanes.place(group, iterator.step - 1) for group in groups]
        if memory:
            self.memory.restore(places, [memory[group] for group in groups])


class _Remembering:
    """Batches of fairseq-eval-lm, each with what the models left after the one before."""

    def __init__(self, batches: Any, task: SegmentLMTask):
        self._batches, self._task = batches, task

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        model = next(iter(self._task._living()), None)
        for sample in self._batches:
            cell: Optional[MemoryCell] = None
            if sample:
                sample, cell = self._task.remember(sample, model)
            yield sample
            self._task.memory.close(cell)


def unwrapped(model: Any) -> Any:
    """The model inside the wrappers of distributed training."""
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module
    return model


def _regroup(memory: Any, rows: int) -> Any:
    """The same lanes in batches of ``rows``; no memory if models remember different lengths in different batches."""
    layers = []
    for parts in zip(*memory, strict=True):
        if len({part.shape[1:] for part in parts}) > 1:
            logger.warning("lanes that were saved apart remember different lengths: memory starts empty")
            return []
        layers.append(torch.cat(parts).split(rows))
    return [list(group) for group in zip(*layers, strict=True)]


def _select(sample: Any, rows: Any) -> None:
    """Keep ``rows`` (indices) of a batch, in place: fairseq-generate goes on with the same dict."""
    sample["id"], sample["target"] = sample["id"][rows], sample["target"][rows]
    net_input = sample["net_input"]
    sample["net_input"] = {**net_input, **{key: net_input[key][rows] for key in ("src_tokens", "src_lengths")}}
    sample["nsentences"] = len(rows)
