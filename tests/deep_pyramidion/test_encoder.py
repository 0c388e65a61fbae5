"""The encoder: padding, pyramid, chunks, cuts, layer drop, checkpointing, bfloat16."""

import itertools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_pyramidion.encoder import PyramidionEncoder
from tests.deep_pyramidion.helpers import (
    EOS,
    FIRST_WORD,
    NO_POOLING,
    PAD,
    VARIANTS,
    build,
    documents,
    pad,
    prefixes,
    stock_twin,
    tensor_attributes,
)
from tests.util import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of stock
LENGTHS = [3, 17, 40, 64, 33]
every_variant = pytest.mark.parametrize("name", VARIANTS)


def real_states(encoder: PyramidionEncoder, tokens: Tensor, row: int) -> Tensor:
    """(T', C) of one row, its pads left out; they must be at the end."""
    out = encoder(tokens)
    mask = out["encoder_padding_mask"][0][row]
    assert not (mask[:-1] & ~mask[1:]).any()
    return out["encoder_out"][0][:, row][~mask]


def widths_of(encoder: PyramidionEncoder, length: int) -> list[int]:
    return [state.size(0) for state in encoder(pad(documents([length])), return_all_hiddens=True)["encoder_states"]]


@every_variant
@torch.no_grad()
def test_p12_a_document_does_not_see_padding(name: str):
    """Alone, padded on either side, beside longer ones: the same states, mask and log-probabilities."""
    model = build(**VARIANTS[name])
    sources, targets = documents(LENGTHS), prefixes(documents([4, 7, 1, 9, 5], seed=1))
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model.encoder(source[None])
        assert not alone["encoder_padding_mask"][0].any()
        expected = model.get_normalized_probs(model.decoder(target[None], alone), True)[0]
        wide = source.numel() + 9
        for tokens, prefix, at in [
            (pad([source], "right", wide), target[None], 0),
            (pad([source], "left", wide), target[None], 0),
            (pad(sources, "right"), pad(targets, "right"), row),
            (pad(sources, "left", 71), pad(targets, "left", 12), row),
            (pad(sources[: row + 1], "left"), pad(targets[: row + 1], "right"), row),
        ]:
            assert_close(real_states(model.encoder, tokens, at), alone["encoder_out"][0][:, 0])
            log_probs = model.get_normalized_probs(model.decoder(prefix, model.encoder(tokens)), True)[at]
            assert_close(log_probs[prefix[at] != PAD], expected)


@pytest.mark.parametrize("limit", [17, 18, 24, 25, 40, 64, 100, 4096])
@torch.no_grad()
def test_p12_any_limit_that_fits_gives_the_same(limit: int):
    source = documents([17])[0][None]
    large, model = build(max_source_positions=4096), build(max_source_positions=limit)
    model.load_state_dict(large.state_dict())
    assert_close(model.encoder(source)["encoder_out"][0], large.encoder(source)["encoder_out"][0], 0, 0)


@every_variant
@torch.no_grad()
def test_p13_what_the_pad_symbol_looks_like_changes_nothing(name: str):
    model = build(**VARIANTS[name])
    sources, targets = pad(documents(LENGTHS), "left", 70), pad(prefixes(documents([2, 5, 5, 4, 1], 1)), "left", 7)
    before = model(sources, None, targets)[0]
    for table in (model.encoder.embed_tokens, model.decoder.embed_tokens):
        table.weight[PAD] = 1e3
    after = model(sources, None, targets)[0]
    words = torch.arange(after.size(-1)) != PAD  # the pad's own logit may read its row
    assert torch.equal(after[targets != PAD][:, words], before[targets != PAD][:, words])


@every_variant
def test_p13_every_real_position_counts(name: str):
    """Through 3 layers each document's output depends on each of its tokens and on nothing beside it."""
    model = build(**{**VARIANTS[name], "hard_topk_inference": False})
    tokens = pad(documents([41, 64, 33, 9]), "left", 70)
    vectors = model.encoder.embed_tokens(tokens).detach().requires_grad_()
    out = model.encoder(tokens, token_embeddings=vectors)
    for row in range(4):
        states = out["encoder_out"][0][:, row][~out["encoder_padding_mask"][0][row]]
        grad = torch.autograd.grad((states * states.detach().cos()).sum(), vectors, retain_graph=True)[0]
        touched = grad.abs().sum(-1) > 0
        expected = tokens != PAD
        expected[torch.arange(4) != row] = False
        assert torch.equal(touched, expected)


