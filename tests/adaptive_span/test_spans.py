"""Spans of heads, layers and tokens: ranges, gradients, sizes of models."""

from typing import Any

import pytest
import torch

from adaptive_span.config import ARCHITECTURES, SequentialConfig
from adaptive_span.decoder import SequentialDecoder
from adaptive_span.model import decoder_options
from adaptive_span.spans import SpanOptions, Spans
from fairseq_efficient.compat.optim import NO_DECAY
from fairseq_efficient.originals import BareTypes
from tests.adaptive_span.helpers import SPANS, sequential_lm
from tests.stream_models import tokens
from tests.util import assert_close

MILLIONS = {  # of the paper and the published README
    "enwik8_small": (205, 6.48), "enwik8": (205, 38.54), "enwik8_large": (205, 208.91),
    "enwik8_pers_small": (205, 38.50), "enwik8_pers": (205, 114.02), "wiki103_pers": (267_735, 132.49),
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_p13_parameter_counts_are_the_published_ones(name: str):
    types, millions = MILLIONS[name]
    cfg = SequentialConfig(**ARCHITECTURES[f"sequential_lm_{name}"])
    bare = BareTypes(types)
    bare.pad = lambda: 1  # type: ignore[method-assign]
    with torch.device("meta"):
        decoder = SequentialDecoder(bare, decoder_options(cfg, bare))
    count = sum(one.numel() for one in decoder.parameters())
    assert round(count / 1e6, 2) == millions


def test_p11_persistent_memory_takes_the_place_of_the_feed_forward():
    """2 N d parameters a layer; no feed-forward, no second LayerNorm."""
    with_ffn, without = sequential_lm(), sequential_lm(pers_mem_size=5)
    layer = without.decoder.layers[0]
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    assert names == {"self_attn", "self_attn_layer_norm"}
    persistent = layer.self_attn.persistent_key.numel() + layer.self_attn.persistent_value.numel()
    assert persistent == 2 * 5 * 12
    ffn = 2 * 12 * 20 + 20 + 12 + 2 * 12
    difference = sum(p.numel() for p in with_ffn.parameters()) - sum(p.numel() for p in without.parameters())
    assert difference == 3 * (ffn - persistent)


def test_p11_persistent_vectors_are_scaled():
    """Keys ~ N(0, 1/d) times sqrt(d), values ~ N(0, 1/N) times sqrt(N): of size one at first."""
    attention = sequential_lm(pers_mem_size=4000).decoder.layers[0].self_attn
    assert attention.persistent_key.std().item() == pytest.approx(4**-0.5, rel=0.05)
    assert attention.persistent_value.std().item() == pytest.approx(4000**-0.5, rel=0.05)
    keys, values = attention.persistent()
    assert keys.std().item() == pytest.approx(1, rel=0.05) and values.std().item() == pytest.approx(1, rel=0.05)


def test_p11_persistent_vectors_with_next_to_no_span_are_finite():
    model = sequential_lm(pers_mem_size=5, ragged=False, **{**SPANS, "adapt_span_ramp": 1})
    out = model(tokens())[0]
    assert torch.isfinite(out).all()


def test_shapes_of_spans():
    for by_layer, count in ((False, 3), (True, 1)):
        spans = Spans(SpanOptions(20, 4, 0.5, by_layer), 3, 8)
        assert_close(spans(torch.zeros(1, 2, 8)).detach(), torch.full((count,), 10.0))
        assert spans.widths([10.0] * count) == [14] * 3
        predicted = Spans(SpanOptions(20, 4, 0.5, by_layer, by_token=True), 3, 8)
        assert_close(predicted(torch.randn(2, 5, 8)).detach(), torch.full((2, 3, 5), 10.0))
    assert all(one.param_group == NO_DECAY for one in (*spans.parameters(), *predicted.parameters()))
    low = Spans(SpanOptions(1000, 32, 0.0, by_token=True), 3, 8)
    assert 0 < float(low(torch.zeros(1, 1, 8))[0, 0, 0].detach()) < 33


def test_p7_clamping():
    spans = Spans(SpanOptions(20), 3, 8)
    with torch.no_grad():
        spans.ratio.copy_(torch.tensor([-0.5, 0.25, 1.5]))
    spans.clamp_()
    assert spans.ratio.tolist() == [0.0, 0.25, 1.0]


def test_spans_come_back_before_the_next_update_whatever_the_task():
    model = sequential_lm(**SPANS)
    with torch.no_grad():
        model.decoder.layers[1].self_attn.spans.ratio.fill_(3.0)
    model.set_num_updates(5)
    assert model.decoder.layers[1].self_attn.spans.ratio.tolist() == [1.0] * 3


@pytest.mark.parametrize("flags", [{}, {"adapt_span_cache": True}, {"adapt_span_mask": "orig"}], ids=str)
def test_spans_out_of_range_count_as_the_ends(flags: dict[str, Any]):
    """In the outputs and in the price, where nobody has clamped them; one that is not a number reaches the loss."""
    model, stream = sequential_lm(**SPANS, **flags), tokens(2, 30)
    ratio = model.decoder.layers[1].self_attn.spans.ratio
    found = []
    for values in ((0.0, 0.5, 1.0), (-0.5, 0.5, 1.5)):
        with torch.no_grad():
            ratio.copy_(torch.tensor(values))
        logits, extra = model(stream)
        found.append((logits.detach(), extra["aux"]["span"].detach()))
    assert_close(found[1], found[0], 0, 0)
    with torch.no_grad():
        ratio[0] = torch.nan
    assert not torch.isfinite(model(stream)[0]).all()


def losses_and_gradients(model: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(tokens(2, 30))[0].square().mean()
    loss.backward()
    return loss.item(), torch.stack([layer.self_attn.spans.ratio.grad for layer in model.decoder.layers])


def test_p8_gradients_of_spans_at_the_ends_and_between():
    """The language model says nothing at z = 1, something at z = 0; finite differences between."""
    model = sequential_lm(**SPANS, decoder_layers=1)
    ratio = model.decoder.layers[0].self_attn.spans.ratio
    with torch.no_grad():
        ratio.copy_(torch.tensor([1.0, 0.0, 0.37]))
    _, grads = losses_and_gradients(model)
    assert grads[0, 0] == 0 and grads[0, 1] != 0
    values = []
    for move in (1e-5, -1e-5):
        with torch.no_grad():
            ratio[2] = 0.37 + move
        values.append(losses_and_gradients(model)[0])
    assert grads[0, 2].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_p9_heads_are_independent_and_layers_move_together():
    """A head's span changes that head's output only; one span of a layer changes all heads."""
    x, memory = torch.randn(2, 9, 12).double(), torch.randn(2, 14, 12).double()

    def heads(flags: dict[str, Any], change: int | None) -> torch.Tensor:
        model = sequential_lm(**flags)
        attention = model.decoder.layers[0].self_attn
        if change is not None:
            with torch.no_grad():
                attention.spans.ratio[change] = 0.2
        known = (attention.spans.ratio.detach() * 14).tolist()
        seen: list[torch.Tensor] = []
        attention.out_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        attention(x, model.decoder.positions, memory, known)
        return seen[0].unflatten(-1, (3, 4))

    def differ(flags: dict[str, Any], change: int) -> torch.Tensor:
        gap = heads(flags, change) - heads(flags, None)
        return gap.abs().amax((0, 1, 3)) > 1e-9  # heads in other groups round differently

    for head in range(3):
        changed = differ(SPANS, head)
        assert changed.tolist() == [one == head for one in range(3)]
    layer = {**SPANS, "adapt_span_layer": True}
    assert differ(layer, 0).all()
