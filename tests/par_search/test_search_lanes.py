"""Phases, and the order in which the two parts of the stream are read."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from fairseq_efficient.data.token_stream import StreamDataset, training_lanes
from fairseq_efficient.errors import UserError
from par_search.phases import ARCHITECTURE, WEIGHTS, Phases
from par_search.search_lanes import SearchIterator, SearchLanes, split_stream

PAD = 1


class Stream:
    """Tokens 10, 11, 12 ..."""

    def __init__(self, count: int):
        self.count, self.sizes = count, np.array([count])

    def __len__(self) -> int:
        return self.count

    def slice(self, start: int, end: int) -> np.ndarray:
        return np.arange(start + 10, min(end, self.count) + 10)


def lanes(start: int = 0, epoch: int = 1, total: int = 500, warmup: int = 3, share: float = 0.25) -> SearchLanes:
    dataset = StreamDataset(Stream(total), "train", PAD)  # type: ignore[arg-type]
    parts = split_stream(dataset, 0.2)
    both = [training_lanes(part, 7, 2, 3, epoch) for part in parts]
    return SearchLanes(both[0], both[1], Phases.of_flags(warmup, share), start)


def batches_of(found: SearchLanes) -> list[dict[str, Any]]:
    return [found.collater([found[index] for index in batch]) for batch in found.batches()]


# --- phases -----------------------------------------------------------------------------------------------------------


def test_four_updates_of_weights_and_one_of_the_architecture():
    phases = Phases.of_flags(10, 0.2)
    found = [phases.phase(update) for update in range(30)]
    assert found[:10] == [WEIGHTS] * 10 and found[10:15] == [WEIGHTS] * 4 + [ARCHITECTURE] == found[15:20]
    assert phases.architecture_updates(30) == 4


@pytest.mark.parametrize(("warmup", "share"), [(0, 0.2), (7, 0.3), (3, 0.5), (0, 0.9), (2, 1 / 3), (5, 0.004)])
def test_phases_add_up(warmup: int, share: float):
    phases = Phases.of_flags(warmup, share)
    found = [phases.phase(update) for update in range(400)]
    for update in range(401):
        assert phases.architecture_updates(update) == found[:update].count(ARCHITECTURE)
    assert ARCHITECTURE not in found[:warmup]
    assert abs(found.count(ARCHITECTURE) - (400 - warmup) * float(phases.share)) < 1
    for start, weights in ((0, 5), (4, 1), (9, 37)):
        order = phases.of_architecture(start, weights)
        assert [ARCHITECTURE if one else WEIGHTS for one in order] == found[start : start + len(order)]
        assert (~order).sum() == weights and not order[-1]


@pytest.mark.parametrize(("warmup", "share"), [(-1, 0.2), (0, 0.0), (0, 1.0), (0, math.nan), (0, -0.1)])
def test_phases_that_make_no_sense(warmup: int, share: float):
    with pytest.raises(UserError, match="--arch-"):
        Phases.of_flags(warmup, share)


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_the_parts_do_not_meet():
    dataset = StreamDataset(Stream(103), "train", PAD)  # type: ignore[arg-type]
    first, second = split_stream(dataset, 0.2)
    assert len(first.stream) == 82 and len(second.stream) == 21
    assert first.stream.slice(80, 99).tolist() == [90, 91] and second.stream.slice(0, 2).tolist() == [92, 93]
    for share in (0, 1, -0.1, math.nan):
        with pytest.raises(UserError, match="--arch-data-share"):
            split_stream(dataset, share)


def test_every_token_of_the_first_part_is_a_target_once_in_an_epoch():
    for start, epoch in ((0, 1), (17, 2)):
        found = lanes(start, epoch)
        seen = {WEIGHTS: [], ARCHITECTURE: []}
        for number, batch in enumerate(batches_of(found)):
            assert batch["phase"] == found.phases.phase(start + number // 3)
            assert batch["stream"].group == number % 3
            real = batch["target"] != PAD
            assert (batch["net_input"]["src_tokens"][real] + 1 == batch["target"][real]).all()
            seen[batch["phase"]].extend(batch["target"][real].tolist())
        edges = found.weights.starts.tolist()
        expected = [token for token in range(10, 410) if token - 10 not in edges]
        assert sorted(seen[WEIGHTS]) == expected
        assert min(seen[ARCHITECTURE]) > 410 and len(seen[ARCHITECTURE]) > 0


def test_each_stream_has_its_own_places():
    """Blocks of a part follow one another in its own numbering; a new pass and a new epoch have another cut."""
    found = lanes(share=0.5)  # more updates of the architecture than the held-out part has blocks
    last: dict[str, Any] = {}
    turns = set()
    for batch in batches_of(found):
        place = batch["stream"]
        if place.group:
            continue
        before = last.get(place.name)
        if before is None or before.last:
            assert place.step == 0 and (before is None or before.cut != place.cut)
        else:
            assert (place.step, place.cut) == (before.step + 1, before.cut)
        last[place.name] = place
        turns.add((place.name, place.cut[-1]))
    assert ("train", 0) in turns and ("train (held out)", 1) in turns and len(last) == 2
    assert lanes(0, 2).place(0, 0).cut != found.place(0, 0).cut


def test_the_held_out_part_goes_on_in_the_next_epoch():
    one = lanes()
    two = lanes(one.end, 2)
    blocks = [found.turn(update).step for found in (one, two) for update in range(found.steps)
              if found.turn(update).phase == ARCHITECTURE]  # fmt: skip
    assert blocks == [number % one.held_out.steps for number in range(len(blocks))]
    first = next(update for update in range(two.steps) if two.turn(update).phase == ARCHITECTURE)
    assert two.turn(first).step > 0 and two.place(0, first).step == 0  # in the middle, but without memory


def test_the_last_of_each_phase():
    found = lanes()
    for updates in range(found.steps + 1):
        for phase in (WEIGHTS, ARCHITECTURE):
            known = [update for update in range(updates) if found.turn(update).phase == phase]
            assert found.last(phase, updates) == (known[-1] if known else None)


def iterator(found: SearchLanes, epoch: int = 1, rank: int = 0, ranks: int = 1) -> SearchIterator:
    return SearchIterator(found, num_shards=ranks, shard_id=rank, epoch=epoch)


def read(one: SearchIterator, count: int | None = None) -> list[Any]:
    epoch = one.next_epoch_itr(shuffle=True)
    found = []
    while epoch.has_next() and (count is None or len(found) < count):
        found.append(next(epoch)["net_input"]["src_tokens"].tolist())
    return found


def test_an_iterator_goes_on_where_it_stopped_even_if_its_epoch_began_elsewhere():
    whole = read(iterator(lanes(19, 2), 2))
    stopped = iterator(lanes(19, 2), 2)
    begin = read(stopped, 12)
    state = stopped.state_dict()
    assert state["stream"]["start"] == 19 and state["stream"]["step"] == 4
    resumed = iterator(lanes(0, 2), 2)  # the task knows no better than to count from its own flags
    resumed.load_state_dict(state)
    assert begin + read(resumed) == whole and resumed.step == resumed.dataset.steps
    state = resumed.state_dict()
    assert state["epoch"] == 3 and state["stream"]["start"] == lanes(19, 2).end


def test_ranks_share_an_update():
    one = read(iterator(lanes()))
    three = [read(iterator(lanes(), rank=rank, ranks=3)) for rank in range(3)]
    assert [batch for group in zip(*three, strict=True) for batch in group] == one


def test_it_travels_to_workers():
    found = pickle.loads(pickle.dumps(lanes()))
    assert [batch["stream"] for batch in batches_of(found)] == [batch["stream"] for batch in batches_of(lanes())]