@pytest.mark.parametrize(
    "length",
    [30, 80],
)
@torch.no_grad()
def test_given_embeddings_are_used_like_looked_up_ones(length: int):
    """Also where the source is cut: the end that is kept has its own embedding."""
    for side, positions in itertools.product(("left", "right"), (False, True)):
        encoder = build(chunk_positions=positions).encoder
        tokens = pad(documents([length, 7]), side, length + 3)
        given = encoder(tokens, token_embeddings=encoder.embed_tokens(tokens))
        assert_close(given["encoder_out"], encoder(tokens)["encoder_out"], 0, 0)


def test_p14_widths_follow_the_pyramid():
    assert widths_of(build().encoder, 64) == [64, 24, 24, 10]
    assert widths_of(build().encoder, 18) == [18, 18, 18, 10]
    assert widths_of(build().encoder, 7) == [7, 7, 7, 7]
    assert widths_of(build(enc_layers_and_token_width="{0: 50, 1: 49, 2: 1}").encoder, 64) == [64, 50, 49, 1]
    assert widths_of(build(enc_layers_and_token_width="").encoder, 64) == [64] * 4
    assert widths_of(build(**NO_POOLING).encoder, 64) == [64] * 4
    tokens = pad(documents([64, 5]))
    assert build().encoder(tokens)["encoder_padding_mask"][0].sum(1).tolist() == [0, 5]
    assert build().encoder(tokens)["encoder_states"] == []


def block_mask(length: int, chunk: int, overlap: int, shift: int) -> Tensor:
    """(T, T) True = may not look, written without the operator's arithmetic."""
    borders = sorted({0, length, *range(-shift, length, chunk)} & set(range(length + 1)))
    mask = torch.ones(length, length, dtype=torch.bool)
    for start, end in itertools.pairwise(borders):
        first = start if start == 0 else start - overlap
        last = end + overlap if end < length else length
        mask[start:end, max(0, first) : last] = False
    return mask


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"chunk_size": 7},
        {"chunk_size": 6, "chunk_overlap": 2},
        {"chunk_size": 6, "chunk_shift": True, "chunk_overlap": 1},
    ],
)
@torch.no_grad()
def test_p16_blockwise_is_a_block_diagonal_mask(flags: dict[str, Any]):
    flags = {**NO_POOLING, "use_sparse_attn": "only_blockwise", **flags}
    model = build(**flags)
    stock = stock_twin(model, **flags).encoder
    tokens = pad(documents([33, 21]))
    x = stock.forward_embedding(tokens)[0].masked_fill(tokens.eq(PAD).unsqueeze(-1), 0).transpose(0, 1)
    for number, layer in enumerate(stock.layers):
        shift = flags.get("chunk_size", 8) // 2 if flags.get("chunk_shift") and number % 2 else 0
        mask = block_mask(33, flags.get("chunk_size", 8), flags.get("chunk_overlap", 0), shift)
        x = layer(x, tokens.eq(PAD), attn_mask=mask.float())
    ours = model.encoder(tokens)["encoder_out"][0]
    assert_close(ours[~tokens.eq(PAD).T], x[~tokens.eq(PAD).T])


@torch.no_grad()
def test_which_flags_chunk():
    """Chunked or not shows in whether the first output position depends on the last token."""
    tokens = documents([30])[0][None]
    other = tokens.clone()
    other[0, 28] = tokens[0, 28] - FIRST_WORD + 1 if tokens[0, 28] > FIRST_WORD else FIRST_WORD + 1
    for pooling, attention in itertools.product(("lambda", "topk"), ("pooler", "only_blockwise", "pooler_no_block")):
        encoder = build(encoder_pooling=pooling, use_sparse_attn=attention, enc_layers_and_token_width="2:29").encoder
        one, two = (encoder(t, return_all_hiddens=True)["encoder_states"][2][0] for t in (tokens, other))
        chunked = attention == "only_blockwise" or (attention == "pooler" and pooling == "topk")
        assert torch.equal(one, two) == chunked, (pooling, attention)


