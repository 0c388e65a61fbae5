"""Memory goes from a block to its successor, and nowhere else."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor, nn

from fairseq_efficient.stream_memory import MemoryCell, StreamMemory, StreamPlace, collect, extend

MODEL = nn.Linear(1, 1)


def place(step: int, **changes: object) -> StreamPlace:
    return dataclasses.replace(StreamPlace("train", True, (1, 100), 0, step, False), **changes)


def read(memory: StreamMemory, at: StreamPlace, fails: bool = False) -> float | None:
    """What a model finds at a place, where it leaves ``step + group / 10``."""
    cell = memory.open(at)
    found = cell.take(MODEL)
    cell.put(MODEL, [torch.full((2, 3, 4), at.step + at.group / 10)])
    if not fails:
        memory.close(cell)
    return None if found is None else round(float(found[0].mean()), 4)


def test_the_next_block_finds_it():
    memory = StreamMemory()
    assert [read(memory, place(step)) for step in range(4)] == [None, 0, 1, 2]


def test_groups_splits_and_uses_are_apart():
    memory = StreamMemory()
    for step in range(3):
        for group in (0, 1):
            expected = None if step == 0 else step - 1 + group / 10
            assert read(memory, place(step, group=group)) == expected
        for other in ({"name": "valid"}, {"training": False}):
            assert read(memory, place(step, **other)) == (step - 1 if step else None)


@pytest.mark.parametrize("step", [0, 2, 3, 5, 40])
def test_only_the_successor_finds_it(step: int, caplog: pytest.LogCaptureFixture):
    """Not the same block again, not an earlier one, not a later one; and the old memory is gone then."""
    memory = StreamMemory()
    for known in range(4):
        read(memory, place(known))
    with caplog.at_level(logging.WARNING):
        assert read(memory, place(step)) is None
    assert ("nothing is remembered" in caplog.text) == (step > 0)
    assert read(memory, place(step + 1)) == step


def test_another_cut_finds_nothing():
    """Another epoch, number of lanes or length of blocks."""
    memory = StreamMemory()
    read(memory, place(0))
    assert read(memory, place(1, cut=(2, 100))) is None


def test_a_block_that_failed_leaves_nothing_and_can_be_read_again():
    memory = StreamMemory()
    read(memory, place(0))
    assert read(memory, place(1), fails=True) == 0
    assert read(memory, place(1)) == 0
    assert read(memory, place(2), fails=True) == 1
    assert read(memory, place(3)) is None


def test_the_last_block_leaves_nothing():
    memory = StreamMemory()
    read(memory, place(0))
    read(memory, place(1, last=True))
    assert not memory._slots


def test_forget_keeps_the_other_use():
    memory = StreamMemory()
    read(memory, place(0))
    read(memory, place(0, name="valid", training=False))
    memory.forget(training=False)
    assert read(memory, place(1)) == 0 and read(memory, place(1, name="valid", training=False)) is None


def test_models_of_an_ensemble_have_their_own():
    memory, other = StreamMemory(), nn.Linear(1, 1)
    cell = memory.open(place(0))
    cell.put(MODEL, [torch.zeros(1)])
    cell.put(other, [torch.ones(1)])
    cell.put(other, [torch.full((1,), 5.0)])  # a second call for the same block
    memory.close(cell)
    cell = memory.open(place(1))
    assert cell.take(MODEL)[0].item() == 0 and cell.take(other)[0].item() == 1


def test_no_graph_is_kept():
    cell, state = MemoryCell(place(0), None), torch.randn(2, 5, 3, requires_grad=True) * 2
    cell.put(MODEL, [state])
    assert not cell.after[id(MODEL)][0].requires_grad
    assert not extend(None, state, 9).requires_grad and not extend(state, state, 9).requires_grad


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize(
    ("old", "new", "length"), [(0, 3, 5), (4, 3, 5), (5, 3, 5), (5, 5, 5), (5, 8, 5), (9, 2, 4), (3, 4, 0)]
)
def test_extend_keeps_the_last(dim: int, old: int, new: int, length: int):
    def numbered(first: int, count: int) -> Tensor:
        shape = [2, 1, 1, 1]
        shape[dim] = count
        return torch.arange(first, first + count).float().repeat(2).view(shape)

    past, now = (numbered(0, old) if old else None), numbered(old, new)
    found = extend(past, now, length, dim)
    kept = min(length, old + new)
    assert found.shape[dim] == kept and found.dtype == now.dtype
    assert found[0].flatten().tolist() == list(range(old + new - kept, old + new))
    assert found.untyped_storage().nbytes() <= max(found.nbytes, 1) or new <= length, "no more is kept alive"


def test_extend_follows_the_dtype_of_the_new():
    assert extend(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, dtype=torch.bfloat16), 4).dtype == torch.bfloat16


def test_a_saved_memory_goes_on():
    memory, restored = StreamMemory(), StreamMemory()
    for step in range(3):
        for group in (0, 1):
            read(memory, place(step, group=group))
    assert memory.groups("train", (1, 100), 2) == {}
    saved = collect(memory.groups("train", (1, 100), 3))
    assert saved is not None and sorted(saved) == [0, 1]
    restored.restore([place(2, group=group) for group in saved], list(saved.values()))
    for group in (0, 1):
        assert read(restored, place(3, group=group)) == read(memory, place(3, group=group)) == 2 + group / 10
