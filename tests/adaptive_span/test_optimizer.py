"""Adagrad with a clip by tensor, and which parameters weight decay leaves alone."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import optim
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf
from torch import nn

from adaptive_span.config import AdagradConfig
from adaptive_span.optimizer import AdagradWithGradClip, FairseqAdagradWithGradClip, copy_into_master_
from fairseq_efficient import compat
from fairseq_efficient.compat.mistakes import user_message
from fairseq_efficient.compat.optim import NO_DECAY
from fairseq_efficient.errors import UserError
from tests.adaptive_span.helpers import SPANS, sequential_lm
from tests.stream_models import tokens
from tests.util import assert_close

compat.apply()


def parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,), (2, 2, 2))]


def with_gradients(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    torch.manual_seed(seed)
    for one in params:
        one.grad = torch.randn_like(one) * scale


def by_hand(params: list[Any], sums: list[Any], lr: float, clip: float, decay: float) -> None:
    """The published step, one tensor after the other."""
    for one, total in zip(params, sums, strict=True):
        grad = one.grad + decay * one.data
        norm = float(grad.norm())
        step = lr * clip / (norm + 1e-10) if clip > 0 and norm > clip else lr
        total += grad * grad
        one.data -= step * grad / (total.sqrt() + 1e-10)


def test_p12_numbers_of_the_paper_trail():
    """g = 2 (four of them), lr 0.1, clip 0.5: the norm is 4, the sum 4, the step 0.0125."""
    one = nn.Parameter(torch.zeros(4))
    optimizer = AdagradWithGradClip([one], lr=0.1, clip=0.5)
    one.grad = torch.full((4,), 2.0)
    optimizer.step()
    assert_close(one.data, torch.full((4,), -0.0125), 1e-8)
    assert_close(optimizer.state[one]["sum"], torch.full((4,), 4.0))


@pytest.mark.parametrize("clip", [0.0, 0.03, 1.5, 100.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_the_formula(clip: float, decay: float):
    ours, theirs = parameters(), parameters()
    optimizer, sums = AdagradWithGradClip(ours, lr=0.1, weight_decay=decay, clip=clip), [0 * p.data for p in theirs]
    for seed in range(5):
        for params in (ours, theirs):
            with_gradients(params, seed)
        optimizer.step()
        by_hand(theirs, sums, 0.1, clip, decay)
    assert_close([p.data for p in ours], [p.data for p in theirs], 1e-6)


@pytest.mark.parametrize("lr_decay", [0.0, 0.1])
def test_p12_without_clip_it_is_torchs(lr_decay: float):
    ours, theirs = parameters(), parameters()
    pair = (
        AdagradWithGradClip(ours, lr=0.1, lr_decay=lr_decay, weight_decay=0.01, initial_accumulator_value=0.2),
        torch.optim.Adagrad(theirs, lr=0.1, lr_decay=lr_decay, weight_decay=0.01, initial_accumulator_value=0.2),
    )
    for seed in range(4):
        for params, optimizer in zip((ours, theirs), pair, strict=True):
            with_gradients(params, seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    large = AdagradWithGradClip(other := parameters(), 0.1, lr_decay, 0.01, 0.2, clip=1e9)
    for seed in range(4):
        with_gradients(other, seed)
        large.step()
    assert_close([p.data for p in other], [p.data for p in theirs], 1e-6)


def test_p12_all_groups_are_clipped_each_by_its_own():
    first, second = parameters(), parameters(1)
    optimizer = AdagradWithGradClip(
        [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2, "clip": 0.0, "weight_decay": 0.3}], clip=0.5
    )
    copies = [copy.deepcopy(first), copy.deepcopy(second)]
    sums = [[0 * p.data for p in params] for params in copies]
    for seed in range(3):
        for params in (first, second, *copies):
            with_gradients(params, seed)
        optimizer.step()
        by_hand(copies[0], sums[0], 0.1, 0.5, 0.0)
        by_hand(copies[1], sums[1], 0.2, 0.0, 0.3)
    for ours, theirs in zip((first, second), copies, strict=True):
        assert_close([p.data for p in ours], [p.data for p in theirs], 1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_p12_parameters_without_gradient_stay(clip: float):
    params = parameters()
    optimizer = AdagradWithGradClip(params, lr=0.1, clip=clip)
    with_gradients(params, 0)
    params[1].grad = None
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [False, True, False]
    for one in params:
        one.grad = None
    optimizer.step()


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_p12_resume_is_exact(clip: float):
    whole, params = parameters(), parameters()
    optimizer = AdagradWithGradClip(whole, lr=0.1, lr_decay=0.05, clip=clip)
    half = AdagradWithGradClip(params, lr=0.1, lr_decay=0.05, clip=clip)
    for seed in range(6):
        if seed == 3:
            state, weights = copy.deepcopy(half.state_dict()), [p.detach().clone() for p in params]
            params = [nn.Parameter(one) for one in weights]
            half = AdagradWithGradClip(params, lr=7.0, clip=99.0)
            half.load_state_dict(state)
        for some, one in ((whole, optimizer), (params, half)):
            with_gradients(some, seed)
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


def test_p12_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = AdagradWithGradClip(table.parameters(), clip=0.5)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="no sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("clip", [-1.0, float("nan"), float("inf")])
def test_a_wrong_clip_is_refused(clip: float):
    with pytest.raises(ValueError, match="clip"):
        AdagradWithGradClip(parameters(), clip=clip)
    with pytest.raises(UserError, match="--adagrad-clip"):
        FairseqAdagradWithGradClip(AdagradConfig(adagrad_clip=clip, lr=[0.1]), parameters())


def test_no_step_asks_the_device(monkeypatch: pytest.MonkeyPatch):
    params = parameters()
    optimizer = AdagradWithGradClip(params, lr=0.1, clip=0.5)
    with_gradients(params, 0)

    def asked(*_: Any) -> None:
        raise AssertionError("a number was asked for")

    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    optimizer.step()


def test_p12_warm_up_is_linear_and_starts_at_its_first_part():
    """``lr * min(1, step / W)`` by ``--lr-scheduler fixed``: the update numbered 0 there is step 1."""
    optimizer = build("adagrad_with_grad_clip", parameters(), adagrad_clip=0.03)
    cfg = OmegaConf.create({"_name": "fixed", "lr": [0.1], "warmup_updates": 4, "force_anneal": None, "lr_shrink": 0.1})
    schedule = build_lr_scheduler(cfg, optimizer)
    schedule.step_begin_epoch(1)
    rates = []
    for step in range(6):
        schedule.step_update(step)
        rates.append(optimizer.get_lr())
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


# --- fairseq's wrappers -----------------------------------------------------------------------------------------------


def build(name: str, params: Any, **flags: Any) -> Any:
    values = {"_name": name, "lr": [0.1], "weight_decay": 0.5, **flags}
    return optim.build_optimizer(OmegaConf.create(values), list(params))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("adagrad_with_grad_clip", {"adagrad_clip": 0.03}),
        ("adagrad_with_grad_clip", {"adagrad_clip": 0.0}),
        ("adam", {"adam_betas": "(0.9, 0.99)", "adam_eps": 1e-8, "fp16_adam_stats": False, "tpu": False}),
    ],
)
def test_weight_decay_leaves_spans_alone(name: str, flags: dict[str, Any]):
    model = sequential_lm(double=False, **SPANS)
    optimizer = build(name, model.parameters(), **flags)
    found = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    for key, one in model.named_parameters():
        assert found.pop(id(one)) == (0.0 if "spans" in key else 0.5)
        one.grad = torch.zeros_like(one)
    assert not found
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    optimizer.set_lr(0.01)
    optimizer.step()
    for key, one in model.named_parameters():
        assert torch.equal(one, before[key]) == ("spans" in key or not before[key].any())
    other = build(name, sequential_lm(double=False, **SPANS).parameters(), **flags)
    other.load_state_dict(optimizer.state_dict())
    assert other.get_lr() == 0.01


def test_weight_decay_of_other_models_is_as_it_was():
    optimizer = build("adagrad_with_grad_clip", parameters(), adagrad_clip=0.0)
    assert len(optimizer.param_groups) == 1


def half_precision(model: Any, half: str) -> Any:
    cfg = OmegaConf.create(
        {
            "common": {
                half: True,
                "fp16_no_flatten_grads": True,
                "fp16_scale_window": 1,
                "fp16_init_scale": 1,
                "fp16_scale_tolerance": 0.0,
                "threshold_loss_scale": None,
                "min_loss_scale": 1e-4,
            },
            "optimizer": {"_name": "adagrad_with_grad_clip", "lr": [0.7], "weight_decay": 0.5, "adagrad_clip": 0.0},
        }
    )
    return optim.FP16Optimizer.build_optimizer(cfg, list(model.parameters()))


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_p7_spans_stay_in_range_and_in_full_precision_under(half: str):
    """Steps of 0.7 push spans out of [0, 1]: they are brought back, in the fp32 copies too."""
    model = sequential_lm(double=False, attn_span=8191, **SPANS).train()
    model = model.bfloat16() if half == "bf16" else model.half()
    spans = [layer.self_attn.spans.ratio for layer in model.decoder.layers]
    assert all(one.dtype == torch.float32 for one in spans)
    assert model.decoder.positions.dtype == (torch.bfloat16 if half == "bf16" else torch.float16)
    optimizer = half_precision(model, half)
    for seed in range(4):
        optimizer.zero_grad()
        out, extra = model.decoder(tokens(2, 30, seed=seed))
        optimizer.backward(out.float().square().mean() + extra["aux"]["span"])
        optimizer.step()
        assert any(bool((one < 0).any() or (one > 1).any()) for one in spans) or seed
        model.after_update(optimizer)
        for one in spans:
            assert one.dtype == torch.float32 and ((one >= 0) & (one <= 1)).all()
            masters = [m for p, m in zip(optimizer.fp16_params, optimizer.fp32_params, strict=True) if p is one]
            assert torch.equal(masters[0], one)
            assert masters[0].param_group == NO_DECAY
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.5}


def test_spans_keep_their_precision_when_a_model_is_converted():
    model = sequential_lm(double=False, **SPANS)
    ratio = model.decoder.layers[0].self_attn.spans.ratio
    with torch.no_grad():
        ratio.fill_(1 / 3)
    model.half()
    assert torch.equal(ratio, torch.full_like(ratio, 1 / 3)) and ratio.dtype == torch.float32
    model.float().double()
    assert model.decoder.layers[0].self_attn.spans.ratio.dtype == torch.float64


def test_flat_copies_are_found_too():
    one, two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((2,), 0.5))
    flat = nn.Parameter(torch.arange(5.0))
    wrapper = SimpleNamespace(
        fp16_params=[one, two], fp32_params={0: flat}, has_flat_params=True, param_groups=[{"weight_decay": 0.0}]
    )
    copy_into_master_(wrapper, two)
    assert flat.tolist() == [0, 1, 2, 0.5, 0.5]
    wrapper.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(UserError, match="--fp16-no-flatten-grads"):
        copy_into_master_(wrapper, two)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_one_flat_tensor_for_all_is_refused(clip: float, monkeypatch: pytest.MonkeyPatch):
    """--fp16 without --fp16-no-flatten-grads; a model of one vector is none."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    cfg = OmegaConf.create({
        "common": {"fp16": True, "fp16_no_flatten_grads": False, "tpu": False, "bf16": False, "fp16_init_scale": 4,
                   "on_cpu_convert_precision": False, "fp16_scale_window": 2, "fp16_scale_tolerance": 0.0,
                   "min_loss_scale": 1e-4, "threshold_loss_scale": None, "model_parallel_size": 1},
        "optimizer": {"_name": "adagrad_with_grad_clip", "adagrad_clip": clip, "weight_decay": 0.0, "lr": [0.1]},
        "optimization": {"update_freq": [1]}, "distributed_training": {"distributed_world_size": 1},
    })  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        FP16Optimizer.build_optimizer(cfg, [nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(4))])
    assert "--fp16-no-flatten-grads" in str(user_message(caught.value))
    single = nn.Parameter(torch.zeros(4))
    optimizer = FairseqAdagradWithGradClip(AdagradConfig(adagrad_clip=clip, lr=[0.1]), [single])
    single.grad = torch.full((4,), 2.0)
    optimizer.step()
    assert_close(single.data, torch.full((4,), -0.1 * min(1, clip / 4 if clip else 1)))


def test_groups_and_states_that_come_later():
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    ours = AdagradWithGradClip([params[0]], lr=0.1, clip=0.5)
    ours.add_param_group({"params": [params[1]]})
    for one in params:
        one.grad = torch.full((3,), 2.0)
    ours.step()
    assert torch.equal(params[0], params[1]) and params[0].any()
    other = torch.optim.Adagrad([params[0]], lr=0.1)
    mine = AdagradWithGradClip([params[0]], lr=0.1, clip=0.5)
    mine.load_state_dict(other.state_dict())
    mine.step()
    assert mine.param_groups[0]["clip"] == 0.5


def test_a_group_may_be_a_dict():
    one = nn.Parameter(torch.zeros(4))
    FairseqAdagradWithGradClip(AdagradConfig(adagrad_clip=0.5, lr=[0.1]), [{"params": [one]}])
