"""The span loss: value and gradient, apart from bits per character; the numbers that are logged."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.logging import metrics

from adaptive_span.criterion import SpanCriterion
from fairseq_efficient.ops.span_attention import span_width
from tests.adaptive_span.helpers import SPANS, VARIANTS, sequential_lm
from tests.stream_models import tokens
from tests.util import assert_close


def criterion() -> SpanCriterion:
    return SpanCriterion(SimpleNamespace(target_dictionary=None), sentence_avg=False)


def sample_of(model: Any, seed: int = 1) -> dict[str, Any]:
    stream = tokens(2, 13, seed=seed)
    target = stream[:, 1:].clone()
    target[1, 9:] = model.decoder.pad
    return {
        "target": target,
        "ntokens": int(target.ne(model.decoder.pad).sum()),
        "net_input": {"src_tokens": stream[:, :-1], "src_lengths": torch.tensor([12, 12])},
    }


def run(model: Any, **flags: Any) -> tuple[Any, int, dict[str, Any]]:
    one = criterion()
    one.padding_idx = model.decoder.pad
    return one(model, sample_of(model), **flags)


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_p6_trained_is_cross_entropy_and_span_loss(flags: dict[str, Any]):
    """lambda * S * mean(z), summed over layers, for each token; in training only."""
    model = sequential_lm(**flags)
    pure, size, logged = run(model)
    assert size == 21 and logged["loss"] == pure
    out, extra = model(**sample_of(model)["net_input"])
    log_probs = model.get_normalized_probs((out, extra), log_probs=True)
    target = sample_of(model)["target"]
    expected = -log_probs.gather(2, target.unsqueeze(2)).squeeze(2)[target != model.decoder.pad].sum()
    assert_close(pure.detach().double(), expected.detach().double(), 1e-5)
    model.train()
    loss, _, logged = run(model)
    assert_close(logged["loss"].double(), pure.detach().double(), 1e-9)
    penalty = 0.0
    if flags.get("adapt_span"):
        states = model.decoder.extract(sample_of(model)["net_input"]["src_tokens"])[1]
        layers = zip(model.decoder.layers, states, strict=True)
        penalty = sum(1e-3 * float(layer.self_attn.spans(x).mean()) for layer, x in layers)
        assert logged["_aux/span"].item() == pytest.approx(21 * penalty)
    assert loss.item() == pytest.approx(pure.item() + 21 * penalty)


def test_p6_gradient_of_the_span_loss_is_by_hand():
    """d/dz of lambda * S / H * sum z is lambda * S / H, times the tokens of the batch."""
    model = sequential_lm(**SPANS).train()
    pure = sequential_lm(**{**SPANS, "adapt_span_loss": 0.0}).train()
    grads = []
    for one in (model, pure):
        run(one)[0].backward()
        grads.append(torch.stack([layer.self_attn.spans.ratio.grad for layer in one.decoder.layers]))
    assert_close(grads[0] - grads[1], torch.full((3, 3), 21 * 1e-3 * 14 / 3, dtype=torch.double), 1e-9, 1e-9)


@pytest.mark.parametrize("flags", [SPANS, {**SPANS, "dynamic_span": True}], ids=["heads", "tokens"])
def test_p6_pads_have_no_span(flags: dict[str, Any]):
    """Loss, gradients and what is logged are those without them, so that parts of a batch add up."""
    found = []
    for shape in ((2, 7), (3, 12)):
        model = sequential_lm(**flags).train()
        stream = torch.full(shape, model.decoder.pad)
        stream[:2, :7] = tokens(2, 7)
        extra = model.decoder(stream)[1]
        extra["aux"]["span"].backward()
        grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        found.append([extra["aux"]["span"].detach(), torch.tensor(extra["spans"]), grads])
    assert_close(found[1], found[0], 1e-12, 1e-9)


def test_logged_numbers():
    model = sequential_lm(**SPANS).train()
    _, _, logged = run(model)
    metrics.reset()
    with metrics.aggregate() as meters:
        SpanCriterion.reduce_metrics([logged, logged])
    found = meters.get_smoothed_values()
    widths = [
        [span_width(z * 14, 4, 14) for z in layer.self_attn.spans.ratio.tolist()] for layer in model.decoder.layers
    ]
    assert [[found[f"span/{layer:02d}/{head:02d}"] for head in range(3)] for layer in range(3)] == widths
    assert found["mean_span"] == round(sum(map(sum, widths)) / 9, 1) and found["max_span"] == max(map(max, widths))
    bits = float(logged["loss"]) / 21 / math.log(2)
    assert found["bpc"] == pytest.approx(bits, abs=1e-4) and found["loss"] == pytest.approx(bits, abs=1e-3)
    assert found["aux/span"] == pytest.approx(logged["_aux/span"].item() / 21, abs=1e-6)
    metrics.reset()
    small = {name: value / 7 if name.startswith("_") else value for name, value in logged.items()} | {"ntokens": 3}
    with metrics.aggregate() as meters:  # batches count by their tokens
        SpanCriterion.reduce_metrics([logged])
        SpanCriterion.reduce_metrics([{**small, "_mean_span": 30.0}])
    mean = (logged["_mean_span"] + 30.0) / 24
    assert meters["mean_span"].avg == pytest.approx(mean) and meters["mean_span"].avg != pytest.approx(10.0)
    metrics.reset()
    with metrics.aggregate() as meters:
        SpanCriterion.reduce_metrics([run(sequential_lm())[2]])
    assert not any("span" in name for name in meters.get_smoothed_values())
