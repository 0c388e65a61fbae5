"""The predictor: its start, its size, its precision; options and their mistakes."""

import dataclasses
import re

import pytest
import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from skimming import encoder as encoder_module
from skimming.config import ARCHITECTURES, SkimRobertaConfig
from skimming.criterion import SkimSentencePredictionConfig
from skimming.options import parse_layers, skim_options
from skimming.predictor import SkimPredictor, decide, protected_tokens
from skimming.squad_criterion import SkimQuestionAnsweringConfig
from tests.skimming.helpers import BOS, EOS, PAD, build, config, pad, sentences
from tests.util import assert_close


@pytest.mark.parametrize("bias", [5.0, 2.0])
def test_p9_the_keep_bias_survives_fairseqs_initialisation(bias: float):
    model = build(skim=False, skim_init_bias=bias, skim_predictor_dim=0)
    for predictor in model.encoder.sentence_encoder.skim_predictors.values():
        assert_close(predictor[4].bias, torch.tensor([-bias, bias]), 0.15, 0)
        assert predictor[4].weight.std() < 0.05 and (predictor[1].bias == 0).all()
        assert (predictor[0].weight == 1).all() and predictor[0].eps == predictor[2].eps == 1e-5
    deviations = [p[4].bias.abs() - bias for p in model.encoder.sentence_encoder.skim_predictors.values()]
    assert torch.stack(deviations).abs().max() > 0  # drawn, not set


def test_p9_a_new_model_keeps_nearly_all():
    torch.manual_seed(0)
    model = build(skim=False).train()
    kept, total = 0, 0
    for seed in range(20):
        counts = model(pad(sentences([40] * 8, seed)), features_only=True)[1]["skim_counts"].counts()
        kept, total = kept + int(counts.sum()), total + counts.numel() * 40
    assert kept / total > 0.999


@pytest.mark.parametrize(("dim", "hidden"), [(16, 16), (16, 4), (24, 24)])
def test_number_of_parameters(dim: int, hidden: int):
    count = sum(p.numel() for p in SkimPredictor(dim, hidden).parameters())
    assert count == 2 * dim + dim * hidden + hidden + 2 * hidden + 2 * hidden + 2
    assert hidden != dim or count == dim * dim + 7 * dim + 2


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_logits_are_fp32_under_any_precision(kind: torch.dtype):
    predictor, x = SkimPredictor(16, 8), torch.randn(3, 5, 16)
    expected = predictor(x)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predictor(x), expected)
    assert_close(predictor(x.to(kind)), predictor(x.to(kind).float()), 0, 0)
    half = predictor.to(kind)(x)
    assert half.dtype == torch.float32
    assert_close(half, expected, 0.1, 0)
    assert predictor.double()(x.double()).dtype == torch.float64


def test_decisions():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [-1e4, 1e4]])
    assert decide(logits, sample=False).tolist() == [1, 0, 0, 1]
    assert decide(logits, sample=False, threshold=1.0).tolist() == [0, 0, 0, 1]
    assert decide(logits, sample=False, threshold=-1.5).tolist() == [1, 1, 1, 1]
    assert not decide(logits.requires_grad_(), sample=False).requires_grad
    assert decide(logits, sample=True).requires_grad


def test_training_without_noise_decides_as_evaluation():
    logits = torch.randn(50, 7, 2).round().requires_grad_()  # with ties
    made = decide(logits, True, 0.7, 0.0, 0.0)
    assert torch.equal(made, decide(logits, False)) and not made.eq(1).all() and not made.eq(0).all()
    made.sum().backward()
    soft = torch.softmax(logits.detach() / 0.7, -1)[..., 1]
    expected = soft * (1 - soft) / 0.7
    assert logits.grad is not None
    assert_close(logits.grad, torch.stack([-expected, expected], -1))


@pytest.mark.parametrize("gap", [-1.0, 2.0])
def test_noise_is_scaled(gap: float):
    """Gumbel noise of scale s keeps a token with the probability of its logits divided by s."""
    draws = 100_000
    logits = torch.tensor([0.0, gap]).expand(draws, -1)
    share, expected = decide(logits, True, 1.0, 0.0, 0.5).mean(), torch.tensor(gap / 0.5).sigmoid()
    assert abs(float(share - expected)) <= 4 * float((expected * (1 - expected) / draws).sqrt())


def test_noise_falls_with_the_updates(monkeypatch: pytest.MonkeyPatch):
    """To 0 and no further, by fairseq's count of updates, in training alone."""
    given = []

    def decided(logits: Tensor, sample: bool, tau: float, threshold: float, noise: float) -> Tensor:
        given.append(noise)
        return decide(logits, sample, tau, threshold, noise)

    monkeypatch.setattr(encoder_module, "decide", decided)
    tokens = torch.tensor([[BOS, 5, 6, 7, EOS]])
    model = build(skim_noise=0.8, skim_noise_updates=10, skim_inference="masked").train()
    given.clear()
    model(tokens)
    for updates in (5, 10, 500, 0):
        model.set_num_updates(updates)
        model(tokens)
    layers = len(model.encoder.sentence_encoder.layers)
    assert given[::layers] == pytest.approx([0.8, 0.4, 0.0, 0.0, 0.8])
    given.clear()
    model.set_num_updates(500)
    assert build(skim_noise=0.0).encoder.sentence_encoder.noise == 0
    model.eval()(tokens)
    assert set(given) == {1.0}  # --skim-eval-sample draws as published


