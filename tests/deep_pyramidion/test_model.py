"""The whole model: gradients reach everything, without pooling it is fairseq's transformer, and it learns to select."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deep_pyramidion.model import PyramidionModel
from fairseq_efficient.schedules import geometric
from tests.deep_pyramidion.helpers import (
    EOS,
    FIRST_WORD,
    NO_POOLING,
    PAD,
    VARIANTS,
    build,
    config,
    dictionary,
    documents,
    pad,
    prefixes,
    stock_twin,
    task,
)
from tests.util import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of stock
every_variant = pytest.mark.parametrize("name", VARIANTS)


def one_step(model: Any, lengths: list[int], side: str = "left") -> Tensor:
    """Logits after a backward pass of the cross entropy, pads ignored."""
    targets = documents([9, 5, 1][: len(lengths)], seed=1)
    logits = model(pad(documents(lengths), side), None, pad(prefixes(targets), side))[0]
    cross_entropy(logits.flatten(0, 1), pad(targets, side).flatten(), ignore_index=PAD).backward()
    return logits


@every_variant
@pytest.mark.parametrize("lengths", [[64, 30, 11], [64, 64, 64], [9, 3, 1], [24, 10, 4], [80, 2, 2], [17]])
def test_p11_every_parameter_has_a_gradient(name: str, lengths: list[int]):
    """Also where a batch is too short to pool: DistributedDataParallel stops at a parameter without one."""
    model = build(**VARIANTS[name]).train()
    one_step(model, lengths)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    scorers = {n: p.grad for n, p in model.named_parameters() if ".scorer." in n}
    widths = model.encoder.pooler.widths if model.encoder.pooler is not None else {}
    for n, grad in scorers.items():
        layer = int(n.split(".scorer.")[1].split(".")[0])
        reached = max(min(length, 64) for length in lengths)
        pools = min([reached, *(w for above, w in widths.items() if above < layer)]) > widths[layer]
        assert bool(grad.abs().sum() > 0) == pools or n.endswith("0.bias"), n


def test_p11_scorers_exist_only_where_a_layer_pools():
    def layers(**flags: Any) -> set[str]:
        names = [n for n, _ in build(**flags).named_parameters() if "pooler" in n]
        assert all(n.startswith("encoder.pooler.scorer.") for n in names)
        return {n.split(".")[3] for n in names}

    assert layers() == {"0", "2"}
    assert layers(enc_layers_and_token_width="0:64,1:40,2:40") == {"1"}
    assert layers(max_source_positions=20) == {"2"}
    assert layers(enc_layers_and_token_width="") == layers(**NO_POOLING) == layers(max_source_positions=10) == set()


def test_scorers_are_one_layer_or_two_of_a_quarter_of_the_width():
    linear, ffn = (build(encoder_pooling_arch=arch).encoder.pooler.scorer["2"] for arch in ("linear", "ffn"))
    assert [tuple(p.shape) for p in linear.parameters()] == [(1, 16), (1,)]
    assert [tuple(p.shape) for p in ffn.parameters()] == [(4, 16), (4,), (1, 4), (1,)]


def test_pooling_in_training_is_soft_even_with_hard_inference():
    one, two = build(), build(hard_topk_inference=True)
    assert_close(one_step(one.train(), [64, 30]), one_step(two.train(), [64, 30]), 0, 0)
    source = documents([64])[0][None]
    soft, hard = (m.eval().encoder(source)["encoder_out"][0] for m in (one, two))
    assert not torch.allclose(soft, hard)


@torch.no_grad()
def test_hard_inference_keeps_tokens_unblended():
    """Exactly the states of the 10 best tokens, as they are without pooling."""
    model = build(hard_topk_inference=True, enc_layers_and_token_width="2:10")
    encoder, plain = model.encoder, build(**NO_POOLING, use_sparse_attn="only_blockwise")
    plain.load_state_dict(model.state_dict())
    tokens, trace = pad(documents([64, 30])), []
    pooled = encoder.encode(tokens, trace=trace)[0]
    states = plain.encoder.encode(tokens)[0]
    ((layer, kept),) = trace
    assert layer == 2
    for row, length in enumerate((64, 30)):
        best = encoder.pooler.scores(states[row : row + 1, :length], 2)[0].topk(10).indices.sort().values
        assert kept.index[row].tolist() == best.tolist()
        assert_close(pooled[row], states[row, best], 0, 0)


STOCK = {
    "plain": {},
    "learned": VARIANTS["pre_norm_learned"],
    "unscaled": {"no_scale_embedding": True, "decoder_embed_dim": 12, "decoder_normalize_before": True},
    "no_positions": {"no_token_positional_embeddings": True, "activation_dropout": 0.0, "encoder_layers": 1},
}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "how", [NO_POOLING, {"use_sparse_attn": "only_blockwise", **NO_POOLING, "chunk_size": 64}, {"chunk_size": 64}],
    ids=["full", "one_chunk", "too_short_to_pool"],
)  # fmt: skip
def test_p15_without_pooling_it_is_fairseqs_transformer(name: str, training: bool, how: dict[str, Any]):
    """Logits and the gradients of all parameters, padding on both sides."""
    flags = {**STOCK[name], **how, "enc_layers_and_token_width": "0:50"}
    for side in ("left", "right"):
        ours = build(**flags).train(training)
        stock = stock_twin(ours, **flags).train(training)
        real = pad(prefixes(documents([9, 5, 1], 1)), side) != PAD
        mine, theirs = (one_step(model, [50, 30, 3], side) for model in (ours, stock))
        assert_close(mine[real], theirs[real])
        grads = dict(ours.named_parameters())
        for key, parameter in stock.named_parameters():
            assert_close(grads[key].grad, parameter.grad, 1e-5, 1e-4)


def test_dropout_is_drawn_in_training_only():
    model = build(dropout=0.3, attention_dropout=0.3, encoder_layerdrop=0.2, **{"topk_softmax_base": 5}).train()
    one, two = one_step(model, [64, 30]), one_step(model, [64, 30])
    assert not torch.equal(one, two)
    torch.manual_seed(3)
    one = one_step(model, [64, 30])
    torch.manual_seed(3)
    assert torch.equal(one, one_step(model, [64, 30])), "all randomness comes from torch's generator"
    state = torch.get_rng_state()
    model.eval()
    one_step(model, [64, 30])
    assert torch.equal(state, torch.get_rng_state()), "evaluation draws nothing"


def test_the_softmax_base_follows_the_updates():
    flags = {"topk_softmax_base": 2.0, "topk_softmax_base_final": 32.0, "topk_softmax_base_updates": 4}
    moving, source = build(**flags), documents([64])[0][None]
    for updates, base in ((0, 2.0), (1, 4.0), (2, 8.0), (4, 32.0), (9, 32.0), (None, 32.0)):
        fixed = build(topk_softmax_base=base)
        if updates is not None:
            moving.set_num_updates(updates)
        else:
            moving = build(**flags)  # outside training: the end of the schedule
        assert geometric(2.0, 32.0, 4, updates) == pytest.approx(base, rel=1e-12)
        for training in (True, False):
            pair = [m.train(training).encoder(source)["encoder_out"][0] for m in (moving, fixed)]
            assert_close(*pair, 1e-5)
    assert not torch.allclose(build(topk_softmax_base=2).encoder(source)["encoder_out"][0], pair[0], atol=1e-3)


def test_flags_of_the_operator_reach_it(monkeypatch: pytest.MonkeyPatch):
    from deep_pyramidion import pooler

    stock, seen = pooler.topk_halving, []

    def record(values: Tensor, scores: Tensor, k: int, mask: Tensor | None, **flags: Any) -> Any:
        seen.append((k, mask is None, flags))
        return stock(values, scores, k, mask, **flags)

    monkeypatch.setattr(pooler, "topk_halving", record)
    model = build(flip_right=0, sort_back=0, topk_softmax_base=7, hard_topk_inference=True)
    model.encoder(pad(documents([64, 64])))
    model.train().encoder(pad(documents([64, 30])))
    base = {"base": 7.0, "flip_right": False, "sort_back": False}
    # a mask is passed on only while it hides something
    assert seen[:2] == [(24, True, {**base, "hard": True}), (10, True, {**base, "hard": True})]
    assert seen[2:] == [(24, False, {**base, "hard": False}), (10, True, {**base, "hard": False})]


def test_a_bf16_decoder_for_generation():
    """``--cpu-bf16`` rounds the decoder's weights once for generation; the encoder and embeddings stay fp32."""
    plain, half = build(), build(cpu_bf16=True)
    half.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=2)))
    assert half.decoder.layers[0].fc1.weight.dtype == torch.bfloat16
    assert {p.dtype for p in half.encoder.parameters()} == {half.decoder.embed_tokens.weight.dtype} == {torch.float32}
    encoded, prefix = plain.encoder(pad(documents([64, 30]))), pad(prefixes(documents([9, 5])))
    with torch.no_grad():
        full, low, state = plain.decoder(prefix, encoded)[0], half.decoder(prefix, encoded)[0].float(), {}
        steps = [half.decoder(prefix[:, : t + 1], encoded, state)[0][:, -1].float() for t in range(9)]
    real = prefix != PAD
    assert (full - low)[real].abs().mean() < 0.03 * full.std()
    assert (torch.stack(steps, 1) - full)[real].abs().mean() < 0.03 * full.std()


