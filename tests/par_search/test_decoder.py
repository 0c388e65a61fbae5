"""The language model: formulas, causality, memory, padding, decoding."""

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from par_search.blocks import AttentionBlock
from par_search.config import ARCHITECTURES, ParLMConfig
from par_search.decoder import ParDecoder, layout_of
from par_search.layout import build_layout
from par_search.model import decoder_options
from tests.par_search.helpers import ADAPTIVE, TIED, by_formula, par_lm, remembered_in_decoding, supernet
from tests.stream_models import blockwise, tokens
from tests.util import assert_close

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keys": {"cache_memory": "keys"},
    "pre-norm": {"decoder_normalize_before": True},
    "pre-norm keys": {"decoder_normalize_before": True, "cache_memory": "keys"},
    "clamped": {"clamp_len": 3},
    "same length": {"same_length": True},
    "no memory": {"mem_len": 0},
    "head width": {"decoder_head_dim": 6},
    "adaptive": ADAPTIVE,
    "tied": TIED,
    "shared": {"share_decoder_input_output_embed": True},
    "gelu": {"activation_fn": "gelu"},
}
variants = pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())


def models(flags: dict[str, Any]) -> list[Any]:
    """A par_lm, and a supernet whose blocks differ in kind, with the same flags."""
    net = supernet(5, **flags)
    with torch.no_grad():
        net.decoder.alpha.copy_(torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 0, 2], [0, 2, 0]]))
    return [par_lm(**flags), net]


def test_outputs_are_those_of_the_formulas():
    """One query and key at a time; scores by the root of the width, a linear output projection (property 1; bugs 1 and
    3)."""
    model, stream = par_lm("afiaf"), tokens(2, 7)
    assert_close(model(stream)[0], by_formula(model.decoder, stream), 1e-10, 1e-10)


@variants
def test_no_token_sees_a_later_one(flags: dict[str, Any]):
    """With memory; bitwise, but for bands of adaptive inputs, which are products of as many rows as there are of their
    types (property 2)."""
    close = 1e-12 if flags.get("adaptive_input") else 0.0
    for model in models(flags):
        stream = tokens(2, 9)
        memory = model.decoder(tokens(2, 8, seed=5))[1]["memory"]
        before = model.decoder(stream, memory=memory)[0]
        for place in (3, 8):
            changed = stream.clone()
            changed[:, place] = (changed[:, place] - 4 + 7) % 30 + 4
            after = model.decoder(changed, memory=memory)[0]
            assert_close(after[:, :place], before[:, :place], close, close)
            assert (after[:, place:] - before[:, place:]).abs().amax() > 1e-6


@variants
def test_blocks_of_any_length_are_one_block_if_memory_covers_all(flags: dict[str, Any]):
    """To 1e-10 in fp64 (property 3)."""
    if "mem_len" in flags:
        return
    for model in models({**flags, "mem_len": 40}):
        stream = tokens(2, 21)
        whole = model.decoder(stream)[0]
        for sizes in ([21], [1] * 21, [5, 1, 9, 6], [20, 1], [7, 7, 7]):
            assert_close(blockwise(model, stream, sizes), whole, 1e-10, 1e-10)
            assert_close(blockwise(model, stream, sizes, memory_length=30), whole, 1e-10, 1e-10)


@variants
def test_memory_is_exactly_so_long(flags: dict[str, Any]):
    """One attention block: a token depends on the block it is in and on --mem-len tokens before that, no more."""
    model, length = par_lm("a", **flags), flags.get("mem_len", 6)
    stream, start = tokens(1, 20), 14
    sizes = [start, 20 - start]
    out = blockwise(model, stream, sizes)[:, start:]
    for place in range(start):
        changed = stream.clone()
        changed[:, place] = (changed[:, place] - 4 + 7) % 30 + 4
        differs = (blockwise(model, changed, sizes)[:, start:] - out).abs().amax(-1)[0] > 1e-12
        if flags.get("same_length"):  # each token sees so many, itself among them
            expected = [start + i - place < length for i in range(20 - start)]
        else:
            expected = [place >= start - length] * (20 - start)
        assert differs.tolist() == expected, place


def test_memory_is_for_attention_blocks_only():
    """Others have no place in it (property 15; bug 16)."""
    model = par_lm("affaif")
    kept = model.decoder(tokens(3, 4))[1]["memory"]
    assert [one.shape for one in kept] == [(3, 4, 16)] * 2
    kept = model.decoder(tokens(3, 4), memory=kept)[1]["memory"]
    assert [one.shape for one in kept] == [(3, 6, 16)] * 2 and not any(one.requires_grad for one in kept)
    assert model.decoder(tokens(3, 4), memory_length=0)[1]["memory"][0].shape == (3, 0, 16)
    kept = par_lm("affaif", cache_memory="keys").decoder(tokens(3, 9))[1]["memory"]
    assert [one.shape for one in kept] == [(3, 2, 2, 6, 8)] * 2
    assert par_lm("ff").decoder(tokens(3, 4))[1]["memory"] == []


