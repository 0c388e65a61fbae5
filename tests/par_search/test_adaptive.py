"""Adaptive softmax and input: normalised rows, exact losses by both criteria, cutoffs as the flags give them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import parse_cutoffs
from fairseq_efficient.modules.adaptive_softmax import AdaptiveOptions, CleanAdaptiveInput, ExactAdaptiveSoftmax
from tests.par_search.helpers import ADAPTIVE, TIED, par_lm
from tests.stream_models import task, tokens
from tests.util import assert_close

KINDS = [ADAPTIVE, TIED, {**TIED, "tie_adaptive_proj": True}, {**ADAPTIVE, "adaptive_softmax_factor": 1.0}]
EVERY = torch.arange(34).view(2, 17)  # each type is a target once, specials too


def stock_loss(model: Any, sample: dict[str, Any]) -> Tensor:
    return AdaptiveLoss(task(), False)(model, sample)[0]


@pytest.mark.parametrize("flags", KINDS, ids=str)
def test_rows_are_normalised_whatever_the_target(flags: dict[str, Any]):
    """Probabilities, not logits, with and without targets (property 10; bug 13)."""
    model = par_lm(**flags)
    net_output = model(tokens(2, 17))
    for sample in (None, {"target": EVERY}):
        for log in (True, False):
            found = model.get_normalized_probs(net_output, log_probs=log, sample=sample)
            found = found.exp() if log else found
            assert found.shape == (2, 17, 34)
            assert_close(found.sum(-1), torch.ones(2, 17, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("flags", KINDS, ids=str)
def test_losses_are_the_log_probabilities(flags: dict[str, Any]):
    """Ours and fairseq's own criterion, for every type, also the one next to a tail's first; pads count nothing
    (property 10)."""
    model = par_lm(**flags)
    net_output = model(tokens(2, 17))
    every = -model.get_normalized_probs(net_output, log_probs=True).gather(2, EVERY.unsqueeze(2)).squeeze(2)
    every = every.masked_fill(model.decoder.pad == EVERY, 0)
    softmax = model.decoder.adaptive_softmax
    assert_close(softmax.loss(net_output[0], EVERY, 1), every.sum(), 1e-9)
    assert_close(softmax.loss(net_output[0], EVERY, reduce=False), every.flatten(), 1e-9)
    sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": EVERY}
    assert_close(stock_loss(model, sample).squeeze(), every.sum(), 1e-9)


@pytest.mark.parametrize("flags", KINDS, ids=str)
@pytest.mark.parametrize("targets", [[5, 6], [5, 12], [25, 30], [1, 1]], ids=str)
def test_gradients_where_a_tail_has_no_target(flags: dict[str, Any], targets: list[int]):
    """Those of the full log-probabilities, 0 and not None (property 10)."""
    model = par_lm(**flags)
    target = torch.tensor([targets])
    softmax = model.decoder.adaptive_softmax
    states = torch.randn(1, 2, 16, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(softmax.loss(states, target), [states, *softmax.parameters()], allow_unused=True)
    log_probs = softmax.get_log_prob(states)
    expected = -log_probs.gather(2, target.unsqueeze(2)).squeeze(2).masked_fill(target == 1, 0).sum()
    others = torch.autograd.grad(expected, [states, *softmax.parameters()])
    for one, other in zip(found, others, strict=True):
        assert one is not None
        assert_close(one, other, 1e-9)


@pytest.mark.parametrize("targets", [[5, 6], [5, 12], [25, 30]], ids=str)
def test_stocks_criterion_gives_every_parameter_a_gradient(targets: list[int]):
    """Those of a tail without a target are 0, not None, which DDP would not wait for."""
    model = par_lm(**ADAPTIVE).train()
    sample = {"net_input": {"src_tokens": tokens(1, 2)}, "target": torch.tensor([targets])}
    stock_loss(model, sample).squeeze().backward()
    grads = {name: one.grad for name, one in model.decoder.adaptive_softmax.named_parameters()}
    assert all(one is not None for one in grads.values()), [name for name, one in grads.items() if one is None]


def test_a_tail_of_one_type():
    model = par_lm(adaptive_softmax_cutoff="9,10", adaptive_softmax_factor=2.0)
    sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": EVERY}
    log_probs = model.get_normalized_probs(model(tokens(2, 17)), log_probs=True)
    every = -log_probs.gather(2, EVERY.unsqueeze(2)).squeeze(2).masked_fill(EVERY == 1, 0)
    assert_close(stock_loss(model, sample).squeeze(), every.sum(), 1e-9)


def test_half_precision_is_normalised_in_fp32():
    model = par_lm(double=False, **ADAPTIVE).bfloat16()
    net_output = model(tokens(2, 17))
    found = model.get_normalized_probs(net_output, log_probs=True)
    assert found.dtype == torch.float32 and net_output[0].dtype == torch.bfloat16
    assert_close(found.exp().sum(-1), torch.ones(2, 17), 1e-5)
    assert model.decoder.adaptive_softmax.loss(net_output[0], EVERY).dtype == torch.float32


def test_tied_embeddings_are_shared():
    model = par_lm(**TIED)
    softmax, inputs = model.decoder.adaptive_softmax, model.decoder.embed_tokens
    assert softmax.head.word_proj.weight is inputs.embeddings[0][0].weight
    assert softmax.tail[1][2].weight is inputs.embeddings[2][0].weight
    model = par_lm(share_decoder_input_output_embed=True)
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight


def test_inputs_of_all_bands():
    model = par_lm(adaptive_input=True, adaptive_input_cutoff="8,16", adaptive_input_factor=4.0)
    inputs = model.decoder.embed_tokens
    assert [one[0].weight.shape for one in inputs.embeddings] == [(8, 16), (8, 4), (18, 1)]
    out = inputs(torch.arange(34))
    assert_close(out[20], inputs.embeddings[2][1](inputs.embeddings[2][0].weight[4]), 1e-12)


@pytest.mark.parametrize("ids", [EVERY, EVERY[:, :6], torch.tensor([[30, 9], [9, 1]])], ids=["all", "head", "some"])
def test_inputs_are_those_of_fairseqs_own(ids: Tensor):
    """Outputs, and gradients of the same weights; where stock gives none, zeros."""
    ours = CleanAdaptiveInput(34, 1, 16, 2.0, (8, 16)).double()
    stock = AdaptiveInput(34, 1, 16, 2.0, 16, [8, 16]).double()
    stock.load_state_dict(ours.state_dict())
    outs = [one(ids) for one in (ours, stock)]
    assert_close(outs[0], outs[1], 1e-12)
    for out in outs:
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    for one, other in zip(ours.parameters(), stock.parameters(), strict=True):
        assert one.grad is not None
        assert_close(one.grad, torch.zeros_like(one) if other.grad is None else other.grad, 1e-12)
    assert not ours(torch.tensor([[1]])).any()


def test_inputs_of_a_band_of_one_type():
    inputs = CleanAdaptiveInput(12, 1, 8, 2.0, (8, 9))
    assert [one[0].weight.shape for one in inputs.embeddings] == [(8, 8), (1, 4), (3, 2)]
    assert inputs(torch.arange(12)).abs().sum(-1).gt(0).sum() == 11  # the pad is zero


@pytest.mark.parametrize("flags", [TIED, {**TIED, "tie_adaptive_proj": True}], ids=str)
def test_cpu_bf16_with_adaptive_inputs(flags: dict[str, Any]):
    """In training and with weights rounded for inference; the first states are fp32 like those of plain embeddings."""
    models = [par_lm("afa", double=False, cpu_bf16=flag, **flags) for flag in (False, True)]
    losses = []
    for model in models:
        model.train()
        loss = model.decoder.nll(model(tokens(2, 17))[0], EVERY)
        loss.backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())
        losses.append(loss.detach() / 33)
    assert_close(losses[1], losses[0], 0.05)
    model = models[1].eval()
    before = model(tokens(2, 17))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.decoder.embed_tokens(EVERY).dtype == torch.float32
    model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=1, print_alignment=None)))
    assert_close(model(tokens(2, 17))[0].float(), before.float(), 0.05, 0.05)


@pytest.mark.parametrize("flags", [{"adaptive_softmax_cutoff": "8,16"}, TIED], ids=str)
def test_cpu_bf16_probabilities(flags: dict[str, Any]):
    """As fairseq-eval-lm asks for them: weights rounded for inference, outside of the model's forward."""
    found = []
    for half in (False, True):
        model = par_lm("afa", double=False, cpu_bf16=half, **flags).eval()
        model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=1, print_alignment=None)))
        net_output = model(tokens(2, 17))
        found.append(model.get_normalized_probs(net_output, log_probs=True).detach())
        loss = model.decoder.nll(net_output[0], EVERY, reduce=False)
        assert found[-1].dtype == loss.dtype == torch.float32
        assert_close(
            loss, -found[-1].gather(2, EVERY.unsqueeze(2)).flatten().masked_fill(EVERY.flatten() == 1, 0), 1e-5
        )
    assert_close(found[1].exp().sum(-1), torch.ones(2, 17), 1e-5)
    assert_close(found[1], found[0], 0.1, 0.1)
    assert not torch.equal(found[1], found[0])


