"""Costs of blocks: the formula, tables, expected costs, and the term of the loss."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq_efficient.errors import UserError
from par_search.costs import Costs, Shape, flop_costs, read_table, write_table
from par_search.criterion import SearchCriterion
from par_search.layout import par_layout
from tests.par_search.helpers import ADAPTIVE, par_lm, supernet
from tests.stream_models import task, tokens
from tests.util import assert_close

PAPER = Shape(64, 640, 512, 2048, 8, 64)
LATENCY = {"weight": 0.0, "table": None, "loss": "hinge", "target": 0.0, "power": 0.6, "tokens": 0, "memory": -1}


def test_the_formula_is_figure_1_of_the_paper():
    costs = flop_costs(PAPER)
    assert costs.unit == "GFLOP"
    assert costs.blocks == pytest.approx((1.313, 0.268, 0.0), abs=5e-4)
    attention, feed_forward, _ = flop_costs(replace(PAPER, tokens=192, memory=192)).blocks
    assert (attention, feed_forward) == pytest.approx((1.03, 0.81), abs=5e-3)
    assert costs.of_layout("af" * 16) == pytest.approx(25.3, abs=0.05)
    assert costs.of_layout(par_layout(32)) == pytest.approx(14.9, abs=0.05)


def test_cached_keys_and_clamped_distances_cost_less():
    keys = flop_costs(replace(PAPER, cache_memory="keys")).blocks[0]
    clamped = flop_costs(replace(PAPER, clamp_len=400)).blocks[0]
    assert flop_costs(PAPER).blocks[0] - keys == pytest.approx(2 * 2 * 512 * 512 * 640 / 1e9)
    assert flop_costs(PAPER).blocks[0] - clamped == pytest.approx(2 * 512 * 512 * (704 - 401) / 1e9)


def test_expected_costs_are_linear():
    costs = Costs((3.0, 2.0, 0.5), "ms", rest=10.0)
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], requires_grad=True)
    assert costs.expected(p).item() == pytest.approx(3 + 1.25)
    assert_close(torch.autograd.grad(costs.expected(p), p)[0], torch.tensor([[3.0, 2.0, 0.5]] * 2))
    assert costs.of_layout("afi") == 15.5


def test_tables_travel(tmp_path: Path):
    path = tmp_path / "t.json"
    write_table(path, replace(PAPER, batch=4), [7.123456789, 2.0, 0.0], 5.5, {"machine": {"cpu": "x"}})
    costs = read_table(str(path), PAPER)
    assert costs == Costs((7.1235, 2.0, 0.0), "ms", 5.5)
    assert json.loads(path.read_text())["machine"] == {"cpu": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": {**asdict(PAPER), "dim": 256}}, "measured with dim 256, but this is dim 512"),
        ({"shape": {**asdict(PAPER), "tokens": 32}}, "measured with tokens 32, .*say --latency-tokens 32"),
        ({"shape": {**asdict(PAPER), "memory": 0}}, "say --latency-memory 0"),
        ({"shape": {**asdict(PAPER), "cache_memory": "keys"}}, "measured with cache_memory keys"),
        ({"shape": {}}, "measured with tokens None"),
        ({"shape": 3}, "has no shape"),
        ({"kind": "other"}, "not a table of scripts/measure_latency.py"),
        ({"ms": {"a": 1.0, "f": 2.0}}, "ms of 'i' is None"),
        ({"ms": {"a": -1.0, "f": 2.0, "i": 0}}, "ms of 'a' is -1.0"),
        ({"ms": {"a": "x", "f": 2.0, "i": 0}}, "ms of 'a' is 'x'"),
        ({"ms": [1, 2, 3]}, "has no shape or no ms"),
        ({"rest_ms": float("nan")}, "ms of 'rest' is nan"),
    ],
    ids=str,
)
def test_wrong_tables_are_one_line(tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "t.json"
    table = {"kind": "par_search_latency", "shape": asdict(PAPER), "ms": {"a": 3.0, "f": 2.0, "i": 0.0}, "rest_ms": 1.0}
    path.write_text(json.dumps(table))
    assert read_table(str(path), PAPER).rest == 1.0
    path.write_text(json.dumps({**table, **change}))
    with pytest.raises(UserError, match=message):
        read_table(str(path), PAPER)


def test_files_that_are_no_tables(tmp_path: Path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_table(str(tmp_path / "t.json"), PAPER)
    with pytest.raises(UserError, match="No such file"):
        read_table(str(tmp_path / "gone.json"), PAPER)


# --- the criterion ----------------------------------------------------------------------------------------------------


def criterion(**latency: Any) -> SearchCriterion:
    return SearchCriterion(task(), False, **{**LATENCY, **latency})


def sample(phase: str = "weights") -> dict[str, Any]:
    stream = tokens(2, 8)
    target = tokens(2, 8, seed=3)
    target[1, 5:] = 1
    return {"net_input": {"src_tokens": stream}, "target": target, "ntokens": 13, "phase": phase}


def loss_and_grads(net: Any, one: SearchCriterion) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    torch.manual_seed(7)
    net.zero_grad()
    loss, size, log = one(net, sample())
    (loss / size).backward()
    return loss.detach(), net.decoder.alpha.grad.clone(), log


@pytest.mark.parametrize("flags", [{}, ADAPTIVE], ids=["full", "adaptive"])
def test_the_loss_is_cross_entropy_over_scored_tokens(flags: dict[str, Any]):
    """Pads are no tokens, with full and adaptive softmax (property 13; bug 13)."""
    model = par_lm(**flags)
    loss, size, log = criterion()(model, sample())
    log_probs = model.get_normalized_probs(model(sample()["net_input"]["src_tokens"]), log_probs=True)
    target = sample()["target"]
    expected = -log_probs.gather(2, target.unsqueeze(2)).squeeze(2)[target != 1].double().sum()
    assert size == 13
    assert_close(loss.double(), expected, 1e-4)
    assert log["loss"] == loss and set(log) == {"loss", "ntokens", "nsentences", "sample_size"}
    vector = criterion()(model, sample(), reduce=False)[0]
    assert_close(vector.double().sum(), expected, 1e-4)


@pytest.mark.parametrize("kind", ["hinge", "product"])
@pytest.mark.parametrize("flags", [{}, ADAPTIVE], ids=["full", "adaptive"])
def test_weight_0_changes_nothing(kind: str, flags: dict[str, Any]):
    """Losses and gradients, bitwise (property 18)."""
    net = supernet(**flags).train()
    plain = loss_and_grads(net, criterion())
    with_target = loss_and_grads(net, criterion(loss=kind, target=1e-9 if kind == "hinge" else 0.0))
    assert torch.equal(plain[0], with_target[0]) and torch.equal(plain[1], with_target[1])


@pytest.mark.parametrize("kind", ["hinge", "target", "product"])
def test_attention_gets_rarer_the_more_the_weight(kind: str):
    """One gradient step of alpha: the probability of attention falls, more with more weight (property 18)."""
    found = []
    for weight in (0.0, 0.5, 2.0, 8.0):
        net = supernet(3).train()
        more = {"loss": "product"} if kind == "product" else {"target": 1e-6 if kind == "target" else 0.0}
        if kind == "product" and not weight:
            continue
        _, grad, _ = loss_and_grads(net, criterion(weight=weight, **more))
        with torch.no_grad():
            net.decoder.alpha.sub_(0.1 * grad / (1 if kind != "target" else 1e3))
        found.append(net.decoder.probabilities()[:, 0].mean().item())
    assert all(after < before for before, after in pairwise(found)), found


def test_a_target_that_is_met_adds_nothing():
    net = supernet(3).train()
    plain = loss_and_grads(net, criterion())
    met = loss_and_grads(net, criterion(weight=5.0, target=1e9))
    assert torch.equal(plain[0], met[0]) and torch.equal(plain[1], met[1])
    cost = plain[2]["_arch_cost"]
    near = loss_and_grads(net, criterion(weight=5.0, target=cost / 2))
    assert_close(near[0] - plain[0], torch.tensor(5.0 * 13 * 1.0, dtype=near[0].dtype), 1e-3, 1e-3)
    assert near[2]["loss"] == plain[2]["loss"]  # what is logged stays pure


def test_what_is_logged():
    net = supernet(2).train()
    net.set_num_updates(100)
    log = criterion()(net, sample("architecture"))[2]
    assert log["_tau"] == 0.1 and log["_arch_entropy"] == pytest.approx(1.0986, abs=1e-4)
    assert sum(log[f"_block/01/{kind}"] for kind in "afi") == pytest.approx(1.0)
    shape = Shape.of(net.decoder.options.block, 8, 6)
    assert log["_arch_cost"] == pytest.approx(2 * sum(flop_costs(shape).blocks) / 3)
    assert log["_arch_loss"] == log["loss"] and "_arch_loss" not in criterion()(net, sample())[2]
    assert "_arch" not in criterion()(net.eval(), sample())[2]


def test_a_table_is_read_before_training(tmp_path: Path):
    net = supernet(2)
    shape = Shape.of(net.decoder.options.block, 8, 6)
    write_table(tmp_path / "t.json", shape, [4.0, 2.0, 0.0], 0.0, {})
    found = criterion(table=str(tmp_path / "t.json")).costs(net.decoder)
    assert found.unit == "ms" and found.blocks == (4.0, 2.0, 0.0)
    wrong = SimpleNamespace(**{f"latency_{name}": value for name, value in LATENCY.items()}, sentence_avg=False)
    wrong.latency_table, wrong.latency_tokens = str(tmp_path / "t.json"), 16
    holder = SimpleNamespace(**vars(task()), built_for_training=lambda: [net])
    with pytest.raises(UserError, match="measured with tokens 8, but this is tokens 16"):
        SearchCriterion.build_criterion(wrong, holder)


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ({"weight": -1.0}, "--latency-weight -1.0: must be at least 0"),
        ({"weight": float("nan")}, "--latency-weight nan"),
        ({"target": -2.0}, "--latency-target -2.0"),
        ({"tokens": -1}, "--latency-tokens -1"),
        ({"memory": -2}, "--latency-memory -2"),
        ({"target": 1.0, "loss": "product"}, "--latency-target is for --latency-loss hinge"),
    ],
    ids=str,
)
def test_mistakes_name_the_flag(latency: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        criterion(**latency)