def test_memory_holds_what_attention_was_given_and_no_gradient():
    model = par_lm("fa")
    stream = tokens(2, 9)
    _, extra = model.decoder(stream)
    x = model.decoder.embed_tokens(stream) * 4
    assert_close(extra["memory"][0], model.decoder.blocks[0](x)[:, -6:].detach(), 1e-12, 1e-12)
    model.train()
    memory = [one.requires_grad_() for one in model.decoder(stream)[1]["memory"]]
    model.decoder(stream, memory=memory)[0].sum().backward()
    assert model.decoder.blocks[0].fc1.weight.grad is not None
    assert not model.decoder(stream, memory=memory)[1]["memory"][0].requires_grad


@variants
def test_padding_changes_nothing(flags: dict[str, Any]):
    """At the right, at the left, and in rows of pads alone (bug 17)."""
    for model in models(flags):
        pad, stream = model.decoder.pad, tokens(3, 9)
        lengths = [9, 5, 1]
        single = [model.decoder(stream[row : row + 1, :n])[0][0] for row, n in enumerate(lengths)]
        for left in (False, True):
            padded = torch.full((4, 11), pad)
            for row, n in enumerate(lengths):
                place = slice(11 - n, 11) if left else slice(0, n)
                padded[row, place] = stream[row, :n]
            out = model.decoder(padded)[0]
            assert out.isfinite().all()
            for row, n in enumerate(lengths):
                place = slice(11 - n, 11) if left else slice(0, n)
                assert_close(out[row, place], single[row], 1e-10, 1e-10)


def test_left_padding_with_memory():
    for model in models({}):
        memory = model.decoder(tokens(2, 8, seed=4))[1]["memory"]
        stream = tokens(2, 5)
        expected = model.decoder(stream, memory=memory)[0]
        padded = torch.cat([torch.full((2, 2), model.decoder.pad), stream], 1)
        assert_close(model.decoder(padded, memory=memory)[0][:, 2:], expected, 1e-10, 1e-10)


# --- decoding -------------------------------------------------------------------------------------------------------


def decode(decoder: Any, stream: Tensor, prompt: int) -> Tensor:
    """Outputs of reading a prompt at once, then token by token."""
    state: dict[str, Any] = {}
    parts = [decoder(stream[:, :prompt], incremental_state=state)[0]]
    for end in range(prompt + 1, stream.size(1) + 1):
        parts.append(decoder(stream[:, :end], incremental_state=state)[0])
    return torch.cat(parts, 1)


@variants
def test_decoding_token_by_token_is_blocks_of_one_token(flags: dict[str, Any]):
    for model in models(flags):
        stream = tokens(3, 25)
        expected = blockwise(model, stream, [1] * 25, memory_length=remembered_in_decoding(model.decoder))
        for prompt in (1, 2, 5, 12, 25):
            assert_close(decode(model.decoder, stream, prompt), expected, 1e-10, 1e-10)


@variants
def test_decoding_sees_a_whole_block(flags: dict[str, Any]):
    """As far as the last token of a block in training sees, whatever the memory."""
    for model in models(flags):
        stream = tokens(3, model.decoder.options.tokens)
        for prompt in (1, 5):
            assert_close(decode(model.decoder, stream, prompt), model.decoder(stream)[0], 1e-10, 1e-10)


@pytest.mark.parametrize("length", [0, 2, 9])
@pytest.mark.parametrize("flags", [{}, {"same_length": True}], ids=str)
def test_decoding_remembers_as_much_as_asked(flags: dict[str, Any], length: int):
    """``--eval-mem-len`` in generation, less and more than --mem-len."""
    if flags and not length:
        return  # nothing would be seen
    for model in models(flags):
        stream = tokens(2, 17)
        model.prepare_for_inference_(SimpleNamespace(generation=None, task=SimpleNamespace(eval_mem_len=length)))
        expected = blockwise(model, stream, [1] * 17, memory_length=length)
        for prompt in (1, 12):
            assert_close(decode(model.decoder, stream, prompt), expected, 1e-10, 1e-10)


def test_decoding_with_long_memory_is_the_full_forward():
    for model in models({"mem_len": 30}):
        stream = tokens(2, 15)
        assert_close(decode(model.decoder, stream, 4), model.decoder(stream)[0], 1e-10, 1e-10)


