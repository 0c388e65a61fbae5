"""Weights of relatives: BART, fairseq's transformer, the original Pyramidion, other sizes of ours."""

import copy
import logging
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.bart import BARTModel
from fairseq.models.bart.model import bart_large_architecture
from torch import Tensor

from deep_pyramidion.config import ARCHITECTURES
from tests.deep_pyramidion.helpers import (
    NO_POOLING,
    TINY,
    VARIANTS,
    build,
    dictionary,
    documents,
    pad,
    prefixes,
    stock_twin,
    task,
)
from tests.util import assert_close

BART_SIZES = {
    key: TINY[key] for key in TINY if key.split("_")[0] in ("encoder", "decoder") and key != "encoder_pooling"
}  # fmt: skip
# the flags of pyramidion_bart_base, with tiny sizes
BART = {**{k: v for k, v in ARCHITECTURES["pyramidion_bart_base"].items() if k not in TINY}, "sort_back": 1}


def tiny_bart(words: Dictionary, heads: bool = False) -> BARTModel:
    """fairseq's own BART, built from its own architecture, pretrained-like: weights far from their start."""
    args = Namespace(**BART_SIZES, max_source_positions=64, max_target_positions=32)
    bart_large_architecture(args)
    torch.manual_seed(3)
    model = BARTModel.build_model(args, task(words))
    if heads:
        model.register_classification_head("topics", num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def words_with_mask() -> Dictionary:
    words = dictionary()
    words.add_symbol("<mask>")
    return words


def logits(model: Any, lengths: tuple[int, int] = (60, 33)) -> Tensor:
    with torch.no_grad():
        return model(pad(documents(lengths)), torch.tensor(lengths), pad(prefixes(documents([9, 9], 1))))[0]


def loaded(bart: BARTModel, words: Dictionary, **flags: Any) -> Any:
    ours = build(words, **{**BART, **flags})
    ours.load_state_dict(bart.state_dict(), strict=True)
    return ours


@pytest.mark.parametrize("mask", [False, True], ids=["mask_dropped", "mask_kept"])
def test_bart_without_pooling_is_bart(mask: bool):
    bart = tiny_bart(words_with_mask())
    ours = loaded(bart, words_with_mask() if mask else dictionary(), **NO_POOLING)
    expected = logits(bart)
    assert expected.size(-1) == 31
    assert_close(logits(ours), expected if mask else expected[..., :-1])
    assert ours.encoder.embed_tokens.weight is ours.decoder.embed_tokens.weight


def test_bart_equals_also_where_nothing_is_long_enough_to_pool():
    bart = tiny_bart(words_with_mask())
    ours = loaded(bart, dictionary(), enc_layers_and_token_width="0:60,2:60", chunk_size=64)
    assert_close(logits(ours), logits(bart)[..., :-1])


def test_scorers_are_new_and_said_to_be(caplog: pytest.LogCaptureFixture):
    bart, words = tiny_bart(words_with_mask()), dictionary()
    fresh = {n: p.clone() for n, p in build(words, **BART).named_parameters()}
    with caplog.at_level(logging.INFO):
        ours = loaded(bart, words)
    scorers = [n for n in fresh if ".scorer." in n]
    assert len(scorers) == 4 and all(torch.equal(ours.get_parameter(n), fresh[n]) for n in scorers)
    assert all(any(n in r.getMessage() for r in caplog.records) for n in scorers)
    assert logits(ours).isfinite().all() and not torch.allclose(logits(ours), logits(bart)[..., :-1], atol=1e-2)


def test_positions_beyond_the_table_continue_it():
    bart = tiny_bart(words_with_mask())
    longer = loaded(bart, dictionary(), max_source_positions=150, max_target_positions=40, **NO_POOLING)
    assert_close(logits(longer), logits(bart)[..., :-1])
    table, old = longer.encoder.embed_positions.weight, bart.encoder.embed_positions.weight
    first = 2  # rows up to the pad are no positions
    assert table.size(0) == 150 + first and old.size(0) == 64 + first
    assert torch.equal(table[:66], old) and torch.equal(table[66:130], old[2:]) and torch.equal(table[130:], old[2:24])
    assert longer.decoder.embed_positions.weight.size(0) == 42
    assert logits(longer, (150, 99)).isfinite().all() and longer.encoder.cuts.count == 0
    shorter = loaded(bart, dictionary(), max_source_positions=40, **NO_POOLING)
    assert_close(logits(shorter, (40, 33)), logits(bart, (40, 33))[..., :-1])


def test_classification_heads_are_left_out():
    bart = tiny_bart(words_with_mask(), heads=True)
    assert any("classification_heads" in key for key in bart.state_dict())
    assert_close(logits(loaded(bart, dictionary(), **NO_POOLING)), logits(bart)[..., :-1])


def test_weights_that_do_not_fit_are_still_refused():
    bart = tiny_bart(words_with_mask())
    for flags in ({"encoder_ffn_embed_dim": 28}, {"encoder_layers": 4}, {"encoder_layers": 2, **NO_POOLING}):
        with pytest.raises(RuntimeError, match="state_dict"):
            loaded(bart, dictionary(), **flags)
    with pytest.raises(RuntimeError, match=r"size mismatch for encoder\.embed_tokens\.weight"):
        loaded(bart, dictionary(25), **NO_POOLING)
    lacking = bart.state_dict()
    del lacking["decoder.layers.1.fc1.weight"]
    with pytest.raises(RuntimeError, match=r"decoder\.layers\.1\.fc1\.weight"):
        build(dictionary(), **BART).load_state_dict(lacking, strict=True)


def test_fairseqs_transformer_becomes_ours():
    plain = build(**NO_POOLING)
    stock = stock_twin(plain, **NO_POOLING)
    ours = build()
    ours.load_state_dict(copy.deepcopy(stock.state_dict()), strict=True)
    for name, parameter in stock.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_is_the_same(name: str):
    one, two = build(**VARIANTS[name]), build(**VARIANTS[name])
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = copy.deepcopy(one.state_dict())
    two.load_state_dict(state, strict=True)
    assert torch.equal(logits(one), logits(two))
    assert set(one.state_dict()) == set(two.state_dict())


def test_scorers_of_layers_that_do_not_pool_are_left_out():
    """The original has one per layer; a checkpoint of ours may be used with other widths."""
    one, two = build(enc_layers_and_token_width="0:40,1:24,2:10"), build(enc_layers_and_token_width="1:24")
    two.load_state_dict(one.state_dict(), strict=True)
    assert set(two.encoder.pooler.scorer) == {"1"}
    assert torch.equal(two.encoder.pooler.scorer["1"].weight, one.encoder.pooler.scorer["1"].weight)


def test_loading_under_a_prefix():
    """fairseq upgrades the state of a model inside another one under its name."""
    bart, ours = tiny_bart(words_with_mask(), heads=True), build(dictionary(), **BART)
    state = {f"student.{key}": value for key, value in bart.state_dict().items()}
    ours.upgrade_state_dict_named(state, "student")
    assert set(state) == {f"student.{key}" for key in ours.state_dict()}
    assert {k: v.shape for k, v in state.items()} == {f"student.{k}": v.shape for k, v in ours.state_dict().items()}