@pytest.mark.parametrize("gap", [-3.0, 0.0, 1.5, 4.0])
@pytest.mark.parametrize("tau", [0.2, 1.0, 3.0])
def test_p6_a_token_stays_with_the_probability_of_its_logits(gap: float, tau: float):
    draws = 100_000
    logits = torch.tensor([0.3, 0.3 + gap]).expand(draws, -1)
    share, expected = decide(logits, True, tau).mean(), torch.tensor(gap).sigmoid()
    assert abs(float(share - expected)) <= 4 * float((expected * (1 - expected) / draws).sqrt()) + 1e-9


def test_protected_tokens():
    tokens = torch.tensor([[BOS, 5, EOS, EOS, 6, EOS, PAD], [BOS, EOS, PAD, PAD, PAD, PAD, PAD]])
    found = {
        kind: protected_tokens(tokens, tokens.eq(PAD), EOS, kind).long().tolist()
        for kind in ("cls", "cls+sep", "cls+question")
    }
    assert found["cls"] == [[1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert found["cls+sep"] == [[1, 0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0]]
    assert found["cls+question"] == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    left = torch.tensor([[PAD, PAD, BOS, 5]])
    assert protected_tokens(left, left.eq(PAD), EOS, "cls").tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", (0, 1, 2, 3)),
        ("none", ()),
        (" ALL ", (0, 1, 2, 3)),
        ("0,2", (0, 2)),
        ("1-3", (1, 2, 3)),
        ("3, 0-1", (0, 1, 3)),
    ],
)
def test_layers(text: str, layers: tuple[int, ...]):
    assert parse_layers(text, 4) == layers


def test_new_models_are_as_published_but_for_what_is_said():
    """Defaults: flags that bring the published behaviour back are off, all others are the paper's."""
    model = {
        "skim_predictor_dim": 0, "skim_init_bias": 5.0, "skim_tau": 1.0, "skim_noise": 1.0,
        "skim_noise_updates": 0, "skim_attn": "renorm", "skim_protect": "cls",
        "skim_layers": "all", "skim_inference": "auto", "skim_backend": "auto", "skim_threshold": 0.0,
        "skim_compact_threshold": 0.0, "skim_eval_sample": False, "skim_norm": "real", "skim_lr_scale": 1.0,
        "layer_norm_eps": 1e-5, "num_segments": 0,
    }  # fmt: skip
    loss = {"skim_lambda": 0.5, "skim_target_ratio": None, "skim_lambda_warmup": 0, "skim_teacher": None}
    for config_class, expected in ((SkimRobertaConfig, model), (SkimSentencePredictionConfig, loss),
                                   (SkimQuestionAnsweringConfig, loss)):  # fmt: skip
        flags = {one.name: one for one in dataclasses.fields(config_class)}
        assert {name: flags[name].default for name in expected} == expected
        assert all(flags[name].metadata["help"] for name in expected)
    bert = {"layer_norm_eps": 1e-12, "num_segments": 2}
    assert ARCHITECTURES["skim_bert_base"] == bert and bert.items() <= ARCHITECTURES["skim_minilm_l6"].items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"skim_layers": "0,4"}, "--skim-layers 0,4: layers are numbered 0 to 2"),
        ({"skim_layers": "2-1"}, "--skim-layers 2-1: layers are numbered"),
        ({"skim_layers": "first"}, "--skim-layers first: expected all, none, or numbers such as 0,2,4-5"),
        ({"skim_layers": "-1"}, "--skim-layers -1: expected all, none"),
        ({"skim_layers": ""}, "--skim-layers : expected all"),
        ({"skim_tau": 0.0}, "--skim-tau 0.0: must be greater than 0"),
        ({"skim_lr_scale": 0.0}, "--skim-lr-scale 0.0: must be greater than 0"),
        ({"skim_tau": float("nan")}, "--skim-tau nan: must be greater than 0"),
        ({"skim_noise": -1.0}, "--skim-noise -1.0: must be at least 0"),
        ({"skim_noise_updates": -5}, "--skim-noise-updates -5: must be at least 0"),
        ({"layer_norm_eps": 0.0}, "--layer-norm-eps 0.0: must be greater than 0"),
        ({"skim_predictor_dim": -1}, "--skim-predictor-dim -1: must be at least 0"),
        ({"num_segments": -2}, "--num-segments -2: must be at least 0"),
        ({"skim_threshold": float("nan")}, "--skim-threshold nan: must be a number"),
        ({"skim_compact_threshold": 1.0}, "--skim-compact-threshold 1.0: must be at least 0 and below 1"),
        ({"skim_compact_threshold": -0.1}, "--skim-compact-threshold -0.1: must be at least 0 and below 1"),
        ({"encoder_attention_heads": 3}, "--encoder-attention-heads 3 must divide --encoder-embed-dim 16"),
        ({"encoder_layers": 0}, "--encoder-layers 0: must be at least 1"),
        ({"attention_dropout": 1.0}, "--attention-dropout 1.0: must be at least 0 and below 1"),
        ({"skim_attn": "postmult", "skim_inference": "packed"}, "--skim-attn postmult is not removal of tokens"),
        ({"skim_norm": "padded", "skim_inference": "packed"}, "--skim-norm padded counts padding"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(flags: dict, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        skim_options(config(**flags))
    with pytest.raises(UserError, match=re.escape(message)):
        build(skim=False, **flags)
