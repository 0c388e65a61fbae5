"""A token stream cut into lanes: each batch is the next block of every lane, so that memory can go on from the last.

``N`` tokens, ``L`` lanes, blocks of ``T`` tokens. A lane reads tokens [s, e) block by block; the target of each is the
token after it, in the next block too where a block ends. Documents follow one another as they were written, EOS
between them is a token like others, and memory runs on across it.

Training: the stream is cut into L lanes of N // L tokens (the first N % L have one more); every token but the first of
a lane is a target once. Evaluation: blocks lie at multiples of T of the whole stream, whatever L; a lane first reads
again, unscored, the blocks before its own that its memory can depend on. So every token but the first of the stream is
scored once, with the memory that one lane alone would have had.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils
from fairseq.data.iterators import EpochBatchIterator

from fairseq_efficient.data.token_windows import TokenStream
from fairseq_efficient.errors import UserError
from fairseq_efficient.stream_memory import StreamPlace

logger = logging.getLogger(__name__)


class StreamDataset(FairseqDataset):
    """One split of a corpus; :func:`training_lanes` and :func:`evaluation_lanes` say how it is read."""

    def __init__(self, stream: TokenStream, name: str, pad: int):
        self.stream, self.name, self.pad = stream, name, pad
        self.sizes = stream.sizes

    def __len__(self) -> int:
        """Items as they were written (lines or documents)."""
        return len(self.sizes)


class Lanes(FairseqDataset):
    """Blocks of lanes; item ``step * L + lane`` is block ``step`` of a lane.

    Args:
        starts, ends: (L,) int64, the source tokens [start, end) of each lane.
        scored: (L,) int64, place in the stream of the first target that counts.
        bounds: (G + 1,) int64, lanes [bounds[g], bounds[g + 1]) share a batch (group g).
        tokens: T. first: tokens of a lane's first block, 1 to T.
        epoch: None in evaluation.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        starts: np.ndarray,
        ends: np.ndarray,
        scored: np.ndarray,
        bounds: np.ndarray,
        tokens: int,
        first: int | None = None,
        epoch: int | None = None,
    ):
        self.stream, self.name, self.pad = dataset.stream, dataset.name, dataset.pad
        self.starts, self.ends, self.scored, self.bounds = starts, ends, scored, bounds
        self.tokens, self.first, self.epoch = tokens, first or tokens, epoch
        self.lanes = len(starts)
        self.steps = 1 + math.ceil(max(int((ends - starts).max()) - self.first, 0) / tokens)
        self.training = epoch is not None

    @property
    def cut(self) -> tuple[int, ...]:
        """What two passes must share for memory to go from one to the other."""
        return (self.epoch or 0, len(self.stream), self.lanes, self.tokens, self.first, int(self.ends[0]))

    def __len__(self) -> int:
        return self.steps * self.lanes

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Source and target of a block, of the same length: 1 pad if the lane has ended before it."""
        step, lane = divmod(int(index), self.lanes)
        start, end = (self._place(lane, number) for number in (step, step + 1))
        found = torch.from_numpy(self.stream.slice(start, end + 1)) if start < end else torch.full((2,), self.pad)
        target = found[1:].clone()
        target[: max(0, int(self.scored[lane]) - start - 1)] = self.pad
        return {"id": start // self.tokens, "index": index, "source": found[:-1], "target": target}

    def _place(self, lane: int, step: int) -> int:
        """Where in the stream block ``step`` of a lane begins."""
        gone = self.first + (step - 1) * self.tokens if step else 0
        return min(int(self.starts[lane]) + gone, int(self.ends[lane]))

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch, padded at the right (only where lanes end), with its :class:`StreamPlace` under ``stream``.

        ``ntokens`` counts targets that are scored. Empty if a rank has no lanes.
        """
        if not samples:
            return {}
        source, target = (
            data_utils.collate_tokens([s[key] for s in samples], self.pad, left_pad=False)
            for key in ("source", "target")
        )
        step, lane = divmod(int(samples[0]["index"]), self.lanes)
        group = int(np.searchsorted(self.bounds, lane, side="right")) - 1
        return {
            "id": torch.tensor([s["id"] for s in samples]),
            "nsentences": len(samples),
            "ntokens": int(target.ne(self.pad).sum()),
            "net_input": {
                "src_tokens": source,
                "src_lengths": torch.tensor([len(s["source"]) for s in samples]),
            },
            "target": target,
            "stream": self.place(group, step),
        }

    def place(self, group: int, step: int) -> StreamPlace:
        return StreamPlace(self.name, self.training, self.cut, group, step, step + 1 == self.steps)

    def batches(self) -> list[range]:
        """Batches of all ranks in the order in which fairseq deals them out: step by step, group by group."""
        groups = [range(int(low), int(high)) for low, high in zip(self.bounds[:-1], self.bounds[1:], strict=True)]
        starts = range(0, len(self), self.lanes)
        return [range(start + group.start, start + group.stop) for start in starts for group in groups]

    def size(self, index: int) -> int:
        return self.tokens

    def num_tokens(self, index: int) -> int:
        return self.tokens