def test_bands_are_never_without_a_channel():
    """As the cost model of the optimal cutoffs has it."""
    narrow = {"adaptive_softmax_cutoff": "9,20,30", "adaptive_softmax_factor": 4.0}
    tied = {"adaptive_input": True, "adaptive_input_factor": 4.0, "tie_adaptive_weights": True}
    for model in (par_lm(**narrow, **tied), par_lm(**narrow)):
        assert [tail[2].weight.size(1) for tail in model.decoder.adaptive_softmax.tail] == [4, 1, 1]
    probs = model.get_normalized_probs(model(tokens(2, 7)), log_probs=False)
    assert_close(probs.sum(-1), torch.ones(2, 7, dtype=probs.dtype))


def test_cutoffs_are_read():
    assert parse_cutoffs("x", "250, 2500", 5000, 1) == [250, 2500]
    assert parse_cutoffs("x", None, 5000, 1) == [] == parse_cutoffs("x", " ", 5000, 1)


def test_ends_of_another_form_are_never_tied():
    """Nor by a decoder that reads no flags: the softmax asks a plain embedding for bands, which it has not."""
    for options in ({"cutoffs": (9, 20)}, {"input_cutoffs": (9, 20)}, {"cutoffs": (9,), "input_cutoffs": (9, 20)}):
        with pytest.raises(UserError, match="--tie-adaptive-weights needs adaptive softmax and input of the same"):
            AdaptiveOptions(**options, tie_weights=True)
    assert AdaptiveOptions(factor=2.0, tie_weights=True).tie_weights  # of plain ends


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adaptive_softmax_cutoff": "20,9"}, "--adaptive-softmax-cutoff 20,9: expected rising ids"),
        ({"adaptive_softmax_cutoff": "9,9"}, "expected rising ids"),
        ({"adaptive_softmax_cutoff": "9,x"}, "expected rising ids"),
        ({"adaptive_softmax_cutoff": ","}, "expected rising ids"),
        ({"adaptive_softmax_cutoff": "9.5"}, "expected rising ids"),
        ({"adaptive_softmax_cutoff": "1"}, "must be beyond the special symbols"),
        ({"adaptive_softmax_cutoff": "9,34"}, "34 is beyond the dictionary, which has 34 types"),
        ({"adaptive_softmax_cutoff": "9,20", "adaptive_softmax_factor": 0.5}, "--adaptive-softmax-factor 0.5"),
        ({"adaptive_softmax_cutoff": "9,20,30", "adaptive_softmax_factor": math.nan}, "--adaptive-softmax-factor nan"),
        ({"adaptive_input": True}, "--adaptive-input needs --adaptive-input-cutoff"),
        ({"adaptive_input_cutoff": "9"}, "--adaptive-input-cutoff needs --adaptive-input"),
        ({**ADAPTIVE, "tie_adaptive_weights": True}, "--tie-adaptive-weights needs adaptive softmax and input"),
        ({"tie_adaptive_weights": True}, "--tie-adaptive-weights needs --adaptive-softmax-cutoff"),
        ({**TIED, "adaptive_softmax_cutoff": None, "adaptive_input_cutoff": "9,20"}, "--tie-adaptive-weights needs"),
        ({**TIED, "adaptive_input_factor": 4.0}, "of the same cutoffs and factor"),
        ({**TIED, "adaptive_input_cutoff": "9,21"}, "of the same cutoffs and factor"),
        ({**TIED, "tie_adaptive_weights": False, "tie_adaptive_proj": True}, "--tie-adaptive-proj needs"),
        ({**ADAPTIVE, "share_decoder_input_output_embed": True}, "is for a full softmax"),
    ],
    ids=str,
)
def test_mistakes_name_the_flag(flags: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        par_lm(**flags)


def test_the_stock_criterion_takes_our_model():
    """It looks for ``decoder.adaptive_softmax`` and counts targets without pads."""
    model = par_lm(**ADAPTIVE)
    target = EVERY.clone()
    target[1, 9:] = 1
    sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": target}
    loss, size, log = AdaptiveLoss(SimpleNamespace(target_dictionary=task().target_dictionary), False)(model, sample)
    assert size == log["ntokens"] == 17 - 1 + 9 and loss.requires_grad


@pytest.mark.parametrize("flags", KINDS, ids=str)
def test_what_is_mended_in_fairseqs_own(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """With fairseq's forward its criterion forgets, of each tail, the type whose place there is the number of the pad;
    and its log-probabilities of a target leave the rows of the others unnormalised."""
    model = par_lm(**flags)
    softmax = model.decoder.adaptive_softmax
    net_output = model(tokens(2, 17))
    sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": EVERY}
    ours = stock_loss(model, sample).squeeze()
    monkeypatch.setattr(ExactAdaptiveSoftmax, "forward", AdaptiveSoftmax.forward)
    states = net_output[0].reshape(-1, 16)
    forgotten = []
    for number, tail in enumerate(softmax.tail):
        word = softmax.cutoff[number] + model.decoder.pad
        local = tail(states[word : word + 1]).log_softmax(-1)  # in EVERY a type stands at the place of its number
        forgotten.append(-local[0, model.decoder.pad])
    assert len(forgotten) == 2 and all(one > 0.1 for one in forgotten)
    assert_close(ours - stock_loss(model, sample).squeeze(), torch.stack(forgotten).sum(), 1e-9)
    rows = AdaptiveSoftmax.get_log_prob(softmax, net_output[0], EVERY).exp().sum(-1)
    assert (rows - 1).abs().max() > 0.1
