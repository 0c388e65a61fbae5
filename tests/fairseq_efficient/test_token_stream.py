"""Lanes: every token is a target exactly once, in the order of the stream, whatever the lanes, blocks and ranks."""

import itertools
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import data_utils, indexed_dataset
from fairseq.data.iterators import GroupedIterator

from fairseq_efficient.data.token_stream import Lanes, LanesIterator, StreamDataset, evaluation_lanes, training_lanes
from fairseq_efficient.data.token_windows import TokenStream
from fairseq_efficient.errors import UserError

PAD, FIRST = 1, 4


def dataset_of(folder: Path, total: int) -> StreamDataset:
    """A stream whose token at place p is FIRST + p."""
    builder = indexed_dataset.MMapIndexedDatasetBuilder(str(folder / f"{total}.bin"), dtype=np.int32)
    for start in range(0, total, 13):
        builder.add_item(torch.arange(FIRST + start, FIRST + min(start + 13, total)))
    builder.finalize(str(folder / f"{total}.idx"))
    found = data_utils.load_indexed_dataset(str(folder / str(total)), None, "mmap")
    return StreamDataset(TokenStream(found, "data"), "data", PAD)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[int, StreamDataset]:
    folder = tmp_path_factory.mktemp("streams")
    return {total: dataset_of(folder, total) for total in (1, 2, 3, 12, 13, 50, 97, 240)}


def rows_of(lanes: Lanes) -> list[list[dict[str, Any]]]:
    """Items of each lane in order."""
    return [[lanes[step * lanes.lanes + lane] for step in range(lanes.steps)] for lane in range(lanes.lanes)]


