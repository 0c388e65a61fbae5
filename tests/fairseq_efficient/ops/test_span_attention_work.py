"""What span attention touches and computes: no memory that nobody wrote, products that follow the spans."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_efficient.ops.span_attention import head_groups, span_attention
from tests.fairseq_efficient.ops.span_attention_inputs import (
    SIZES,
    SPANS,
    inputs,
    small_tiles,  # noqa: F401
    spans_of,
    with_gradients,
)


@SPANS
@pytest.mark.parametrize("constant", [0, 3])
@pytest.mark.usefixtures("poisoned_memory")
def test_memory_that_nobody_wrote_is_not_read(kind: str, constant: int):
    for queries, keys in SIZES:
        arguments = inputs(queries, keys, constant=constant)
        ours = with_gradients(span_attention, {**arguments, "spans": spans_of(kind, 2, 3, queries, 24), "ramp": 5})
        assert all(torch.isfinite(one).all() for one in ours)


class _Products(TorchDispatchMode):
    """Counts multiply-adds of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        shift = {"mm": 0, "bmm": 0, "addmm_": 1, "baddbmm_": 1, "addmm": 1, "baddbmm": 1}.get(name)
        if shift is not None:
            one, two = args[shift : shift + 2]
            self.count += one.numel() * two.size(-1)
        return function(*args, **(kwargs or {}))


def products(spans: Tensor | None, training: bool) -> int:
    arguments = inputs(32, 32 + 2048, most=2048, batch=1, heads=8, dtype=torch.float32)
    with _Products() as counted:
        out = span_attention(**arguments, spans=spans, ramp=32)
        if training:
            out.sum().backward()
    return counted.count


@pytest.mark.parametrize("training", [False, True])
def test_work_follows_the_sum_of_the_spans(training: bool):
    """Short heads do not pay for the longest one."""
    full = products(None, training)
    short = products(torch.full((8,), 41.0, requires_grad=True), training)
    mixed = products(torch.tensor([2048.0, *[41.0] * 7], requires_grad=True), training)
    assert full / short > 20
    assert full / mixed > 5.5


def test_grouping_of_heads():
    assert head_groups([196] * 7 + [8192]) == [(list(range(7)), 196), ([7], 8192)]
    assert head_groups([300, 10, 310, 12]) == [([1, 3], 12), ([0, 2], 310)]
    assert head_groups([5]) == [([0], 5)]
    assert head_groups([7, 7, 7]) == [([0, 1, 2], 7)]
    widths = [3, 800, 40, 41, 2000, 39, 810, 5]
    found = head_groups(widths)
    assert sorted(head for heads, _ in found for head in heads) == list(range(8))
    assert all(width == max(widths[head] for head in heads) for heads, width in found)
