"""The language model: formulas, causality, blocks, memory, padding, decoding."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_span.attention import SpanSelfAttention
from fairseq_efficient.errors import UserError
from fairseq_efficient.ops.span_attention.published import published_columns
from tests.adaptive_span.helpers import SPANS, VARIANTS, by_formula, sequential_lm
from tests.stream_models import blockwise, tokens
from tests.util import assert_close

variants = pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
EXACT = {name: flags for name, flags in VARIANTS.items() if name not in ("zeros", "orig", "adaptive", "tied")}
exact = pytest.mark.parametrize("flags", EXACT.values(), ids=EXACT.keys())


@exact
def test_p1_outputs_are_those_of_the_formulas(flags: dict[str, Any]):
    model, stream = sequential_lm(**flags), tokens(2, 17)
    assert_close(model(stream)[0], by_formula(model.decoder, stream), 1e-9, 1e-9)


@variants
def test_p2_no_token_sees_itself_in_attention_or_a_later_one(flags: dict[str, Any]):
    model, stream = sequential_lm(**flags), tokens(2, 9)
    memory = model.decoder(tokens(2, 8, seed=5))[1]["memory"]
    before = model.decoder(stream, memory=memory)[0]
    for place in (3, 8):
        changed = stream.clone()
        changed[:, place] = (changed[:, place] - 4 + 7) % 30 + 4
        after = model.decoder(changed, memory=memory)[0]
        assert_close(after[:, :place], before[:, :place], 1e-12, 0)
        assert not torch.equal(after[:, place:], before[:, place:])


@variants
def test_p3_blocks_of_any_length_are_one_block(flags: dict[str, Any]):
    """Exactly so, because a layer remembers all that its heads see; blocks may be longer than spans."""
    model, stream = sequential_lm(**flags), tokens(2, 33)
    whole = model.decoder(stream)[0]
    for sizes in ([33], [1] * 33, [7, 1, 18, 7], [32, 1], [11] * 3):
        assert_close(blockwise(model, stream, sizes), whole, 1e-10, 1e-10)


def test_p3_lanes_are_independent():
    model, stream = sequential_lm(**SPANS), tokens(3, 20)
    together = blockwise(model, stream, [8, 8, 4])
    alone = torch.cat([blockwise(model, stream[row : row + 1], [8, 8, 4]) for row in range(3)])
    assert_close(together, alone, 1e-12, 1e-12)


@pytest.mark.parametrize("cache", [False, True])
def test_p10_caches_are_as_long_as_published(cache: bool):
    """min(S, S' + 64), S' by 64; and they shrink with the spans."""
    model = sequential_lm(attn_span=400, adapt_span=True, adapt_span_cache=cache)
    stream = tokens(1, 700)
    lengths = []
    for ratio in (1.0, 0.5, 0.1, 0.0):
        with torch.no_grad():
            for number, layer in enumerate(model.decoder.layers):
                layer.self_attn.spans.ratio.fill_(ratio)
                layer.self_attn.spans.ratio[0] = ratio / (number + 1)
        found = [one.size(1) for one in model.decoder(stream)[1]["memory"]]
        columns = published_columns(400 * ratio, 32, 400)
        assert found == [min(400, columns + 64) if cache else 400] * 3
        lengths.append(found[0])
    assert lengths == ([400, 336, 144, 144] if cache else [400] * 4)


def test_p4_spans_that_grow_between_blocks_see_what_is_there():
    """A cache that is shorter than a span is no zeros: the same as a window over the tokens there are."""
    model = sequential_lm(attn_span=300, adapt_span_cache=True, **SPANS)
    stream = tokens(1, 500)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.self_attn.spans.ratio.fill_(0.01)
    memory = model.decoder(stream[:, :400])[1]["memory"]
    kept = memory[0].size(1)
    assert kept == 108
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.self_attn.spans.ratio.fill_(0.9)
    out = model.decoder(stream[:, 400:], memory=memory)[0]
    assert torch.isfinite(out).all()
    padded = [torch.cat([one.new_full((1, 100, 12), 1e3), one], 1) for one in memory]
    assert not torch.equal(model.decoder(stream[:, 400:], memory=padded)[0], out)  # what stood there would be seen
    assert_close(model.decoder(stream[:, 400:], memory=[one[:, -kept:] for one in padded])[0], out, 0, 0)


@pytest.mark.parametrize("flags", [SPANS, {**SPANS, "pers_mem_size": 4}], ids=["spans", "persistent"])
def test_p4_trimming_changes_nothing(flags: dict[str, Any]):
    """Short spans with full caches and trimmed ones, also with extreme scores."""
    for factor in (1.0, 300.0):
        outs = []
        for trim in (False, True):
            model = sequential_lm(attn_span=260, adapt_span_cache=trim, **flags)
            with torch.no_grad():
                for layer in model.decoder.layers:
                    layer.self_attn.spans.ratio.mul_(0.2)
                    layer.self_attn.qkv_proj.weight.mul_(factor**0.5)
            outs.append(blockwise(model, tokens(2, 300), [60] * 5))
        assert_close(outs[0], outs[1], 1e-10, 1e-10)


def test_p4_spans_that_grow_a_little_find_all_that_they_see():
    """The 64 places more that a trimmed cache has are for this: nothing differs from a cache that was never trimmed."""
    outs = []
    for trim in (False, True):
        model = sequential_lm(attn_span=300, adapt_span_cache=trim, **SPANS)
        parts, memory = [], None
        for number, ratio in enumerate((0.05, 0.25, 0.45, 0.1, 0.3)):
            with torch.no_grad():
                for layer in model.decoder.layers:
                    layer.self_attn.spans.ratio.fill_(ratio)
            out, extra = model.decoder(tokens(2, 150, seed=number), memory=memory)
            parts.append(out)
            memory = extra["memory"]
        outs.append(torch.cat(parts, 1))
    assert_close(outs[0], outs[1], 1e-10, 1e-10)


def test_p10_what_a_step_holds_falls_with_the_spans():
    """Caches and all that is saved for the backward; peaks of whole steps are in the benchmark."""
    sizes = []
    for ratio in (1.0, 0.3, 0.02):
        model = sequential_lm(attn_span=2000, adapt_span=True, adapt_span_cache=True, ragged=False).train()
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.self_attn.spans.ratio.fill_(ratio)
        memory = model.decoder(tokens(1, 2000))[1]["memory"]
        saved: dict[int, int] = {}

        def keep(x: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = model.decoder(tokens(1, 50), memory=memory)[0]
        out.sum().backward()
        fixed = sum(one.untyped_storage().nbytes() for one in model.parameters())
        sizes.append((sum(one.untyped_storage().nbytes() for one in memory), sum(saved.values()) - fixed))
    for held in zip(*sizes, strict=True):
        assert held[0] > 2 * held[1] and held[1] > 2 * held[2] > 0


def test_p11_no_persistent_vectors_are_the_plain_model():
    plain, none = sequential_lm(**SPANS), sequential_lm(**SPANS, pers_mem_size=0)
    assert_close(dict(none.state_dict()), dict(plain.state_dict()), 0, 0)
    assert torch.equal(none(tokens())[0], plain(tokens())[0])


def test_memory_is_inputs_of_layers_without_gradient():
    model = sequential_lm(**SPANS).train()
    stream = tokens(2, 20)
    _, extra = model.decoder(stream)
    memory = extra["memory"]
    assert [one.shape for one in memory] == [(2, 14, 12)] * 3 and not any(one.requires_grad for one in memory)
    assert_close(memory[0], model.decoder.embed_tokens(stream)[:, -14:].detach(), 0, 0)
    remembered = [one.requires_grad_() for one in memory]
    out, extra = model.decoder(stream, memory=remembered)
    out.sum().backward()
    assert not any(one.requires_grad for one in extra["memory"])
    assert model.decoder(stream, memory_length=3)[1]["memory"][0].shape == (2, 3, 12)
    assert model.decoder(stream, memory_length=0)[1]["memory"][0].shape == (2, 0, 12)


@pytest.mark.parametrize("price", [0.0, 1e9], ids=["every head alone", "all heads together"])
@variants
def test_groups_of_heads_change_nothing(flags: dict[str, Any], price: float, monkeypatch: pytest.MonkeyPatch):
    """Neither outputs nor gradients, with memory and in decoding."""

    def results() -> list[Tensor]:
        model, stream = sequential_lm(**flags), tokens(2, 26)
        model.decoder.positions.grad = None
        out = blockwise(model, stream, [9, 9, 8])
        out.square().sum().backward()
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        with torch.no_grad():
            return [out.detach(), *grads, decoded(model, stream, 5)]

    expected = results()
    monkeypatch.setattr("fairseq_efficient.ops.span_attention.common._GROUP", price)
    assert_close(results(), expected, 1e-9, 1e-9)


@variants
def test_padding_changes_nothing(flags: dict[str, Any]):
    """At the right, at the left, and in rows of pads alone."""
    model = sequential_lm(**flags)
    pad, stream, lengths = model.decoder.pad, tokens(3, 9), [9, 5, 1]
    expected = [model(stream[row : row + 1, :length])[0][0] for row, length in enumerate(lengths)]
    for left in (False, True):
        padded = torch.full((4, 11), pad)
        for row, length in enumerate(lengths):
            start = 11 - length if left else 0
            padded[row, start : start + length] = stream[row, :length]
        out = model(padded)[0]
        for row, length in enumerate(lengths):
            start = 11 - length if left else 0
            assert_close(out[row, start : start + length], expected[row], 1e-10, 1e-10)


@variants
def test_every_parameter_learns(flags: dict[str, Any]):
    model = sequential_lm(**flags).train()
    out, extra = model.decoder(tokens(2, 20))
    out, extra = model.decoder(tokens(2, 20, seed=2), memory=extra["memory"])
    softmax = model.decoder.adaptive_softmax
    loss = out.square().sum() if softmax is None else softmax.loss(out, tokens(2, 20, seed=7))
    (loss + extra.get("aux", {}).get("span", 0)).backward()
    missing = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    assert not missing
    assert ("aux" in extra) == bool(flags.get("adapt_span_loss"))


@pytest.mark.parametrize("flags", [SPANS, {**SPANS, "dynamic_span": True}, {"pers_mem_size": 4, **SPANS}])
def test_recomputed_layers_have_the_same_gradients(flags: dict[str, Any]):
    found = []
    for checkpoint in (False, True):
        model = sequential_lm(checkpoint_activations=checkpoint, **flags).train()
        memory = model.decoder(tokens(2, 9, seed=3))[1]["memory"]
        model.decoder(tokens(2, 20), memory=memory)[0].square().sum().backward()
        found.append({name: one.grad for name, one in model.named_parameters()})
    assert_close(found[1], found[0], 1e-10, 1e-10)


def test_dropout_is_for_training_only():
    flags = {**SPANS, "dropout": 0.3, "emb_dropout": 0.2}
    model, stream = sequential_lm(**flags), tokens()
    assert torch.equal(model(stream)[0], model(stream)[0])
    model.train()
    assert not torch.equal(model(stream)[0], model(stream)[0])
    attention: SpanSelfAttention = model.decoder.layers[0].self_attn
    assert attention.dropout_now() == 0.3 and model.decoder.layers[0].options.activation_dropout == 0.3


# --- decoding -------------------------------------------------------------------------------------------------------


def decoded(model: Any, stream: Tensor, prompt: int) -> Tensor:
    """Outputs of all tokens: a prompt read at once, then one by one."""
    state: dict[str, Any] = {}
    outs = [model.decoder(stream[:, :prompt], incremental_state=state)[0]] if prompt else []
    for end in range(prompt + 1, stream.size(1) + 1):
        outs.append(model.decoder(stream[:, :end], incremental_state=state)[0])
    return torch.cat(outs, 1)


@variants
@pytest.mark.parametrize("prompt", [0, 1, 5, 29])
@torch.no_grad()
def test_p17_decoding_is_the_full_forward(flags: dict[str, Any], prompt: int):
    """Far beyond the longest span: the cache slides."""
    model, stream = sequential_lm(**flags), tokens(3, 40)
    assert_close(decoded(model, stream, prompt), model.decoder(stream)[0], 1e-10, 1e-10)


@variants
@pytest.mark.parametrize("most", [0, 1, 5, 30])
@torch.no_grad()
def test_decoding_remembers_no_more_than_asked(flags: dict[str, Any], most: int):
    """``--eval-mem-len`` in generation: blocks of one token that remember so many."""
    model, stream = sequential_lm(**flags), tokens(2, 20)
    model.prepare_for_inference_(SimpleNamespace(generation=None, task=SimpleNamespace(eval_mem_len=most)))
    expected = blockwise(model, stream, [1] * 20, memory_length=most)
    for prompt in (1, 7):
        assert_close(decoded(model, stream, prompt), expected, 1e-10, 1e-10)


@variants
@torch.no_grad()
def test_f15_beams_are_reordered(flags: dict[str, Any]):
    model, stream = sequential_lm(**flags), tokens(4, 30)
    state: dict[str, Any] = {}
    model.decoder(stream[:, :6], incremental_state=state)
    rows = stream
    for end in range(7, 31):
        out = model.decoder(rows[:, :end], incremental_state=state)[0]
        assert_close(out[:, -1], model.decoder(rows[:, :end])[0][:, -1], 1e-10, 1e-10)
        order = torch.randint(0, rows.size(0), (4 if end % 5 else 3,))
        rows = rows[order]
        model.decoder.reorder_incremental_state_scripting(state, order)


@torch.no_grad()
def test_decoding_remembers_no_more_than_spans():
    """The largest cache of a layer holds twice its window, whatever the length of the text."""
    model = sequential_lm(attn_span=200, **SPANS, ragged=False)
    stream = tokens(1, 300)
    sizes = []
    for count in (100, 300):
        state: dict[str, Any] = {}
        model.decoder(stream[:, :50], incremental_state=state)
        for end in range(51, count + 1):
            model.decoder(stream[:, :end], incremental_state=state)
        (found,) = [one for one in state.values() if hasattr(one, "size_bytes")]
        sizes.append(found.size_bytes())
    assert sizes[0] == sizes[1] <= 3 * 2 * 64 * 12 * 8 * 2


# --- what memory reaches, weights of others ---------------------------------------------------------------------------


def test_reach_is_the_sum_of_the_longest_spans_in_blocks():
    model = sequential_lm(attn_span=100, **SPANS, ragged=False)
    with torch.no_grad():
        for layer, ratio in zip(model.decoder.layers, (0.5, 0.06, 1.0), strict=True):
            layer.self_attn.spans.ratio[1] = ratio
    assert model.decoder.span_widths() == [[4, 54, 4], [4, 10, 4], [4, 100, 4]]
    assert model.memory_reach(10) == 60 + 10 + 100
    assert model.memory_reach(10, 20) == 20 + 10 + 20
    assert sequential_lm(attn_span=100).memory_reach(64) == 3 * 128
    orig = sequential_lm(attn_span=100, **SPANS, adapt_span_mask="orig", ragged=False)
    assert orig.memory_reach(10) == 3 * 40  # what the published mask hides has taken part in its softmax


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"attn_span": 20}, "was trained with --attn-span 20, the model has 14: say --attn-span 20"),
        ({"decoder_layers": 2}, "has 2 layers, the model has 3: say --decoder-layers 2"),
        ({"pers_mem_size": 5}, "has 5 persistent vectors, the model has 0: say --pers-mem-size 5"),
        ({"adapt_span": False, "adapt_span_loss": 0.0}, "is of a model with no learned spans, this one has"),
        ({"dynamic_span": True}, "is of a model with --adapt-span --dynamic-span, this one has --adapt-span"),
        ({"adapt_span_layer": True}, "is of a model with --adapt-span --adapt-span-layer, this one has --adapt-span$"),
    ],
)
def test_weights_of_another_shape_are_one_line(other: dict[str, Any], message: str):
    flags = {**SPANS, **other}
    if not flags["adapt_span"]:
        flags.pop("adapt_span_ramp")
    weights = sequential_lm(**flags).state_dict()
    with pytest.raises(UserError, match=message):
        sequential_lm(**SPANS).load_state_dict(weights, strict=True)
