"""Task ``dynamic_pooling_lm``: stock language modelling over windows that roll, with boundaries beside the tokens."""

import logging
import os
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import data_utils
from fairseq.data.token_block_utils_fast import _get_slice_indices_fast
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingTask

from dynamic_pooling.causality import check_causality
from dynamic_pooling.config import DynamicPoolingTaskConfig
from fairseq_efficient.data.token_windows import TokenStream, WindowDataset, load_stream
from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.prefilled_generation import PromptReader

logger = logging.getLogger(__name__)


@register_task("dynamic_pooling_lm", dataclass=DynamicPoolingTaskConfig)
class DynamicPoolingTask(PromptReader, LanguageModelingTask):
    """Language modelling on ``dict.txt`` and ``SPLIT.{bin,idx}``, with ``SPLIT.boundaries.{bin,idx}`` if there are any
    (see ``scripts/prepare_lm.py``)."""

    needs_boundaries = False  # set by the model that is built: unigram boundaries are learned from data
    _causal = False  # whether the model has been looked at

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> Any:
        """Raises UserError for flags that this task cannot keep, and for a folder without dictionary."""
        for flag in ("self_target", "past_target", "add_bos_token"):
            if getattr(args, flag, False):
                raise UserError(f"--{flag.replace('_', '-')}: the dynamic_pooling_lm task predicts the next token only")
        if args.output_dictionary_size >= 0 or args.shorten_method != "none":
            raise UserError("--output-dictionary-size and --shorten-method are not for the dynamic_pooling_lm task")
        if args.tokens_per_sample < 1:  # fairseq-eval-lm subtracts --context-window
            raise UserError("--tokens-per-sample must be at least 1, and more than --context-window")
        path = os.path.join(utils.split_paths(args.data or ".")[0], "dict.txt")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; prepare the data with scripts/prepare_lm.py or fairseq-preprocess")
        return super().setup_task(args, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(args, from_checkpoint)
        self.needs_boundaries = getattr(model, "needs_boundaries", False)
        return model

    # --- data ---------------------------------------------------------------------------------------------------

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Windows of ``split``; UserError if it does not exist or lacks boundaries that the model learns from."""
        paths = utils.split_paths(self.args.data)
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        stream = load_stream(path, self.dictionary, self.args.dataset_impl, combine)
        training = split == getattr(self.args, "train_subset", "train")
        boundaries = data_utils.load_indexed_dataset(f"{path}.boundaries", None, "mmap", combine=combine)
        if boundaries is None and training and self.needs_boundaries:
            raise UserError(
                f"{path}.boundaries.idx: no such file; --boundaries-type unigram learns from it "
                "(scripts/prepare_lm.py --unigram-vocab N writes it)"
            )
        sides = boundaries and TokenStream(boundaries, f"{path}.boundaries")
        self.datasets[split] = self._windows(stream, sides, training)

    def _windows(self, stream: TokenStream, sides: TokenStream | None, training: bool) -> WindowDataset:
        mode = str(self.args.sample_break_mode or "none")
        windows = None
        if mode != "none":
            sizes, separator = stream.sizes.astype(np.int64), 1
            windows = _get_slice_indices_fast(sizes, mode, self.args.tokens_per_sample, separator)
        return WindowDataset(
            stream,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            length=self.args.tokens_per_sample,
            windows=windows,
            shuffle=training,
            roll=training and not self.args.no_roll,
            seed=self.args.seed,
            sides=sides,
        )

    def eval_lm_dataloader(self, dataset: Any, context_window: int = 0, **kwargs: Any) -> Any:
        """Windows with ``context_window`` tokens before them that are read but not scored."""
        if context_window > 0:
            dataset = WindowDataset(
                dataset.stream,
                pad=dataset.pad,
                eos=dataset.eos,
                length=dataset.length,
                windows=dataset.windows,
                context=context_window,
                sides=dataset.sides,
            )
        batches = super().eval_lm_dataloader(dataset, context_window=0, **kwargs)
        if not len(batches):
            raise UserError("--num-shards: no batch is left for this --shard-id; take fewer shards or smaller batches")
        return batches

    # --- steps --------------------------------------------------------------------------------------------------

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        if update_num == 0 and str(self.args.check_causality) == "new" and not self._causal:
            check_causality(getattr(model, "module", model), len(self.dictionary), self.dictionary.nspecial)
            self._causal = True
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