@torch.no_grad()
def test_chunk_positions_restart_in_each_chunk():
    word = torch.full((1, 20), 5)
    plain, restarted = (build(chunk_positions=flag).encoder._embed(word, None)[0] for flag in (False, True))
    assert torch.equal(restarted[8:16], plain[:8]) and torch.equal(restarted[16:], plain[:4])
    assert not torch.equal(plain[8:16], plain[:8])


@torch.no_grad()
def test_both_values_of_global_positions_count_over_the_document():
    one, two = (build(global_positions=value).encoder(pad(documents([50, 20]))) for value in (0, 1))
    assert_close(one, two, 0, 0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_long_source_is_cut_with_its_end_kept_and_counted(side: str, caplog: pytest.LogCaptureFixture):
    for learned in (False, True):
        encoder = build(encoder_learned_pos=learned).encoder
        rows = documents([100, 64, 65, 5])
        with caplog.at_level(logging.WARNING):
            out = encoder(pad(rows, side, 111))
        cut = [torch.cat([row[:63], row[-1:]]) if row.numel() > 64 else row for row in rows]
        assert all(row[-1] == EOS for row in cut)
        assert_close(out["encoder_out"], encoder(pad(cut))["encoder_out"], 0, 0)
        assert (
            encoder.cuts.count == 2
            and "2 source(s) longer than the model's 64 tokens" in caplog.records[-1].getMessage()
        )
        assert encoder.max_positions() > 10**6 and encoder.source_limit == 64


def test_layer_drop_keeps_the_pyramid():
    model = build(encoder_layerdrop=0.5, enc_layers_and_token_width="0:32,1:16,2:8")
    seen: dict[tuple, int] = {}
    for number, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda *_, number=number: seen.__setitem__(number, seen.get(number, 0) + 1))
    model.train()
    for _ in range(60):
        assert widths_of(model.encoder, 64) == [64, 32, 16, 8]
    assert sorted(seen) == [0, 1, 2] and all(15 < count < 45 for count in seen.values())
    model.eval()
    seen.clear()
    assert widths_of(model.encoder, 64) == [64, 32, 16, 8] and list(seen.values()) == [1, 1, 1]


@pytest.mark.parametrize("name", ["pooled", "blockwise", "overlap_shift"])
def test_activation_checkpointing_changes_no_gradient(name: str):
    grads = []
    for on in (False, True):
        model = build(**VARIANTS[name], checkpoint_activations=on, dropout=0.1, attention_dropout=0.1).train()
        torch.manual_seed(5)
        out = model(pad(documents([50, 64]), "left"), None, pad(prefixes(documents([9, 5])), "right"))[0]
        out.float().log_softmax(-1)[..., 5].sum().backward()
        # the wrapper may put parameters under another name
        grads.append({n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in model.named_parameters()})
    assert_close(grads[0], grads[1], 1e-5, 1e-4)


@every_variant
@torch.no_grad()
def test_cpu_bf16_is_close_and_really_bf16(name: str):
    """Scorers are sharpened: among near ties rounding would decide which tokens survive."""
    plain, half = build(**VARIANTS[name]), build(**VARIANTS[name], cpu_bf16=True)
    for model in (plain, half):
        for key, parameter in model.named_parameters():
            parameter.mul_(20 if ".scorer." in key and "weight" in key else 1)
    tokens, targets = pad(documents([64, 30])), pad(prefixes(documents([9, 5])))
    traces: list[list] = [[], []]
    states = [m.encoder.encode(tokens, trace=trace)[0] for m, trace in zip((plain, half), traces, strict=True)]
    for (_, one), (_, two) in zip(*traces, strict=True):
        assert two.scores.dtype == torch.float32
        same = torch.stack([torch.isin(a, b).float().mean() for a, b in zip(one.index, two.index, strict=True)])
        assert same.mean() > 0.6
    full, low = (model(tokens, None, targets)[0].float() for model in (plain, half))
    assert not torch.equal(*(s.float() for s in states)) and not torch.equal(full, low)
    assert (full - low).abs().mean() < 0.1 * full.std()


