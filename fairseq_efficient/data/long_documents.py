"""Pairs of long documents and summaries: too long is cut and counted, nothing is ever dropped."""

import logging
from typing import Any

import numpy as np
import torch
from fairseq.data import LanguagePairDataset

logger = logging.getLogger(__name__)


class LongDocumentDataset(LanguagePairDataset):
    """A ``LanguagePairDataset`` that cuts documents to a length, and in training also targets.

    A cut source keeps its first tokens and EOS. A cut training target keeps its first tokens *without* EOS, so that
    the model is not taught to stop in the middle. Targets of other splits stay whole: they are the references.
    """

    def __init__(self, *args: Any, name: str, training: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name, self.training = name, training
        self.src_sizes: np.ndarray = self.src_sizes
        self.tgt_sizes: np.ndarray | None = self.tgt_sizes
        self.full_src_sizes, self.full_tgt_sizes = self.src_sizes, self.tgt_sizes
        self.max_source: int | None = None
        self.max_target: int | None = None

    def cut_to(self, max_source: int | None, max_target: int | None) -> bool:
        """Set the longest source and (training) target in tokens, EOS included. True if that changed anything."""
        max_target = max_target if self.training else None
        if (max_source, max_target) == (self.max_source, self.max_target):
            return False
        self.max_source, self.max_target = max_source, max_target
        limit = np.iinfo(np.int64).max
        self.src_sizes = np.clip(self.full_src_sizes, 1, max_source or limit)
        if self.full_tgt_sizes is not None:
            self.tgt_sizes = np.clip(self.full_tgt_sizes, 1, max_target or limit)
            self.sizes = np.vstack((self.src_sizes, self.tgt_sizes)).T
        else:
            self.sizes = self.src_sizes
        return True

    def too_long(self, max_source: int | None, max_target: int | None) -> np.ndarray:
        """Indices of the pairs that :meth:`cut_to` with these limits would cut."""
        found = self.full_src_sizes > (max_source or np.inf)
        if self.training and self.full_tgt_sizes is not None:
            found = found | (self.full_tgt_sizes > (max_target or np.inf))
        return np.flatnonzero(found)

    def describe_cut(self) -> str:
        """One line that says how much was cut."""
        cut = self.full_src_sizes > self.src_sizes
        text = f"{self.name}: {cut.sum():,} of {len(self):,} sources cut"
        if cut.any():
            kept = 100 * (self.src_sizes[cut] / self.full_src_sizes[cut]).mean()
            text += f" to {self.max_source:,} tokens (mean {kept:.0f} % kept)"
        if self.training and self.full_tgt_sizes is not None:
            cut = self.full_tgt_sizes > self.tgt_sizes
            text += f", {cut.sum():,} targets cut" + (f" to {self.max_target:,} tokens" if cut.any() else "")
        empty = int((self.full_src_sizes <= 1).sum())
        return text + (f", {empty:,} empty sources kept" if empty else "")

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        eos = self.src_dict.eos()
        source = example["source"]
        if len(source) == 0:
            source = source.new_tensor([eos])
        if self.max_source is not None and len(source) > self.max_source:
            source = source[: self.max_source].clone()
            source[-1] = eos
        example["source"] = source
        target = example["target"]
        if target is not None:
            if len(target) == 0:
                target = target.new_tensor([eos])
            example["target"] = target if self.max_target is None else target[: self.max_target]
        return example


def cut_targets(sample: dict[str, Any], limit: int, pad: int) -> dict[str, Any]:
    """A copy of a collated batch whose targets (B, T) and decoder inputs have at most ``limit`` tokens, right-padded.

    The same batch if it is short enough, or has no targets. ``ntokens`` is counted anew.
    """
    target = sample.get("target")
    if target is None or target.size(1) <= limit:
        return sample
    previous = sample["net_input"]["prev_output_tokens"]
    if bool(target[:, 0].eq(pad).any()):  # --left-pad-target: the summaries' starts are kept, not their ends
        target, previous = (one.gather(1, one.eq(pad).to(torch.uint8).argsort(dim=1, stable=True))
                            for one in (target, previous))  # fmt: skip
    kept = target[:, :limit].contiguous()
    net_input = {**sample["net_input"], "prev_output_tokens": previous[:, :limit].contiguous()}
    return {**sample, "target": kept, "net_input": net_input, "ntokens": int(kept.ne(pad).sum())}


def select_rows(sample: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The rows (bool (B,)) of a collated batch, for generation: ids, sources, targets."""
    net_input = {k: v[rows] if torch.is_tensor(v) else v for k, v in sample["net_input"].items()}
    return {"id": sample["id"][rows], "target": sample["target"][rows], "net_input": net_input}