def training_lanes(
    dataset: StreamDataset, tokens: int, rows: int, groups: int, epoch: int = 1, shift_seed: int | None = None
) -> Lanes:
    """``groups`` batches of ``rows`` lanes each, over the whole stream.

    shift_seed: cut the blocks of each epoch at other places: the first has 1 to T tokens, drawn from seed and epoch.

    Raises:
        UserError: not two tokens for each lane.
    """
    total, lanes = len(dataset.stream), rows * groups
    if total < 2 * lanes:
        raise UserError(
            f"{dataset.name}: {total:,} tokens are too few for {lanes:,} lanes (--batch-size x --update-freq x ranks = "
            f"{rows} x {groups}), which need two each"
        )
    edges = np.arange(lanes + 1) * (total // lanes) + np.minimum(np.arange(lanes + 1), total % lanes)
    first = tokens
    if shift_seed is not None:
        with data_utils.numpy_seed(shift_seed, epoch):
            first = 1 + int(np.random.randint(tokens))
    starts, ends = edges[:-1], edges[1:] - 1
    bounds = np.arange(groups + 1) * rows
    return Lanes(dataset, starts, ends, starts + 1, bounds, tokens, first, epoch)


def evaluation_lanes(dataset: StreamDataset, tokens: int, lanes: int, ranks: int, warmup: int | None) -> Lanes:
    """At most ``lanes`` lanes for all ranks together; lanes of a rank share its batches.

    warmup: tokens before its own that a lane reads first, in whole blocks; None: all there are, so there is one lane.
        There are so few lanes that they do not read more again than the stream is long.

    Raises:
        UserError: fewer than two tokens.
    """
    total = len(dataset.stream)
    if total < 2:
        raise UserError(f"{dataset.name}: {total} token(s), so there is none to predict from another")
    blocks = math.ceil((total - 1) / tokens)
    again = blocks if warmup is None else math.ceil(warmup / tokens)
    lanes = max(1, min(lanes, blocks, 1 + (blocks - 1) // again if again else blocks))
    longest = again + math.ceil((blocks - again) / lanes) if lanes > 1 else blocks  # blocks that each lane reads
    own = longest + np.arange(lanes) * (longest - again)  # the block after the last of each lane
    own = own[: 1 + int(np.searchsorted(own, blocks))]
    scored = np.concatenate([[0], own[:-1]])
    starts, ends = np.maximum(scored - again, 0) * tokens, np.minimum(own * tokens, total - 1)
    share = np.full(ranks, len(own) // ranks) + (np.arange(ranks) < len(own) % ranks)
    bounds = np.concatenate([[0], np.cumsum(share)])
    return Lanes(dataset, starts, ends, scored * tokens + 1, bounds, tokens)


class LanesIterator(EpochBatchIterator):
    """Batches in the order of the stream: never shuffled, sorted, filtered or dropped. Its state says which block of
    which cut comes next, so that training goes on on another number of ranks or with another ``--update-freq``."""

    def __init__(self, lanes: Lanes, num_shards: int, shard_id: int, **loading: Any):
        super().__init__(
            lanes,
            lanes.collater,
            lanes.batches(),
            num_shards=num_shards,
            shard_id=shard_id,
            disable_shuffling=True,
            **loading,
        )
        self.per_step = (len(lanes.bounds) - 1) // num_shards  # batches of a rank in a step

    @property
    def step(self) -> int:
        """Blocks of each lane that were read in this epoch."""
        return self.iterations_in_epoch // self.per_step

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        step = state["iterations_in_epoch"] // self.per_step
        return {**state, "stream": {"step": step, "steps": self.dataset.steps, "cut": list(self.dataset.cut)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved block; if the cut is another one, to the same share of the epoch, with a warning."""
        saved, step = state_dict.get("stream"), 0
        if saved is not None:
            step = int(saved["step"])
            if tuple(saved["cut"]) != self.dataset.cut:
                step = min(round(step * self.dataset.steps / saved["steps"]), self.dataset.steps - 1)
        if state_dict["iterations_in_epoch"] and (saved is None or tuple(saved["cut"]) != self.dataset.cut):
            logger.warning(
                f"{self.dataset.name}: the checkpoint read it in other lanes or blocks: this epoch goes on at "
                f"{step / self.dataset.steps:.0%}, so it reads some tokens twice and others not at all"
            )
        super().load_state_dict({**state_dict, "iterations_in_epoch": step * self.per_step})