@pytest.mark.parametrize("arch", ["linear", "ffn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_fp32_in_any_precision(arch: str, dtype: torch.dtype):
    """Also where the scorer itself has been converted (fairseq's --fp16), and under autocast."""
    pooler, x = build(encoder_pooling_arch=arch).encoder.pooler, torch.randn(2, 9, 16).to(dtype)
    for scorer in (pooler.float(), pooler.to(dtype)):
        expected = scorer.float().scorer["2"](x.float()).squeeze(-1).sigmoid() + 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            found = scorer.to(dtype).scores(x, 2)
        assert found.dtype == torch.float32
        assert_close(found, expected, 1e-6 if dtype == torch.float32 else 2e-3)
        assert found.unique().numel() == 18


@every_variant
def test_forward_keeps_no_tensor_and_no_state(name: str):
    model = build(**VARIANTS[name])
    tokens, targets = pad(documents([80, 30]), "left"), pad(prefixes(documents([9, 5])))
    before = tensor_attributes(model)
    with torch.no_grad():
        one = model(tokens, None, targets)[0]
        model.train()(tokens, None, targets)
        two = model.eval()(tokens, None, targets)[0]
    assert torch.equal(one, two) and tensor_attributes(model) == before


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for flags in VARIANTS.values():
        model = build(**flags).train()
        out = model(pad(documents([50, 64, 3]), "left"), None, pad(prefixes(documents([9, 5, 2]))))[0]
        out.sum().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_batch_of_pads_alone_is_finite():
    for flags in VARIANTS.values():
        model = build(**flags)
        out = model(torch.full((2, 5), PAD), None, torch.full((2, 3), EOS))[0]
        assert out.isfinite().all()


def rows_of(out: dict[str, list]) -> tuple[Tensor, Tensor]:
    """(T', R, C) and (R, T') as the decoder reads them: one row per hypothesis."""
    beam = out.get("rows_per_sentence", [1])[0]
    return out["encoder_out"][0].repeat_interleave(beam, 1), out["encoder_padding_mask"][0].repeat_interleave(beam, 0)


@torch.no_grad()
def test_p17_reorder_encoder_out():
    encoder = build().encoder
    out = encoder(pad(documents([64, 9, 30])), return_all_hiddens=True)
    frozen = {key: list(value) for key, value in out.items()}
    order = torch.tensor([2, 0, 1])
    moved = encoder.reorder_encoder_out(out, order)
    assert all(len(out[k]) == len(v) and all(a is b for a, b in zip(out[k], v, strict=True)) for k, v in frozen.items())
    assert_close(
        rows_of(moved), tuple(t.index_select(d, order) for t, d in zip(rows_of(out), (1, 0), strict=True)), 0, 0
    )
    assert_close(moved["encoder_states"], [state[:, order] for state in out["encoder_states"]], 0, 0)
    back = encoder.reorder_encoder_out(moved, order.argsort())
    for key in ("encoder_out", "encoder_padding_mask", "encoder_states"):
        assert_close(back[key], out[key], 0, 0)
    # beams: nothing is copied, and documents that are done are dropped
    beams = encoder.reorder_encoder_out(out, torch.arange(3).repeat_interleave(4))
    for order in ([3, 0, 0, 1, 4, 4, 7, 5, 8, 11, 8, 9], list(range(12))):
        step = encoder.reorder_encoder_out(beams, torch.tensor(order))
        for key in ("encoder_out", "encoder_padding_mask"):
            assert step[key][0].data_ptr() == out[key][0].data_ptr() and step["encoder_embedding"] == []
    left = encoder.reorder_encoder_out(beams, torch.tensor([9, 8, 8, 11, 0, 1, 2, 3]))
    expected = [t.index_select(d, torch.tensor([2] * 4 + [0] * 4)) for t, d in zip(rows_of(out), (1, 0), strict=True)]
    assert_close(list(rows_of(left)), expected, 0, 0)
