"""Adaptive input and softmax with biases and a projection before the head: normalised, tied, exact losses."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from torch.nn.functional import linear, log_softmax

from fairseq_efficient.errors import UserError
from tests.adaptive_span.helpers import ADAPTIVE, TIED, sequential_lm
from tests.stream_models import task, tokens
from tests.util import assert_close

KINDS = [ADAPTIVE, TIED, {**TIED, "tie_adaptive_proj": False}, {**ADAPTIVE, "adaptive_softmax_factor": 1.0}]
EVERY = torch.arange(34).view(2, 17)  # each type is a target once, specials too
kinds = pytest.mark.parametrize("flags", KINDS, ids=str)


def noisy(flags: dict[str, Any]) -> Any:
    """A model whose biases are not zero."""
    model = sequential_lm(**flags)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "adaptive_softmax" in name and "bias" in name:
                one.normal_()
    return model


@kinds
def test_p14_rows_are_normalised_whatever_the_target(flags: dict[str, Any]):
    model = noisy(flags)
    net_output = model(tokens(2, 17))
    for sample in (None, {"target": EVERY}):
        found = model.get_normalized_probs(net_output, log_probs=True, sample=sample)
        assert found.shape == (2, 17, 34)
        assert_close(found.exp().sum(-1), torch.ones(2, 17, dtype=torch.float64), 1e-12)


@kinds
def test_losses_are_the_log_probabilities(flags: dict[str, Any]):
    """Ours and fairseq's own criterion, for every type; pads count nothing."""
    model = noisy(flags)
    net_output = model(tokens(2, 17))
    every = -model.get_normalized_probs(net_output, log_probs=True).gather(2, EVERY.unsqueeze(2)).squeeze(2)
    every = every.masked_fill(model.decoder.pad == EVERY, 0)
    softmax = model.decoder.adaptive_softmax
    assert_close(softmax.loss(net_output[0], EVERY), every.sum(), 1e-9)
    assert_close(softmax.loss(net_output[0], EVERY, reduce=False), every.flatten(), 1e-9)
    sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": EVERY}
    assert_close(AdaptiveLoss(task(), False)(model, sample)[0].squeeze(), every.sum(), 1e-9)


@pytest.mark.parametrize("flags", KINDS[:2], ids=str)
def test_cpu_bf16_probabilities(flags: dict[str, Any]):
    """As fairseq-eval-lm asks for them: weights rounded for inference, outside of the model's forward."""
    found = []
    for half in (False, True):
        model = sequential_lm(double=False, cpu_bf16=half, **flags).eval()
        model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=1, print_alignment=None)))
        net_output = model(tokens(2, 17))
        found.append(model.get_normalized_probs(net_output, log_probs=True).detach())
        loss = model.decoder.adaptive_softmax.loss(net_output[0], EVERY, reduce=False)
        sample = {"net_input": {"src_tokens": tokens(2, 17)}, "target": EVERY}
        assert found[-1].dtype == loss.dtype == torch.float32
        assert_close(AdaptiveLoss(task(), False)(model, sample)[0].squeeze(), loss.sum(), 1e-3)
    assert_close(found[1].exp().sum(-1), torch.ones(2, 17), 1e-5)
    assert_close(found[1], found[0], 0.1, 0.1)
    assert not torch.equal(found[1], found[0])


def test_the_formula():
    """A head of band 0 and clusters, both behind its projection; a tail's types count with its cluster."""
    softmax = noisy(ADAPTIVE).decoder.adaptive_softmax
    states = torch.randn(1, 5, 12, dtype=torch.double)
    words, clusters = softmax.head.words, softmax.head.class_proj
    y = states @ words.proj
    head = torch.cat([linear(y, words.weight, words.bias), linear(y, clusters.weight, clusters.bias)], -1)
    parts = [log_softmax(head, -1)[..., :9]]
    for number, tail in enumerate(softmax.tail):
        logits = linear(states @ tail.proj, tail.weight, tail.bias)
        parts.append(log_softmax(logits, -1) + log_softmax(head, -1)[..., 9 + number, None])
    assert [tuple(tail.weight.shape) for tail in softmax.tail] == [(11, 6), (14, 3)]
    assert_close(softmax.get_log_prob(states), torch.cat(parts, -1), 1e-12)


def test_p14_tied_weights_are_the_same_tensors():
    model = sequential_lm(**TIED)
    adaptive, softmax = model.decoder.embed_tokens, model.decoder.adaptive_softmax
    for band, out in enumerate([softmax.head.words, *softmax.tail]):
        words, proj = adaptive.weights_for_band(band)
        assert out.weight is words and out.proj is proj
    apart = sequential_lm(**{**TIED, "tie_adaptive_proj": False}).decoder
    assert apart.adaptive_softmax.tail[0].weight is apart.embed_tokens.weights_for_band(1)[0]
    assert apart.adaptive_softmax.tail[0].proj is not apart.embed_tokens.weights_for_band(1)[1]


def test_embeddings_are_scaled_only_if_they_are_adaptive():
    stream = tokens(1, 5)
    for flags, scale in (({}, 1.0), (TIED, math.sqrt(12))):
        decoder = sequential_lm(**flags).decoder
        assert_close(decoder.extract(stream)[1][0], decoder.embed_tokens(stream) * scale, 1e-12)


@kinds
def test_tails_without_target_get_a_gradient_of_zero(flags: dict[str, Any]):
    softmax = noisy(flags).decoder.adaptive_softmax
    states = torch.randn(1, 2, 12, dtype=torch.double)
    softmax.loss(states, torch.tensor([[5, 6]])).backward()
    for tail in softmax.tail:
        assert tail.bias.grad is not None and not tail.bias.grad.any()
    assert softmax.head.words.bias.grad.any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adaptive_softmax_cutoff": "9,9"}, "expected rising ids"),
        ({"adaptive_softmax_cutoff": "1,9"}, "the first must be beyond the special symbols"),
        ({"adaptive_softmax_cutoff": "9,99"}, "99 is beyond the dictionary, which has 34 types"),
        ({"adaptive_input": True}, "--adaptive-input needs"),
        ({"adaptive_input_cutoff": "9"}, "--adaptive-input-cutoff needs --adaptive-input"),
        ({**ADAPTIVE, "tie_adaptive_weights": True}, "--tie-adaptive-weights needs adaptive softmax and input"),
        ({**ADAPTIVE, "tie_adaptive_proj": True}, "--tie-adaptive-proj needs --tie-adaptive-weights"),
    ],
)
def test_wrong_flags_are_one_line(flags: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        sequential_lm(**flags)


def test_a_dictionary_without_specials_has_no_pad_to_be_beyond_of():
    from fairseq_efficient.flags import parse_cutoffs

    assert parse_cutoffs("x", "3,5", 9, pad=9) == [3, 5]
