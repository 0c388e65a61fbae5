"""Weights of relatives: fairseq's RoBERTa of today and of old, other predictors, other heads."""

import logging

import pytest
import torch

from tests.skimming.helpers import HEAD, PAD, build, features, pad, sentences, stock_twin
from tests.util import assert_close

TOKENS = pad(sentences([12, 5, 30]))
REAL = TOKENS.ne(PAD)


def test_a_vanilla_roberta_gives_the_same_features_and_logits(caplog: pytest.LogCaptureFixture):
    stock = stock_twin(build(skim=False, seed=3))
    ours = build(skim=False, seed=4)
    fresh = {name: value.clone() for name, value in ours.state_dict().items() if "skim_predictors" in name}
    with caplog.at_level(logging.INFO):
        ours.load_state_dict(stock.state_dict(), strict=True)
    assert "no skim predictor for layer 0, 1, 2: starts new" in caplog.text and ours.untrained_predictors == {0, 1, 2}
    assert_close({name: ours.state_dict()[name] for name in fresh}, fresh, 0, 0)
    for mode in ("masked", "auto"):
        with torch.no_grad():
            assert_close(features(ours, TOKENS, mode)[0][REAL], stock(TOKENS, features_only=True)[0][REAL])
            logits = stock(TOKENS, classification_head_name=HEAD)[0]
            assert_close(ours(TOKENS, classification_head_name=HEAD)[0], logits)
    ours.train()
    assert ours.untrained_predictors == set()


def test_old_names_are_read():
    """roberta.base and its kin: decoder.*, emb_layer_norm, no version, heads that this model lacks."""
    model = build(skim=False, seed=3)
    old = {}
    for key, value in stock_twin(model).state_dict().items():
        if key.endswith("version"):
            continue
        key = key.replace("encoder.", "decoder.", 1) if key.startswith("encoder.") else key
        old[key.replace("layernorm_embedding", "emb_layer_norm").replace(HEAD, "mnli")] = value
    ours = build(skim=False, seed=4)
    head = {name: value.clone() for name, value in ours.classification_heads.state_dict().items()}
    ours.load_state_dict({**old}, strict=True)
    with torch.no_grad():
        assert_close(features(ours, TOKENS, "masked")[0], features(model, TOKENS, "masked")[0], 0, 0)
    assert_close(dict(ours.classification_heads.state_dict()), head, 0, 0)
    again = build(skim=False, seed=5, load_checkpoint_heads=True)
    again.load_state_dict(old, strict=True)
    assert "mnli" in again.classification_heads


def test_a_checkpoint_of_ours_goes_round():
    model = build(num_segments=2)
    model.register_question_answering_head("squad")
    other = build(num_segments=2, seed=9)
    other.register_question_answering_head("squad")
    other.load_state_dict(model.state_dict(), strict=True)
    assert_close(dict(other.state_dict()), dict(model.state_dict()), 0, 0)
    assert other.untrained_predictors == set()


def test_predictors_of_other_layers():
    """Those that are not wanted are left out, those that are missing start new, and are known to be."""
    some, every = build(skim_layers="1"), build(seed=2)
    every.load_state_dict(some.state_dict(), strict=True)
    assert every.untrained_predictors == {0, 2}
    some.load_state_dict(build(seed=5).state_dict(), strict=True)
    assert some.untrained_predictors == set()
    none = build(skim_layers="none", seed=6)
    none.load_state_dict(build(seed=5).state_dict(), strict=True)
    assert none.untrained_predictors == set()


def test_a_predictor_of_another_width_does_not_fit():
    with pytest.raises(RuntimeError, match=r"size mismatch for encoder.sentence_encoder.skim_predictors.0.1.weight"):
        build(skim_predictor_dim=5).load_state_dict(build().state_dict())


def test_missing_segment_embeddings_are_zeros(caplog: pytest.LogCaptureFixture):
    plain, ours = build(skim=False), build(skim=False, num_segments=3, seed=4)
    with caplog.at_level(logging.WARNING):
        ours.load_state_dict(plain.state_dict(), strict=True)
    assert "no segment embeddings" in caplog.text
    with torch.no_grad():
        assert_close(features(ours, TOKENS, "masked")[0], features(plain, TOKENS, "masked")[0])


def test_question_answering_heads():
    """Loaded where there is one, registered if asked, left out where there is none or another kind."""
    model = build()
    model.register_question_answering_head("squad")
    state = model.state_dict()
    asked = build(seed=2, load_checkpoint_heads=True)
    asked.load_state_dict({**state}, strict=True)
    assert_close(dict(asked.classification_heads["squad"].state_dict()),
                 dict(model.classification_heads["squad"].state_dict()), 0, 0)  # fmt: skip
    without = build(seed=2)
    without.load_state_dict({**state}, strict=True)
    assert "squad" not in without.classification_heads
    other = build(seed=2)
    other.register_classification_head("squad", num_classes=2)
    before = other.classification_heads["squad"].out_proj.weight.clone()
    other.load_state_dict({**state}, strict=True)
    assert torch.equal(other.classification_heads["squad"].out_proj.weight, before)
    turned = build(seed=2)
    turned.register_question_answering_head(HEAD)  # was a classification head
    del turned.classification_heads["squad" if "squad" in turned.classification_heads else HEAD]
    turned.register_question_answering_head(HEAD)
    turned.load_state_dict({**build().state_dict()}, strict=True)
    assert turned.classification_heads[HEAD].out_proj.weight.shape == (2, 16)


def test_a_head_with_another_number_of_classes_starts_new():
    model, other = build(), build(seed=3)
    other.register_classification_head(HEAD, num_classes=5)
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.classification_heads[HEAD].out_proj.weight.shape == (5, 16)


def test_heads_without_weights_are_known():
    """fairseq lets them start at random, in silence: what predicts must not."""
    model, state = build(), build(seed=3).state_dict()
    model.register_question_answering_head("squad")
    model.load_state_dict({**state}, strict=True)
    assert model.untrained_heads == {"squad"}
    headless = {key: value for key, value in state.items() if not key.startswith("classification_heads.")}
    model.load_state_dict({**headless}, strict=True)
    assert model.untrained_heads == {HEAD, "squad"}
    other = build()
    other.register_classification_head(HEAD, num_classes=5)
    other.load_state_dict({**state}, strict=True)
    assert other.untrained_heads == {HEAD}
    other.load_state_dict(other.state_dict(), strict=True)
    assert other.untrained_heads == set()
    model.train()
    assert model.untrained_heads == set()


def test_no_tensor_hangs_on_a_module_after_a_forward():
    def held(model) -> set[tuple[str, str]]:
        found = set()
        for name, part in model.named_modules():
            for key, value in vars(part).items():
                if isinstance(value, torch.Tensor) or (
                    isinstance(value, list | tuple | dict)
                    and any(isinstance(v, torch.Tensor) for v in (value.values() if isinstance(value, dict) else value))
                ):
                    found.add((name, key))
        return found  # fmt: skip

    model = build()
    before = held(model)
    for mode in ("masked", "packed"):
        features(model, TOKENS, mode)
    model.train()
    features(model, TOKENS, "masked")
    assert held(model) == before