@pytest.mark.parametrize(
    "flags", [{}, {"same_length": True}, {"decoder_normalize_before": True, "mem_len": 3}], ids=str
)
def test_rows_may_move_double_and_go(flags: dict[str, Any]):
    for model in models(flags):
        decoder, state = model.decoder, {}
        rows, length = tokens(3, 18), remembered_in_decoding(decoder)
        decoder(rows[:, :3], incremental_state=state)
        for end, order in zip(range(4, 19), itertools.cycle([[1, 0, 2], [0, 0, 1], [2, 1]]), strict=False):
            order = torch.tensor([index % rows.size(0) for index in order])
            decoder.reorder_incremental_state(state, order)
            rows = rows.index_select(0, order)
            out = decoder(rows[:, :end], incremental_state=state)[0]
            expected = blockwise(model, rows[:, :end], [1] * end, memory_length=length)
            assert_close(out[:, -1], expected[:, -1], 1e-10, 1e-10)


def test_a_state_knows_its_size():
    decoder, state = par_lm().decoder, {}
    decoder(tokens(2, 9), incremental_state=state)
    found = decoder.get_incremental_state(state, "decoding")
    assert len(found.caches) == 2 and found.size_bytes() > 2 * 2 * 2 * 6 * 16 * 8


# --- numbers --------------------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter():
    for flags in ({}, TIED, {"decoder_normalize_before": True, "cache_memory": "keys"}):
        model = par_lm("afaif", **flags).train()
        memory = model.decoder(tokens())[1]["memory"]
        net_output = model.decoder(tokens(seed=2), memory=memory)
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        (log_probs * torch.randn_like(log_probs)).sum().backward()
        missing = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
        assert not missing


def test_parameters_are_those_of_the_paper():
    """An attention block has 5 d^2 (and two biases), a feed-forward block 2 d ffn."""
    model = par_lm("af", decoder_embed_dim=64, decoder_ffn_embed_dim=256, decoder_attention_heads=4)
    found = [sum(p.numel() for p in block.parameters()) for block in model.decoder.blocks]
    assert found == [5 * 64 * 64 + 2 * 64 + 2 * 64, 2 * 64 * 256 + 256 + 64 + 2 * 64]


@pytest.mark.parametrize(("arch", "millions"), [("par_lm_txl_wt103_base", 192), ("par_lm_wt103_base", 200)])
def test_the_paper_trades_attention_for_parameters(arch: str, millions: int):
    """WikiText-103 base: 10 of 16 attention blocks become feed-forward blocks."""
    cfg = ParLMConfig(**{**ARCHITECTURES[arch], "tokens_per_sample": 64})
    rule = (str(cfg.layout_rule), cfg.decoder_blocks, cfg.par_ratio, cfg.sandwich_coefficient)
    words: Any = type("Words", (), {"__len__": lambda self: 267_735, "pad": lambda self: 1, "nspecial": 4})()
    with torch.device("meta"):
        decoder = ParDecoder(words, decoder_options(cfg, words), build_layout(cfg.layout, *rule))
    assert abs(sum(one.numel() for one in decoder.parameters()) / 1e6 - millions) < 1


@pytest.mark.parametrize("build", [par_lm, supernet])
@pytest.mark.parametrize("flags", [{}, {"cache_memory": "keys", "same_length": True}, {"cpu_bf16": True}], ids=str)
def test_recomputed_blocks_have_the_same_gradients(build: Any, flags: dict[str, Any]):
    """Bitwise, over memory, with dropout and noise; what is kept for the backward is less, memory is the same."""
    found = []
    for checkpoint in (False, True):
        double = "cpu_bf16" not in flags
        rates = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}
        model = build(checkpoint_activations=checkpoint, double=double, **rates, **flags).train()
        torch.manual_seed(4)
        memory = model.decoder(tokens(2, 5, seed=3))[1]["memory"]
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_note, kept), lambda one: one):
            out, extra = model.decoder(tokens(2, 9), memory=memory)
        out.float().log_softmax(-1)[..., 5].sum().backward()
        assert not any(one.requires_grad for one in extra["memory"])
        grads = {name: one.grad for name, one in model.named_parameters()}
        found.append((grads, out.detach(), extra["memory"], sum(one.numel() for one in kept)))
    (grads, out, memory, kept), (again, *others, less) = found
    assert_close([again, *others], [grads, out, memory], 0, 0)
    assert less < 0.5 * kept


def _note(kept: list[Tensor], one: Tensor) -> Tensor:
    kept.append(one)
    return one


