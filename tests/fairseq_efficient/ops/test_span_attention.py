"""Span attention: grouped heads in tiles against a table looked up for every pair of query and key."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_efficient.ops.span_attention import naive as naive_module
from fairseq_efficient.ops.span_attention import (
    soft_mask,
    span_attention,
    span_attention_step,
    span_width,
    tiles,
)
from fairseq_efficient.ops.span_attention.published import masked_after_softmax, published_columns
from tests.fairseq_efficient.ops.span_attention_inputs import (
    SIZES,
    SPANS,
    inputs,
    leaves,
    small_tiles,  # noqa: F401
    spans_of,
    with_gradients,
)
from tests.util import assert_close

OPS = pytest.mark.parametrize("op", [span_attention, naive_module.span_attention], ids=["fast", "naive"])
STEPS = pytest.mark.parametrize("step", [span_attention_step, naive_module.span_attention_step], ids=["fast", "naive"])


def assert_parity(arguments: dict[str, Any], tolerance: float = 1e-10) -> None:
    ours, reference = (with_gradients(op, arguments) for op in (span_attention, naive_module.span_attention))
    for mine, theirs in zip(ours, reference, strict=True):
        assert_close(mine, theirs, tolerance, tolerance)


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@SPANS
@pytest.mark.parametrize("constant", [0, 5])
def test_fast_is_naive(queries: int, keys: int, kind: str, constant: int):
    """Outputs and gradients of queries, keys, values, positions, constant keys and spans, to 1e-10 in float64."""
    arguments = inputs(queries, keys, constant=constant)
    assert_parity({**arguments, "spans": spans_of(kind, 2, 3, queries, 24), "ramp": 5})


@pytest.mark.parametrize("pairs", [1, 2, 4, 8, 24])
@pytest.mark.parametrize("constant", [0, 3])
def test_fast_is_naive_however_it_is_cut(pairs: int, constant: int, monkeypatch: pytest.MonkeyPatch):
    """Tiles of one head, some heads, a row, some rows or all; 17 queries are tiles of 9 and 8."""
    arguments = inputs(17, 30, most=11, batch=6, heads=4, constant=constant)
    row = 11 + 9 - 1 + constant
    monkeypatch.setattr(tiles, "_TILE", {"cpu": pairs * 9 * row})
    monkeypatch.setattr("fairseq_efficient.ops.span_attention.common._GROUP", 1e9)
    for kind in ("none", "heads", "queries"):
        assert_parity({**arguments, "spans": spans_of(kind, 6, 4, 17, 11), "ramp": 2})


@SPANS
@pytest.mark.parametrize("price", [0, 1e9], ids=["every head alone", "all heads together"])
def test_groups_change_nothing(kind: str, price: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairseq_efficient.ops.span_attention.common._GROUP", price)
    arguments = {**inputs(19, 40, heads=5), "spans": spans_of(kind, 2, 5, 19, 24), "ramp": 3}
    assert_parity(arguments)


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    sizes=st.tuples(st.integers(1, 20), st.integers(0, 30), st.integers(1, 26)),
    ramp=st.integers(1, 30),
    constant=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_any_spans(spans: list[float], sizes: tuple[int, int, int], ramp: int, constant: int, seed: int):
    """Ragged spans, ramps longer than the window, memory shorter and longer than it, blocks longer than it."""
    torch.manual_seed(seed)
    queries, memory, most = sizes
    heads = len(spans)
    arguments = inputs(queries, memory + queries, most, heads=heads, constant=constant)
    tokens = (torch.tensor(spans, dtype=torch.double) * most).requires_grad_()
    assert_parity({**arguments, "spans": tokens, "ramp": ramp})


@pytest.mark.parametrize("constant", [0, 2])
def test_p8_gradcheck(constant: int):
    """Finite differences; spans stand off the mask's corners, which have no derivative."""
    arguments = inputs(5, 9, most=7, batch=1, heads=2, dim=2, constant=constant)
    spans = torch.tensor([1.3, 4.6], dtype=torch.double, requires_grad=True)
    names = ["q", "k", "v", "positions"]

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors[:4], strict=True))
        more = {"constant": tensors[5:]} if constant else {}
        return span_attention(**given, spans=tensors[4], ramp=3, **more)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(call, (*(arguments[n] for n in names), spans, *arguments.get("constant", ())))


def test_p8_gradcheck_of_spans_by_query():
    arguments = inputs(4, 7, most=6, batch=1, heads=2, dim=2)
    spans = (torch.rand(1, 2, 4, dtype=torch.double) * 4 + 0.05).requires_grad_()
    fixed = {name: one.detach() for name, one in arguments.items()}
    assert torch.autograd.gradcheck(lambda s: span_attention(**fixed, spans=s, ramp=3), (spans,))


