"""The training stream in two parts: updates of the weights read the first, those of the architecture the second.

An epoch is one pass over the first part. Between its blocks stand those of the held-out part, where the phases say so,
with lanes and a memory of their own; it goes on from epoch to epoch, and from its end to its start.
"""

from typing import Any, NamedTuple

import numpy as np
from fairseq.data import FairseqDataset

from fairseq_efficient.data.token_stream import Lanes, LanesIterator, StreamDataset
from fairseq_efficient.errors import UserError
from fairseq_efficient.stream_memory import StreamPlace
from par_search.phases import ARCHITECTURE, WEIGHTS, Phases


class StreamPart:
    """Tokens [start, end) of a stream; ``sizes`` are only there because data sets have them."""

    def __init__(self, stream: Any, start: int, end: int):
        self.stream, self.start, self.end = stream, start, end
        self.sizes = np.array([end - start])

    def __len__(self) -> int:
        return self.end - self.start

    def slice(self, start: int, end: int) -> np.ndarray:
        return self.stream.slice(self.start + start, self.start + min(end, len(self)))


def split_stream(dataset: StreamDataset, share: float) -> tuple[StreamDataset, StreamDataset]:
    """The stream without its last ``share``, and that; UserError if the share makes no sense."""
    if not 0 < share < 1:
        raise UserError(f"--arch-data-share {share}: must be between 0 and 1")
    total = len(dataset.stream)
    cut = total - round(total * share)
    parts: list[Any] = [StreamPart(dataset.stream, 0, cut), StreamPart(dataset.stream, cut, total)]
    names = (dataset.name, f"{dataset.name} (held out)")
    first, second = (StreamDataset(part, name, dataset.pad) for part, name in zip(parts, names, strict=True))
    return first, second


class _Turn(NamedTuple):
    """What an update reads: which part, which block of its lanes, and in which pass over it in this epoch."""

    phase: str
    step: int
    turn: int = 0


class SearchLanes(FairseqDataset):
    """Blocks of both parts in the order of the updates of an epoch. To LanesIterator it looks like ``Lanes``.

    Item ``update * L + lane`` is what a lane reads in an update of this epoch.

    Args:
        weights, held_out: lanes of the two parts; as many of each, in the same groups.
        phases: says which update is of what. start: updates before this epoch.
    """

    def __init__(self, weights: Lanes, held_out: Lanes, phases: Phases, start: int):
        self.weights, self.held_out, self.phases, self.start = weights, held_out, phases, start
        self.name, self.bounds, self.lanes, self.training = weights.name, weights.bounds, weights.lanes, True
        self.of_architecture = phases.of_architecture(start, weights.steps)
        self.steps = len(self.of_architecture)
        self._number = np.where(
            self.of_architecture, np.cumsum(self.of_architecture) - 1, np.cumsum(~self.of_architecture) - 1
        )
        self._offset = phases.architecture_updates(start) % held_out.steps

    @property
    def cut(self) -> tuple[int, ...]:
        """What two epochs' orders must share so that one can go on where the other stopped."""
        share = self.phases.share
        schedule = (self.phases.warmup, share.numerator, share.denominator)
        return (*self.weights.cut, *self.held_out.cut, *schedule)

    @property
    def end(self) -> int:
        """Updates when this epoch is over."""
        return self.start + self.steps

    def starting(self, start: int) -> "SearchLanes":
        """The same epoch after another number of updates."""
        return SearchLanes(self.weights, self.held_out, self.phases, start)

    def __len__(self) -> int:
        return self.steps * self.lanes

    def turn(self, update: int) -> _Turn:
        """What update ``update`` of this epoch reads."""
        number = int(self._number[update])
        if not self.of_architecture[update]:
            return _Turn(WEIGHTS, number)
        turn, step = divmod(self._offset + number, self.held_out.steps)
        return _Turn(ARCHITECTURE, step, turn)

    def last(self, phase: str, updates: int) -> int | None:
        """The last of the first ``updates`` updates of this epoch that is of ``phase``."""
        found = np.flatnonzero(self.of_architecture[:updates] == (phase == ARCHITECTURE))
        return int(found[-1]) if len(found) else None

    def _of(self, turn: _Turn) -> Lanes:
        return self.weights if turn.phase == WEIGHTS else self.held_out

    def __getitem__(self, index: int) -> dict[str, Any]:
        update, lane = divmod(int(index), self.lanes)
        turn = self.turn(update)
        item = self._of(turn)[turn.step * self.lanes + lane]
        return {**item, "update": update}

    def collater(self, samples: Any) -> dict[str, Any]:
        """A batch of one of the parts; its ``stream`` says where it stands, its ``phase`` whose update it is for."""
        if not samples:
            return {}
        update = samples[0]["update"]
        turn = self.turn(update)
        batch = self._of(turn).collater(samples)
        return {**batch, "stream": self.place(batch["stream"].group, update), "phase": turn.phase}

    def place(self, group: int, step: int) -> StreamPlace:
        """Where the batch of ``group`` stands in update ``step`` of this epoch: in the pass over its own part."""
        turn = self.turn(step)
        lanes = self._of(turn)
        first = self._offset if turn.phase == ARCHITECTURE and turn.turn == 0 else 0  # memory starts empty there
        cut = (*lanes.cut, turn.turn)
        return StreamPlace(lanes.name, True, cut, group, turn.step - first, turn.step + 1 == lanes.steps)

    def batches(self) -> list[range]:
        groups = [range(int(low), int(high)) for low, high in zip(self.bounds[:-1], self.bounds[1:], strict=True)]
        starts = range(0, len(self), self.lanes)
        return [range(start + group.start, start + group.stop) for start in starts for group in groups]

    def size(self, index: int) -> int:
        return self.weights.tokens

    def num_tokens(self, index: int) -> int:
        return self.weights.tokens


class SearchIterator(LanesIterator):
    """LanesIterator whose state also holds the number of updates before the epoch, on which its order depends."""

    dataset: SearchLanes

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["stream"]["start"] = self.dataset.end if self.end_of_epoch() else self.dataset.start
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        start = (state_dict.get("stream") or {}).get("start", self.dataset.start)
        if start != self.dataset.start:
            self.dataset = self.dataset.starting(start)
            self.collate_fn = self.dataset.collater
            self._frozen_batches = tuple(self.dataset.batches())
        super().load_state_dict(state_dict)