def read(items: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Places of the sources and targets of a lane, pads left out."""
    source, target = (torch.cat([item[key] for item in items]) for key in ("source", "target"))
    return [(x[x != PAD] - FIRST).tolist() for x in (source, target)]  # type: ignore[return-value]


@pytest.mark.parametrize("total", [12, 13, 50, 97, 240])
@pytest.mark.parametrize("tokens", [1, 5, 16, 300])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (3, 2), (2, 3), (1, 6)])
def test_training_predicts_all_but_the_first_of_each_lane(
    streams: dict[int, StreamDataset], total: int, tokens: int, rows: int, groups: int
):
    """Exactly once, across block borders too, whatever the sizes (par_search property 12; bugs 10 and 11)."""
    for epoch, seed in ((1, None), (1, 7), (2, 7), (3, 7)):
        lanes = training_lanes(streams[total], tokens, rows, groups, epoch, seed)
        covered: list[int] = []
        for items in rows_of(lanes):
            source, target = read(items)
            assert target == [place + 1 for place in source] and source == list(range(source[0], source[-1] + 1))
            assert all(len(item["source"]) == len(item["target"]) <= tokens for item in items)
            real = [len(item["source"]) for item in items if item["source"][0] != PAD]
            assert real[0] <= tokens and set(real[1:-1]) <= {tokens}
            covered += [source[0], *target]
        assert covered == list(range(total)), "lanes tile the stream"
        assert lanes.lanes == rows * groups
        sizes = lanes.ends - lanes.starts
        assert sizes.max() - sizes.min() <= 1


def test_blocks_shift_with_the_epoch_only(streams: dict[int, StreamDataset]):
    firsts = [training_lanes(streams[240], 16, 2, 2, epoch, 3).first for epoch in range(1, 12)]
    assert firsts == [training_lanes(streams[240], 16, 2, 2, epoch, 3).first for epoch in range(1, 12)]
    assert len(set(firsts)) > 4 and min(firsts) >= 1 and max(firsts) <= 16
    assert {training_lanes(streams[240], 16, 2, 2, epoch).first for epoch in range(1, 12)} == {16}


@pytest.mark.parametrize("total", [2, 3, 13, 97, 240])
@pytest.mark.parametrize("tokens", [1, 5, 16, 300])
def test_evaluation_scores_all_but_the_very_first(streams: dict[int, StreamDataset], total: int, tokens: int):
    for wanted, ranks, warmup in itertools.product((1, 2, 3, 7, 64), (1, 2, 5), (0, 1, 5, 12, 40, None)):
        lanes = evaluation_lanes(streams[total], tokens, wanted, ranks, warmup)
        assert 1 <= lanes.lanes <= wanted and len(lanes.bounds) == ranks + 1 and lanes.bounds[-1] == lanes.lanes
        scored, done = [], 0
        for lane, items in enumerate(rows_of(lanes)):
            source, target = read(items)
            assert source == list(range(source[0], source[-1] + 1)) and source[0] % tokens == 0
            assert target == list(range(target[0], source[-1] + 2))
            again = target[0] - 1 - source[0]
            assert again % tokens == 0 and (source[0] == 0 or again >= (warmup or 0))
            assert all(len(item["source"]) == len(item["target"]) for item in items)
            assert (again == 0) == (lane == 0 or warmup == 0)
            scored += target
            done += len(source)
        assert scored == list(range(1, total))
        assert done <= 2 * (total - 1) + 2 * tokens, "lanes do not read more again than there is"


def test_more_lanes_take_less_time(streams: dict[int, StreamDataset]):
    steps = [evaluation_lanes(streams[240], 4, lanes, 1, 8).steps for lanes in (1, 2, 4, 8, 16)]
    assert steps == sorted(steps, reverse=True) and steps[0] == 60 and steps[-1] <= 2 + -(-58 // 16)


def test_a_batch(streams: dict[int, StreamDataset]):
    lanes = training_lanes(streams[50], 4, 2, 2)  # lanes of 13, 13, 12, 12 tokens
    batch = lanes.collater([lanes[index] for index in lanes.batches()[0]])
    assert (batch["net_input"]["src_tokens"] - FIRST).tolist() == [[0, 1, 2, 3], [13, 14, 15, 16]]
    assert (batch["target"] - FIRST).tolist() == [[1, 2, 3, 4], [14, 15, 16, 17]]
    assert batch["ntokens"] == 8 and batch["nsentences"] == 2
    last = lanes.collater([lanes[index] for index in lanes.batches()[-1]])
    assert (last["target"] - FIRST).tolist() == [[35, 36, 37], [47, 48, 49]] and last["stream"].last
    places = [lanes.collater([lanes[i] for i in batch])["stream"] for batch in lanes.batches()]
    assert [(place.step, place.group) for place in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert lanes.collater([]) == {}


def test_a_lane_that_has_ended_is_one_pad(streams: dict[int, StreamDataset]):
    lanes = training_lanes(streams[13], 2, 1, 4)  # lanes of 4, 3, 3, 3 tokens: 3, 2, 2, 2 targets
    assert lanes.steps == 2
    last = lanes.collater([lanes[index] for index in lanes.batches()[-1]])
    assert last["target"].tolist() == [[PAD]] and last["ntokens"] == 0
    assert sum(lanes.collater([lanes[i] for i in batch])["ntokens"] for batch in lanes.batches()) == 13 - 4


def test_too_few_tokens_are_told(streams: dict[int, StreamDataset]):
    with pytest.raises(UserError, match=r"12 tokens are too few for 8 lanes .*= 4 x 2\), which need two each"):
        training_lanes(streams[12], 4, 4, 2)
    with pytest.raises(UserError, match="none to predict"):
        evaluation_lanes(streams[1], 4, 4, 2, 0)
    assert evaluation_lanes(streams[2], 4, 4, 2, 0).lanes == 1


# --- iterators --------------------------------------------------------------------------------------------------------


def iterator(dataset: StreamDataset, ranks: int, rank: int, update_freq: int = 1, **flags: Any) -> LanesIterator:
    """12 lanes in blocks of 2."""
    lanes = training_lanes(dataset, 2, 12 // ranks // update_freq, ranks * update_freq)
    return LanesIterator(lanes, ranks, rank, **flags)


@pytest.mark.parametrize(("ranks", "update_freq"), [(1, 1), (2, 1), (1, 2), (3, 2), (2, 6)])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_keep_their_lanes(streams: dict[int, StreamDataset], ranks: int, update_freq: int, workers: int):
    """Each update is the next block of every lane, and a micro-batch has the same lanes in each."""
    whole = training_lanes(streams[240], 2, 12, 1)
    if workers and ranks != 2:
        pytest.skip("one case shows it")
    updates: dict[int, Counter] = {}
    for rank in range(ranks):
        one = iterator(streams[240], ranks, rank, update_freq, num_workers=workers, buffer_size=workers)
        groups: dict[int, set[int]] = {}
        for step, samples in enumerate(GroupedIterator(one.next_epoch_itr(shuffle=True), update_freq)):
            assert len(samples) == update_freq
            for number, sample in enumerate(samples):
                assert sample["stream"].step == step
                groups.setdefault(number, set()).add(sample["stream"].group)
                places = sample["target"][sample["target"] != PAD] - FIRST
                updates.setdefault(step, Counter()).update(places.tolist())
        assert [len(found) for found in groups.values()] == [1] * update_freq
        assert len(set.union(*groups.values())) == update_freq
    for step, found in updates.items():
        target = torch.cat([whole[step * 12 + lane]["target"] for lane in range(12)])
        assert found == Counter((target[target != PAD] - FIRST).tolist())
    assert sum(sum(found.values()) for found in updates.values()) == 240 - 12


@pytest.mark.parametrize("after", [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_the_state_says_which_block_is_next(streams: dict[int, StreamDataset], after: tuple[int, int]):
    """Also for another number of ranks or micro-batches of the same lanes."""
    before = iterator(streams[240], 2, 0, 3)
    itr = before.next_epoch_itr()
    for _ in range(4 * 3):
        next(itr)
    state = before.state_dict()
    assert before.step == 4
    ranks, update_freq = after
    resumed = iterator(streams[240], ranks, 0, update_freq)
    resumed.load_state_dict(state)
    assert resumed.step == 4
    rest = list(resumed.next_epoch_itr())
    assert rest[0]["stream"].step == 4 and rest[-1]["stream"].last and len(rest) == (10 - 4) * update_freq


def test_other_lanes_go_on_at_the_same_share(streams: dict[int, StreamDataset], caplog: pytest.LogCaptureFixture):
    before = iterator(streams[240], 1, 0)
    itr = before.next_epoch_itr()
    for _ in range(5):
        next(itr)
    other = LanesIterator(training_lanes(streams[240], 2, 6, 1), 1, 0)
    other.load_state_dict(before.state_dict())
    assert other.step == 10 and other.dataset.steps == 20 and "goes on at 50%" in caplog.text
    for _ in itr:
        pass
    caplog.clear()
    ended = LanesIterator(training_lanes(streams[240], 2, 6, 1, epoch=2), 1, 0)
    ended.load_state_dict(before.state_dict())
    assert ended.step == 0 and ended.epoch == 2 and not caplog.text


def test_lanes_are_picklable(streams: dict[int, StreamDataset]):
    lanes = training_lanes(streams[50], 4, 2, 2)
    again = pickle.loads(pickle.dumps(lanes))
    assert all(torch.equal(lanes[i]["source"], again[i]["source"]) for i in range(len(lanes)))