def test_float32_and_the_tiles_in_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for most in (70, 400):
        arguments = inputs(300, 333, most=most, dtype=torch.float32)
        spans = torch.tensor([0.0, 20.5, 333.0], requires_grad=True)
        assert_parity({**arguments, "spans": spans, "ramp": 32}, 3e-5)
        assert_parity(arguments, 3e-5)


def test_bfloat16_scores_are_close():
    arguments = inputs(40, 60, dtype=torch.float32)
    spans = torch.tensor([3.0, 9.5, 20.0])
    exact = span_attention(**arguments, spans=spans, ramp=4)
    low = {name: one.detach().bfloat16() for name, one in arguments.items()}
    found = span_attention(**low, spans=spans, ramp=4)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), exact.detach(), 0.06, 0.06)


@SPANS
@pytest.mark.parametrize("constant", [0, 3])
@pytest.mark.parametrize("price", [0, 1e9], ids=["every head alone", "all heads together"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision(
    kind: str, constant: int, price: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Close to those of the reference in fp32 on the same numbers, each in its input's precision."""
    monkeypatch.setattr("fairseq_efficient.ops.span_attention.common._GROUP", price)
    spans = spans_of(kind, 2, 3, 20, 24)
    exact = {**inputs(20, 40, constant=constant, dtype=dtype), "spans": None if spans is None else spans.float()}
    low = dict(exact)
    for name, one in exact.items():
        if name == "constant":
            exact[name] = tuple(part.detach().float().requires_grad_() for part in one)
        elif one is not None:
            exact[name] = one.detach().float().requires_grad_()
    if spans is not None:
        low["spans"] = exact["spans"].detach().requires_grad_()
    expected = with_gradients(naive_module.span_attention, {**exact, "ramp": 5})
    for op in (span_attention, naive_module.span_attention):
        found = with_gradients(op, {**low, "ramp": 5})
        assert [one.dtype for one in found[1:]] == [one.dtype for one in leaves(low)]
        for mine, theirs in zip(found, expected, strict=True):
            bound = 0.02 * theirs.norm() + 0.02
            assert mine.isfinite().all() and (mine.float() - theirs).norm() < bound


# --- what the mathematics says ---------------------------------------------------------------------------------------


def test_p5_mask_by_hand():
    """S = 8, R = 4, z = 0.25: by ascending distance."""
    mask = soft_mask(torch.tensor([2.0]), 4, 8)
    assert_close(mask, torch.tensor([[1, 1, 1, 0.75, 0.5, 0.25, 0, 0]]))
    assert span_width(2.0, 4, 8) == 6 == int((mask > 0).sum())
    assert [span_width(span, 4, 8) for span in (0.0, 0.1, 3.9, 4.0, 4.1, 8.0)] == [4, 5, 8, 8, 8, 8]


@OPS
def test_p1_explicit_loop(op: Any):
    """The formula, written with one query and one key at a time."""
    a = {name: one.detach() for name, one in inputs(3, 5, most=4, batch=1, heads=1, dim=2).items()}
    span, ramp = 0.7, 2
    out = op(**a, spans=torch.tensor([span]).double(), ramp=ramp)
    for i in range(3):
        place, total, weights = 2 + i, torch.zeros(2).double(), 0.0
        for j in range(place):
            x = place - j - 1
            mask = min(max((ramp + span - x) / ramp, 0), 1) if x < 4 else 0
            score = (a["q"][0, 0, i] @ (a["k"][0, 0, j] + a["positions"][x])).item() / 2**0.5 if x < 4 else 0.0
            weight = mask * torch.tensor(score).double().exp()
            total, weights = total + weight * a["v"][0, 0, j], weights + weight
        assert_close(out[0, 0, i], total / weights, 1e-6)


@OPS
@pytest.mark.parametrize("spans", [None, torch.tensor([3.0, 11.5, 24.0])])
def test_p2_no_query_sees_itself_or_what_comes_later(op: Any, spans: Tensor | None):
    a = {name: one.detach() for name, one in inputs(20, 25).items()}
    out = op(**a, spans=spans, ramp=4)
    for t in (0, 7, 8, 19):
        other = {name: one.clone() for name, one in a.items()}
        other["k"][:, :, 5 + t :], other["v"][:, :, 5 + t :], other["q"][:, :, t + 1 :] = 1e4, 1e4, -1e4
        assert torch.equal(op(**other, spans=spans, ramp=4)[:, :, : t + 1], out[:, :, : t + 1])


@OPS
def test_keys_beyond_the_span_change_nothing(op: Any):
    a = {name: one.detach() for name, one in inputs(20, 60, heads=1).items()}
    out = op(**a, spans=torch.tensor([3.0]), ramp=4)
    for t in (0, 9, 19):
        other = {name: one.clone() for name, one in a.items()}
        other["k"][:, :, : 40 + t - 7], other["v"][:, :, : 40 + t - 7] = 1e4, 1e4
        assert_close(op(**other, spans=torch.tensor([3.0]), ramp=4)[:, :, t:], out[:, :, t:], 1e-12)


@OPS
def test_f10_rows_sum_to_one_whatever_the_scores(op: Any):
    """A key just outside the span scores 30 more than those inside: the published code's row sums to 1e-4 there."""
    a = {name: one.detach() for name, one in inputs(6, 20, most=16, batch=1, heads=1).items()}
    a["q"], a["v"] = torch.ones_like(a["q"]), torch.ones_like(a["v"])
    a["positions"] = torch.zeros_like(a["positions"])
    a["k"] = torch.zeros_like(a["k"])
    a["k"][:, :, 14 - 9 : 15] = 0
    a["k"][:, :, :6] = 15.0  # distance 9 and more from query 0: outside 2 + 4
    spans = torch.tensor([2.0])
    assert_close(op(**a, spans=spans, ramp=4), torch.ones_like(a["q"]), 1e-12)
    bad = masked_after_softmax(**a, spans=spans, ramp=4)
    assert bad[0, 0, 0, 0] < 1e-3


@OPS
def test_p11_context_and_constant_keys_share_each_row(op: Any):
    """Values of one give one, whatever the scores and however little a head sees; constant keys are never masked."""
    a = {name: one.detach() for name, one in inputs(9, 20).items()}
    a["v"] = torch.ones_like(a["v"])
    for scale in (1.0, 30.0):
        keys = torch.randn(3, 5, 4, dtype=torch.double) * scale
        for values, low in ((1.0, 1 - 1e-12), (0.0, 0.0)):
            constant = (keys, torch.full_like(keys, values))
            out = op(**a, spans=torch.zeros(3), ramp=1, constant=constant)
            assert ((out >= low) & (out <= 1 + 1e-12)).all()
            assert values or (out < 1).any()


def test_a_query_that_sees_nothing_gives_zero():
    for constant in (0, 2):
        arguments = inputs(9, 9, constant=constant)
        ours = with_gradients(span_attention, arguments)
        assert all(torch.isfinite(one).all() for one in ours)
        if not constant:
            assert not ours[0][:, :, 0].any() and not ours[1][:, :, 0].any()


@pytest.mark.parametrize("blocks", [[1] * 32, [7] * 5, [32, 3], [35]])
@SPANS
def test_p3_blocks_change_nothing(blocks: list[int], kind: str):
    """One call over 35 queries, or blocks with the keys before them: the same to 1e-12."""
    a = {name: one.detach() for name, one in inputs(35, 47).items()}
    spans = spans_of(kind, 2, 3, 35, 24)
    spans = None if spans is None else spans.detach()
    whole = span_attention(**a, spans=spans, ramp=4)
    start, found = 0, []
    for count in blocks:
        end = min(start + count, 35)
        some = {**a, "q": a["q"][:, :, start:end], "k": a["k"][:, :, : 12 + end], "v": a["v"][:, :, : 12 + end]}
        here = spans[:, :, start:end] if kind == "queries" and spans is not None else spans
        found.append(span_attention(**some, spans=here, ramp=4))
        start = end
    assert_close(torch.cat(found, 2), whole[:, :, :start], 1e-12)


def test_p9_heads_are_independent():
    a = inputs(20, 40)
    spans = torch.tensor([3.0, 9.0, 20.0], dtype=torch.double, requires_grad=True)
    out = span_attention(**a, spans=spans, ramp=4)
    for head in range(3):
        (grad,) = torch.autograd.grad(out[:, head].square().sum(), spans, retain_graph=True)
        assert grad[head] != 0 and grad.count_nonzero() == 1
        other = spans.detach().clone()
        other[head] += 1.5
        changed = span_attention(**a, spans=other, ramp=4).ne(out).flatten(2).any(2).any(0)
        assert changed.tolist() == [one == head for one in range(3)]


def test_p8_gradient_of_spans_at_the_ends():
    """z = 1: the language model says nothing; z = 0: the ramp keeps the span trainable."""
    a = inputs(20, 60, heads=2)
    spans = torch.tensor([24.0, 0.0], dtype=torch.double, requires_grad=True)
    out = span_attention(**a, spans=spans, ramp=4)
    (grad,) = torch.autograd.grad(out.square().sum(), spans)
    assert grad[0] == 0 and grad[1] != 0


def test_known_spans_are_believed():
    a = {name: one.detach() for name, one in inputs(20, 60).items()}
    spans = torch.tensor([3.0, 9.0, 20.0])
    expected = span_attention(**a, spans=spans, ramp=4)
    assert torch.equal(span_attention(**a, spans=spans, ramp=4, known_spans=spans.tolist()), expected)
    wide = span_attention(**a, spans=spans, ramp=4, known_spans=[20.0] * 3)
    assert_close(wide, expected, 1e-12)


# --- dropout, steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [0, 6])
def test_dropout_drops_weights_and_its_backward_draws_the_same(constant: int):
    arguments = {**inputs(12, 30, constant=constant), "spans": spans_of("heads", 2, 3, 12, 24), "ramp": 5}
    values = [arguments["v"], *([arguments["constant"][1]] if constant else [])]
    torch.manual_seed(5)
    out = span_attention(**arguments, dropout_p=0.4)
    state = torch.get_rng_state()
    grads = torch.autograd.grad(out.sum(), values)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    other = dict(arguments)
    for one in values:
        with torch.no_grad():
            one += 0.25  # linear in the values: finite differences are exact
    again = span_attention(**other, dropout_p=0.4)
    expected = sum((grad * 0.25).sum() for grad in grads)
    assert_close(again.sum() - out.sum(), expected, 1e-9)


def test_dropout_keeps_the_mean():
    arguments = {name: one.detach() for name, one in inputs(6, 30, constant=0).items()}
    spans = torch.tensor([3.0, 9.0, 20.0])
    exact = span_attention(**arguments, spans=spans, ramp=5)
    found = sum(span_attention(**arguments, spans=spans, ramp=5, dropout_p=0.3) for _ in range(600)) / 600
    assert_close(found, exact, 0.15, 0.1)


def test_steps_are_the_rows_of_the_whole():
    for kind in ("none", "heads", "queries"):
        for constant in (0, 3):
            a = inputs(30, 30, constant=constant)
            spans = spans_of(kind, 2, 3, 30, 24)
            whole = span_attention(**a, spans=spans, ramp=4)
            for t in (0, 1, 5, 29):
                more = {"constant": a["constant"]} if constant else {}
                here = spans[:, :, t : t + 1] if kind == "queries" and spans is not None else spans
                for step in (span_attention_step, naive_module.span_attention_step):
                    if not t and not constant:
                        continue
                    one = step(
                        a["q"][:, :, t : t + 1], a["k"][:, :, :t], a["v"][:, :, :t], a["positions"], here, 4, **more
                    )
                    assert_close(one, whole[:, :, t : t + 1], 1e-12)


@STEPS
def test_the_first_step_sees_nothing(step: Any):
    a = inputs(1, 1)
    empty = torch.zeros(2, 3, 0, 4, dtype=torch.double)
    assert not step(a["q"], empty, empty, a["positions"]).any()


# --- the published form ----------------------------------------------------------------------------------------------


def test_published_columns():
    """S' = S - 64 floor(min(S - 1, S - cur) / 64), cur = min(S, ceil(zS) + R)."""
    assert published_columns(0.0, 32, 8192) == 64
    assert published_columns(0.0, 32, 1024) == 64
    assert published_columns(33.0, 32, 1024) == 128
    assert published_columns(1024.0, 32, 1024) == 1024
    assert published_columns(0.0, 32, 48) == 48
    assert published_columns(10.2, 4, 100) == 36


def test_the_published_form_is_ours_where_scores_are_tame():
    a = {name: one.detach() * 0.3 for name, one in inputs(20, 60, heads=2).items()}
    spans = torch.tensor([3.0, 9.0], dtype=torch.double)
    keys, values = (torch.randn(2, 3, 4, dtype=torch.double) for _ in range(2))
    for constant in (None, (keys, values)):
        ours = span_attention(**a, spans=spans, ramp=4, constant=constant)
        theirs = masked_after_softmax(**a, spans=spans, ramp=4, constant=constant)
        assert_close(theirs, ours, 1e-6)


# --- mistakes --------------------------------------------------------------------------------------------------------


@OPS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 3, 4, 4)}, "at least as many keys|k and v"),
        ({"positions": torch.zeros(24, 5)}, "positions"),
        ({"positions": torch.zeros(0, 4)}, "positions"),
        ({"spans": torch.zeros(2)}, "spans"),
        ({"ramp": 0}, "ramp"),
        ({"constant": (torch.zeros(2, 5, 4), torch.zeros(2, 5, 4))}, "constant"),
        ({"dropout_p": 1.0}, "dropout_p"),
    ],
)
def test_wrong_arguments(op: Any, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        op(**{**inputs(5, 9, dtype=torch.float32), **change})