# --- it learns ------------------------------------------------------------------------------------------------------

SLOTS, VALUES, PLAIN, LENGTH = 8, 6, 12, 64  # 8 of 64 tokens are marked: the i-th of them has one of 6 values


def toy_batch(size: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Documents (B, 64), their marked tokens in order (B, 8), and where they stand (B, 8), anywhere."""
    values = torch.randint(0, VALUES, (size, SLOTS), generator=draw)
    marked = FIRST_WORD + torch.arange(SLOTS) * VALUES + values
    source = FIRST_WORD + SLOTS * VALUES + torch.randint(0, PLAIN, (size, LENGTH), generator=draw)
    where = torch.rand(size, LENGTH - 1, generator=draw).argsort(1)[:, :SLOTS]
    source.scatter_(1, where, marked)
    source[:, -1] = EOS
    return source, marked, where


def trained(updates: int, **flags: Any) -> PyramidionModel:
    sizes = {
        "encoder_embed_dim": 32, "decoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "decoder_ffn_embed_dim": 64,
        "encoder_layers": 2, "decoder_layers": 1, "encoder_normalize_before": True, "decoder_normalize_before": True,
        "share_all_embeddings": True, "chunk_size": 16,
    }  # fmt: skip
    torch.manual_seed(1)
    words = dictionary(SLOTS * VALUES + PLAIN)
    model = PyramidionModel.build_model(config(**{**sizes, **flags}), task(words)).train()
    optimizer, draw = torch.optim.Adam(model.parameters()), torch.Generator().manual_seed(0)
    for update in range(updates):
        source, target, _ = toy_batch(32, draw)
        logits = model(source, None, pad(prefixes(list(torch.cat([target, torch.full((32, 1), EOS)], 1)))))[0][:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (update + 1) / 50) * (1 - update / updates) ** 0.5
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: PyramidionModel) -> tuple[float, float]:
    """Share of marked tokens copied; share of them that survive the pool."""
    source, target, where = toy_batch(256, torch.Generator().manual_seed(99))
    prefix = torch.cat([torch.full((256, 1), EOS), target[:, :-1]], 1)
    copied = (model(source, None, prefix)[0].argmax(-1) == target).float().mean()
    trace: list[Any] = []
    model.encoder.encode(source, trace=trace)
    kept = [
        torch.isin(w, index).float().mean() for _, pool in trace for w, index in zip(where, pool.index, strict=True)
    ]
    return copied.item(), torch.stack(kept).mean().item() if kept else 0.0


@pytest.mark.full
def test_p20_it_learns_to_select():
    """Pooled to 8 of 64 tokens it copies the marked ones; cut to 8 tokens it cannot."""
    pooled = trained(300, enc_layers_and_token_width=f"0:{SLOTS}")
    copied, kept = accuracy(pooled)
    assert copied > 0.95 and kept > 0.95
    hard = copy.deepcopy(pooled)
    hard.encoder.pooler.hard_inference = True
    assert accuracy(hard)[0] > 0.95
    cut, _ = accuracy(trained(150, max_source_positions=SLOTS, **NO_POOLING))
    assert cut < 0.5
