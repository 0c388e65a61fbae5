"""The supernet: mixtures, choices and their frequencies, temperature, the net that is derived from it."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from fairseq_efficient.ops.relaxed_onehot import gumbel_like, relaxed_onehot
from par_search.costs import Shape, flop_costs
from par_search.layout import KINDS
from par_search.model import temperature
from par_search.supernet import ARCHITECTURE, Temperature, inherited, mix
from tests.par_search.helpers import TIED, SupernetConfig, par_lm, supernet
from tests.stream_models import blockwise, tokens
from tests.util import assert_close

LAYOUT = "afifa"


def decided(layout: str = LAYOUT, value: float = 50.0, **flags: Any) -> Any:
    """A supernet that is all but sure of ``layout``."""
    net = supernet(len(layout), **flags)
    with torch.no_grad():
        choice = torch.tensor([KINDS.index(kind) for kind in layout])
        net.decoder.alpha.copy_(value * one_hot(choice, 3))
    return net


def derived(net: Any, layout: str = LAYOUT, **flags: Any) -> Any:
    model = par_lm(layout, seed=9, **flags)
    model.load_state_dict(inherited(net.state_dict(), layout), strict=True)
    return model


def test_a_mixture_is_the_formula():
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    branches = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert_close(mix(weights, *branches), sum(w * b for w, b in zip(weights, branches, strict=True)), 1e-14)
    assert torch.autograd.gradcheck(mix, (weights, *branches))
    half = [branch.detach().bfloat16() for branch in branches]
    assert mix(weights.float(), *half).dtype == torch.bfloat16
    single = weights.detach().float().requires_grad_()
    mix(single, *half).sum().backward()
    expected = torch.stack([branch.float().sum() for branch in half])
    assert_close(single.grad, expected, 1e-2, 1e-2)


@pytest.mark.parametrize("flags", [{}, {"supernet_eval": "mixture"}, {"cache_memory": "keys"}, TIED], ids=str)
def test_a_decided_supernet_is_the_derived_net(flags: dict[str, Any]):
    """With a one-hot architecture, in evaluation by argmax or mixture; over blocks with memory, too (property 4)."""
    net = decided(**flags)
    flags = {key: value for key, value in flags.items() if key != "supernet_eval"}
    model, stream = derived(net, **flags), tokens(2, 14)
    assert_close(blockwise(net, stream, [5, 5, 4]), blockwise(model, stream, [5, 5, 4]), 1e-8, 1e-8)


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_decided_supernet_trains_like_the_derived_net(straight_through: bool):
    """Outputs and gradients of weights, noise and all, at a low temperature."""
    net = decided(straight_through=straight_through, tau_start=0.1, tau_end=0.1, value=100.0).train()
    model, stream = derived(net).train(), tokens(2, 8)
    outputs = [one(stream)[0] for one in (net, model)]
    assert_close(outputs[0], outputs[1], 1e-9, 1e-9)
    for out in outputs:
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    grads = {name: one.grad for name, one in net.named_parameters()}
    found = inherited(grads, LAYOUT)
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad, 1e-8, 1e-8)


def test_the_derived_net_has_nothing_that_it_does_not_use():
    """No alpha, no weights of other branches, fewer FLOPs, memory for attention blocks only (property 15)."""
    net = decided()
    model = derived(net)
    assert not any("alpha" in name for name in model.state_dict())
    assert [name for name, _ in model.decoder.blocks[2].named_parameters()] == []
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in net.parameters())
    costs = flop_costs(Shape.of(net.decoder.options.block, 8, 6))
    every = len(LAYOUT) * sum(costs.blocks)  # what an update of the search computes
    assert 0 < costs.of_layout(LAYOUT) < 0.5 * every and costs.blocks[2] == 0
    out, extra = model.decoder(tokens())
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and len(extra["memory"]) == 2
    with pytest.raises(ValueError, match="fixed"):
        model.decoder(tokens(), layout="aaaaa")


def test_only_the_chosen_branches_run_outside_training(monkeypatch: pytest.MonkeyPatch):
    """Evaluation costs what the derived net costs (bug 16)."""
    net, ran = decided(), []
    for number, block in enumerate(net.decoder.blocks):
        for name in ("attention", "feed_forward"):
            getattr(block, name).register_forward_hook(lambda *_, at=(number, name): ran.append(at))
    net(tokens())
    assert ran == [(0, "attention"), (1, "feed_forward"), (3, "feed_forward"), (4, "attention")]
    ran.clear()
    net(tokens(), layout="iiifi")
    assert ran == [(3, "feed_forward")]
    ran.clear()
    net.train()(tokens())
    assert len(ran) == 10


def test_evaluation_is_deterministic_and_draws_nothing():
    """By argmax and by mixture; no noise (property 5; bug 7)."""
    for flags in ({}, {"supernet_eval": "mixture"}):
        net, stream = supernet(**flags), tokens()
        before = torch.get_rng_state()
        assert torch.equal(net(stream)[0], net(stream)[0]) and torch.equal(torch.get_rng_state(), before)
    net.train()
    assert not torch.equal(net(stream)[0], net(stream)[0])


def test_memory_is_kept_for_every_block():
    net = decided()
    assert [one.size(1) for one in net.train().decoder(tokens())[1]["memory"]] == [6] * 5
    kept = net.eval().decoder(tokens())[1]["memory"]
    assert [one.size(1) for one in kept] == [6, 0, 0, 0, 6]  # nobody reads the others
    other = net.decoder(tokens(), memory=kept, layout="aaaaa")[1]["memory"]
    assert [one.size(1) for one in other] == [6] * 5


def test_one_draw_for_each_block_and_update():
    """Batch and time share it: the mixture of a row does not depend on other rows."""
    net, stream = supernet(tau_start=0.5).train(), tokens(3, 6)
    torch.manual_seed(5)
    all_rows = net(stream)[0]
    torch.manual_seed(5)
    assert_close(net(stream[1:2])[0], all_rows[1:2], 1e-10)
    torch.manual_seed(5)
    noise = gumbel_like(net.decoder.alpha)
    torch.manual_seed(5)
    expected = relaxed_onehot(net.decoder.alpha, net.decoder.tau, False, noise)
    assert_close(net.decoder.mixing_weights(), expected, 0, 0)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_frequencies_are_the_probabilities(tau: float):
    """Chi-square over the largest weight of many draws, at any temperature (property 6)."""
    net = supernet(2, tau_start=tau, tau_end=tau).train()
    with torch.no_grad():
        net.decoder.alpha.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.3, 0.9]]))
    draws = 6000
    torch.manual_seed(0)
    with torch.no_grad():
        chosen = torch.stack([net.decoder.mixing_weights().argmax(-1) for _ in range(draws)])
    expected = net.decoder.probabilities().detach() * draws
    found = torch.stack([chosen.eq(kind).sum(0) for kind in range(3)], 1)
    assert float(((found - expected) ** 2 / expected).sum()) < 26.1  # 4 degrees of freedom, p = 3e-5


def test_straight_through_is_one_hot_and_teaches_all_kinds():
    """Forward one-hot, gradients of all three (property 9)."""
    net = supernet(straight_through=True).train()
    weights = net.decoder.mixing_weights()
    assert set(weights.detach().unique().tolist()) == {0.0, 1.0} and weights.sum(-1).eq(1).all()
    net(tokens())[0].square().sum().backward()
    grad = net.decoder.alpha.grad
    assert (grad != 0).all() and grad.sum(-1).abs().max() < 1e-9 * grad.abs().max()


@pytest.mark.parametrize("straight_through", [False, True])
def test_an_unlikely_kind_can_come_back(straight_through: bool):
    """Logits have no zone without gradient, where a clamped probability stays for ever (bug 4)."""
    net = supernet(2, straight_through=straight_through, tau_start=1.0, tau_end=1.0).train()
    with torch.no_grad():
        net.decoder.alpha.copy_(torch.tensor([[-9.0, 0.0, 0.0], [0.0, -9.0, 0.0]]))
    found = []
    for _ in range(20):
        net.zero_grad()
        net(tokens())[0].square().sum().backward()
        found.append(net.decoder.alpha.grad)
    grads = torch.stack(found)
    assert (grads[:, 0, 0] != 0).all() and (grads[:, 1, 1] != 0).all()


@pytest.mark.parametrize("straight_through", [False, True])
def test_every_weight_gets_a_gradient(straight_through: bool):
    """Zero, where another kind was chosen: so optimizers and other ranks see the same parameters in each update."""
    net = supernet(straight_through=straight_through).train()
    net(tokens())[0].square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_alpha_is_marked_and_starts_even():
    net = supernet(4)
    marked = [name for name, p in net.named_parameters() if getattr(p, "param_group", "") == ARCHITECTURE]
    assert marked == ["decoder.alpha"]
    assert_close(net.decoder.probabilities(), torch.full((4, 3), 1 / 3, dtype=torch.float64), 1e-12)
    assert net.decoder.entropies().tolist() == pytest.approx(4 * [math.log(3)])
    assert net.decoder.layout() == "aaaa"
    assert decided(value=1e4).decoder.entropies().eq(0).all() and decided().decoder.layout() == LAYOUT


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_temperature_is_exact_at_both_ends(kind: str):
    """And not their product at the end (property 7; bug 5)."""
    tau = Temperature(5.0, 0.1, 300, kind)
    assert (tau(0), tau(300), tau(10_000), tau(None)) == (5.0, 0.1, 0.1, 0.1)
    values = [tau(n) for n in range(301)]
    assert values == sorted(values, reverse=True)
    assert tau(150) == pytest.approx((5 * 0.1) ** 0.5 if kind == "exponential" else 2.55)


def test_temperature_follows_the_update_number():
    """What training uses is the schedule (property 7; bug 6)."""
    net = supernet(tau_start=2.0, tau_end=0.5, max_update=10)
    for update, tau in ((0, 2.0), (5, 1.0), (10, 0.5)):
        net.set_num_updates(update)
        assert net.decoder.tau == pytest.approx(tau)
    assert temperature(SupernetConfig(max_update=50, tau_updates=20)).updates == 20
    assert temperature(SupernetConfig(max_update=0, tau_start=1.0, tau_end=1.0))(7) == 1.0


def test_fp32_choices_under_bf16():
    net = supernet(3, double=False).bfloat16().train()
    weights = net.decoder.mixing_weights()
    assert weights.dtype == torch.float32 and net.decoder.probabilities().dtype == torch.float32
    out = net(tokens())[0]
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_cpu_bf16():
    stream = tokens()
    for train in (False, True):
        nets = [supernet(3, double=False, cpu_bf16=flag).train(train) for flag in (False, True)]
        outs = []
        for net in nets:
            torch.manual_seed(2)
            outs.append(net(stream)[0].float())
            outs[-1].sum().backward()
        assert_close(outs[1], outs[0], 0.15, 0.15)
        assert nets[1].decoder.alpha.grad.dtype == torch.float32 if train else True