def test_dropout_is_drawn_in_training_only():
    model, stream = par_lm("af", dropout=0.3, attention_dropout=0.2, activation_dropout=0.2), tokens()
    before = torch.get_rng_state()
    assert torch.equal(model(stream)[0], model(stream)[0]) and torch.equal(torch.get_rng_state(), before)
    model.train()
    torch.manual_seed(3)
    one = model(stream)[0]
    assert not torch.equal(one, model(stream)[0])
    torch.manual_seed(3)
    assert torch.equal(one, model(stream)[0])


def test_a_net_without_attention_is_said(caplog: pytest.LogCaptureFixture):
    par_lm("afa")
    assert not caplog.text
    par_lm("", layout_rule="par", decoder_blocks=4)
    assert "the layout ffff has no attention" in caplog.text


def test_distance_is_what_counts():
    """A window of tokens further into the stream gives the same numbers, which a table by place does not (bug 2)."""
    model = par_lm("a", mem_len=0)
    stream = tokens(1, 6)
    for front in (1, 30):
        out = model.decoder(stream)[0]
        memory = [one[:, :0] for one in model.decoder(tokens(1, front))[1]["memory"]]
        assert_close(model.decoder(stream, memory=memory)[0], out, 0, 0)


def test_a_long_table_of_positions_is_made_when_needed():
    model = par_lm("af", mem_len=2000, tokens_per_sample=4)
    assert model.decoder.position_table.size(0) == 2004 and "decoder.position_table" not in model.state_dict()
    small = par_lm("af", mem_len=2, tokens_per_sample=4)
    stream = tokens(1, 1200)
    small.load_state_dict(model.state_dict())
    assert_close(small.decoder(stream)[0], model.decoder(stream)[0], 1e-9, 1e-9)


# --- weights of others ----------------------------------------------------------------------------------------------


def test_weights_tell_the_layout():
    for layout in ("affaif", "iaf", "f", "aa"):
        assert layout_of(par_lm(layout).state_dict()) == layout.rstrip("i")
    assert layout_of(supernet().state_dict()) is None
    par_lm("affi").load_state_dict(par_lm("aff").state_dict())


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        (lambda: par_lm("afa"), lambda: par_lm("aff"), "holds the layout aff, the model has afa: say --layout aff"),
        (lambda: par_lm("afa"), lambda: supernet(3), "holds a par_supernet, not a par_lm"),
        (lambda: supernet(3), lambda: par_lm("afa"), "holds a par_lm of the layout afa"),
        (lambda: supernet(3), lambda: supernet(5), "of 5 blocks, the model has 3: say --decoder-blocks 5"),
    ],
)
def test_other_weights_are_one_line(model: Any, other: Any, message: str):
    with pytest.raises(UserError, match=message):
        model().load_state_dict(other().state_dict())


def test_blocks_do_not_keep_what_they_are_given():
    model = par_lm()
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    model.decoder(tokens(), memory=model.decoder(tokens())[1]["memory"])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert any(isinstance(module, AttentionBlock) for module in model.modules())


# --- positions prepared for inference -------------------------------------------------------------------------------


@variants
def test_prepared_positions_change_nothing(flags: dict[str, Any]):
    """Also where more keys come than were prepared for, and in decoding with a prompt."""
    for model in models(flags):
        stream = tokens(2, 21)
        plain = [blockwise(model, stream, [8, 8, 5]), model.decoder(stream)[0], decode(model.decoder, stream, 9)]
        for count in (5, 14, 40):
            model.decoder.prepare_positions(count)
            assert all(block.projected.size(1) == count for block in model.decoder.slots())
            again = [blockwise(model, stream, [8, 8, 5]), model.decoder(stream)[0], decode(model.decoder, stream, 9)]
            assert_close(again, plain, 1e-10, 1e-10)


def test_prepared_positions_are_of_the_weights_that_are_there():
    """Training and other weights undo the preparation; it is not saved."""
    model, stream = par_lm("afa"), tokens()
    generation = SimpleNamespace(beam=1, print_alignment=None)
    cfg = SimpleNamespace(generation=generation, task=SimpleNamespace(eval_mem_len=9, eval_tokens_per_sample=4))
    model.prepare_for_inference_(cfg)
    assert [block.projected.size(1) for block in model.decoder.slots()] == [13, 13]
    assert not any("projected" in name for name in model.state_dict())
    model.prepare_for_inference_(SimpleNamespace(generation=generation))
    assert model.decoder.slots()[0].projected.size(1) == 14  # --mem-len and --tokens-per-sample
    other = par_lm("afa", seed=3)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(stream)[0], other(stream)[0])
    other.decoder.prepare_positions(14)
    other.train()
    assert all(block.projected is None for block in other.decoder.slots())
