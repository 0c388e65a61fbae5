"""A batch computed in parts: the same sums, the same memory, gradients exchanged once."""

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.batch_split import split_batch, step_by_parts
from fairseq_efficient.stream_memory import MemoryCell, StreamPlace
from tests.util import assert_close

PAD = 1
PLACE = StreamPlace("train", True, (1, 9), 0, 2, False)


class Model(nn.Module):
    """Adds what it remembers to the mean of a row, and remembers its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.quiet = 0  # how many passes did not exchange gradients

    @contextlib.contextmanager
    def no_sync(self) -> Any:
        self.quiet += 1
        yield

    def forward(self, src_tokens: Any, memory: MemoryCell) -> torch.Tensor:
        before = memory.take(self)
        total = src_tokens.float() if before is None else src_tokens.float() + before[0]
        memory.put(self, [total, total[:, :1, None]])
        return (total * self.weight).sum()


class Criterion:
    def __init__(self, sums: bool = True):
        self.sums = sums

    def logging_outputs_can_be_summed(self) -> bool:
        return self.sums


def batch(rows: int, model: Model, remembered: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    tokens = torch.randint(2, 9, (rows, 5))
    target = tokens.roll(-1, 1)
    target[-1, 3:] = PAD
    before = {id(model): [torch.rand(rows, 5)]} if remembered else None
    cell = MemoryCell(PLACE, before, 7)
    inputs = {"src_tokens": tokens, "memory": cell}
    counts = {"nsentences": rows, "ntokens": 5 * rows - 2}
    return {"id": torch.arange(rows), "target": target, **counts, "net_input": inputs, "stream": PLACE}


def step_of(model: Model) -> Any:
    def step(sample: dict[str, Any]) -> Any:
        loss = model(**sample["net_input"])
        loss.backward()
        return loss.detach(), sample["ntokens"], {"loss": loss.detach(), "ntokens": sample["ntokens"]}

    return step


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
@pytest.mark.parametrize("remembered", [False, True])
def test_parts_add_up(rows: int, parts: int, remembered: bool):
    whole, split = Model(), Model()
    sample = batch(rows, whole, remembered)
    loss, size, log = step_of(whole)(sample)
    other = batch(rows, split, remembered)
    found = step_by_parts(step_of(split), other, parts, PAD, split, Criterion())
    assert_close(found[0], loss, 1e-4)
    assert found[1] == size == 5 * rows - 2 and found[2]["ntokens"] == log["ntokens"]
    assert_close(split.weight.grad, whole.weight.grad, 1e-4)
    after, expected = other["net_input"]["memory"].after, sample["net_input"]["memory"].after
    assert_close(after[id(split)], expected[id(whole)])
    assert split.quiet == min(parts, rows) - 1


def test_rows_of_parts():
    sample = batch(7, Model(), True)
    parts = split_batch(sample, 3, PAD)
    assert [part["nsentences"] for part in parts] == [3, 2, 2] == [len(part["id"]) for part in parts]
    assert torch.cat([part["target"] for part in parts]).equal(sample["target"])
    assert [part["ntokens"] for part in parts] == [15, 10, 8]
    assert all(part["stream"] == PLACE and part["net_input"]["memory"].length == 7 for part in parts)


def test_logs_that_are_no_sums_are_refused():
    model = Model()
    with pytest.raises(UserError, match="--batch-split: the logs of Criterion are not sums"):
        step_by_parts(step_of(model), batch(4, model, False), 2, PAD, model, Criterion(False))
