"""What training computes: the same as inference for the same decisions, and gradients that reach every decision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from skimming import encoder as encoder_module
from skimming.predictor import keeps
from tests.skimming.helpers import HEAD, PAD, VARIANTS, build, features, pad, sentences, set_options
from tests.util import assert_close

LENGTHS = [12, 5, 17]
DECISIONS = pytest.mark.parametrize("name", ["plain", "pre_norm", "protect_sep", "some_layers"])


def decide_by(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Replace decisions in the encoder by ``rule(logits)``, leaves with a gradient; returns the list they appear in."""
    made: list[Tensor] = []

    def decide(logits: Tensor, *_: Any) -> Tensor:
        made.append(rule(logits.detach()).to(logits.dtype).requires_grad_())
        return made[-1]

    monkeypatch.setattr(encoder_module, "decide", decide)
    return made


def at_random(logits: Tensor) -> Tensor:
    return (torch.rand(logits.shape[:-1]) < 0.6).to(logits.dtype)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rule", ["renorm", "postmult"])
def test_training_computes_what_inference_does(name: str, rule: str, monkeypatch: pytest.MonkeyPatch):
    """For equal decisions: the learned mask's attention against fairseq's own with hidden keys."""
    model, tokens = build(skim_attn=rule, **VARIANTS[name]), pad(sentences(LENGTHS))
    with torch.no_grad():
        expected, extra = features(model, tokens, "masked")
    threshold = model.encoder.sentence_encoder.options.threshold
    made = decide_by(monkeypatch, lambda logits: keeps(logits, threshold))
    quiet = {"quant_noise_pq": 0.0} if name == "quant_noise" else {}
    if quiet:
        for module in model.modules():
            module._forward_pre_hooks.clear()
    model.train()
    out, of_training = features(model, tokens, "masked")
    real = tokens.ne(PAD)
    assert_close(out[real], expected[real])
    assert torch.equal(of_training["skim_masks"], extra["skim_masks"]) and made
    assert of_training["aux"]["skim"].requires_grad and of_training["skim_masks"].requires_grad


@DECISIONS
def test_p5_the_skim_loss_has_its_closed_form_gradient(name: str, monkeypatch: pytest.MonkeyPatch):
    """dL/ds_kj = 1/(L n) A_{k-1,j} sum_{l >= k} prod_{k < q <= l} s_qj; nothing for a token that is gone already."""
    model, tokens = build(**VARIANTS[name]).train(), pad(sentences(LENGTHS))
    made = decide_by(monkeypatch, at_random)
    _, extra = model(tokens, features_only=True)
    grads = torch.autograd.grad(extra["aux"]["skim"], made)
    layers, total = model.encoder.sentence_encoder.options.layers, 3
    protected = encoder_module.protected_tokens(
        tokens, tokens.eq(PAD), 2, model.encoder.sentence_encoder.options.protect
    )
    drawn = dict(zip(layers, made, strict=True))
    s = [
        drawn[k].detach().masked_fill(protected, 1.0) if k in drawn else torch.ones(tokens.shape) for k in range(total)
    ]
    found = 0
    for grad, k in zip(grads, layers, strict=True):
        alive = torch.ones_like(s[0])
        for before in s[:k]:
            alive = alive * before
        later, product = torch.zeros_like(s[0]), torch.ones_like(s[0])
        for number in range(k, total):
            product = product * s[number] if number > k else product
            later = later + product
        free = (tokens.ne(PAD) & ~protected).float()
        expected = free * alive * later / total / tokens.ne(PAD).sum(1, keepdim=True)
        assert_close(grad, expected, 1e-7)
        assert (grad[alive == 0] == 0).all()
        found += int((grad != 0).sum())
    assert found > 20


def test_p5_soft_masks_have_finite_difference_gradients(monkeypatch: pytest.MonkeyPatch):
    """Through attention, forwarding and the loss together, in float64 (fairseq's gelu is fp32)."""
    torch.manual_seed(0)
    model, tokens = build(encoder_layers=2, activation_fn="tanh").double().train(), pad(sentences([5, 3]))
    soft = [(0.2 + 0.6 * torch.rand(2, 5, dtype=torch.double)).requires_grad_() for _ in range(2)]

    def loss(*given: Tensor) -> Tensor:
        left = list(given)
        monkeypatch.setattr(encoder_module, "decide", lambda *_: left.pop(0))
        out, extra = model(tokens, classification_head_name=HEAD)
        return out.cos().sum() + extra["aux"]["skim"] + extra["skim_masks"].square().sum()

    assert torch.autograd.gradcheck(loss, soft)


def test_p5_the_task_reaches_decisions_through_attention_and_forwarding(monkeypatch: pytest.MonkeyPatch):
    model, tokens = build().train(), pad(sentences([9, 9]))
    made = decide_by(monkeypatch, at_random)
    out, _ = model(tokens, features_only=True)
    by_attention = torch.autograd.grad(out[:, 0].square().sum(), made, retain_graph=True)
    assert all((grad[:, 1:] != 0).any() for grad in by_attention)
    kept, gone = made[0].detach() == 1, made[0].detach() == 0
    assert (by_attention[0][gone][1:] != 0).any()  # a skipped token may be called back
    assert all((grad[:, 0] == 0).all() for grad in by_attention)  # <s> is protected
    own = torch.autograd.grad(out[:, 4].sum(), made)[0]
    assert (own[:, 4] != 0).all() and kept.any()


@pytest.mark.parametrize("rule", ["renorm", "postmult"])
def test_all_parameters_learn(rule: str):
    """Also where a layer's decisions skip nothing; opposite gradients for the two logits."""
    torch.manual_seed(0)
    model, tokens = build(skim_attn=rule, num_segments=2).train(), pad(sentences([12, 9, 15, 3]))
    out, extra = model(tokens, classification_head_name=HEAD)
    (out.square().sum() + 10 * extra["aux"]["skim"]).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("encoder.lm_head")]
    assert silent == []
    for predictor in model.encoder.sentence_encoder.skim_predictors.values():
        grad = predictor[4].bias.grad
        assert grad.abs().sum() > 0 and abs(float(grad.sum())) < 1e-4 * float(grad.abs().sum()) + 1e-6
        assert all(p.grad.isfinite().all() for p in predictor.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 1e4, -1e4])
def test_p5_half_precision_models_stay_finite(kind: torch.dtype, bias: float):
    """As fairseq's --fp16 and --bf16 convert them; with logits of +-1e4, and all but the first token skipped."""
    torch.manual_seed(0)
    model, tokens = build(), pad(sentences([12, 5, 1]))
    with torch.no_grad():
        for predictor in model.encoder.sentence_encoder.skim_predictors.values():
            predictor[4].bias += torch.tensor([-bias, bias])
    model = model.to(kind).train()
    out, extra = model(tokens, classification_head_name=HEAD)
    (out.float().square().sum() + extra["aux"]["skim"]).backward()
    assert out.dtype == kind and extra["skim_masks"].dtype == extra["aux"]["skim"].dtype == torch.float32
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        for mode in ("masked", "packed"):
            assert features(model.eval(), tokens, mode)[0].isfinite().all()


def test_bfloat16_autocast_trains_close_to_fp32(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    tokens, grads = pad(sentences([20, 9])), []
    fixed = (torch.rand(3, 2, 20) < 0.6).float()
    models = [build(cpu_bf16=half).train() for half in (False, True)]
    for model in models:
        left = list(fixed)
        monkeypatch.setattr(encoder_module, "decide", lambda logits, *_, left=left: left.pop(0) + 0 * logits[..., 1])
        out, _ = model(tokens, classification_head_name=HEAD)
        out.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert all(g.isfinite().all() for g in grads)
    assert torch.cosine_similarity(*grads, dim=0) > 0.95


def test_checkpointed_activations_change_nothing():
    tokens, grads = pad(sentences([12, 7])), []
    for flags in ({}, {"checkpoint_activations": True}):
        model = build(dropout=0.1, attention_dropout=0.2, **flags).train()
        torch.manual_seed(5)
        out, extra = model(tokens, classification_head_name=HEAD)
        (out.square().sum() + extra["aux"]["skim"]).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 40
    assert_close(grads[1], grads[0], 1e-6, 1e-5)


@pytest.mark.parametrize("flags", [{"encoder_layerdrop": 0.5}, {"quant_noise_pq": 0.3, "quant_noise_pq_block_size": 4}])
def test_layerdrop_and_quant_noise_train(flags: dict):
    torch.manual_seed(1)
    model, tokens = build(**flags).train(), pad(sentences([12, 7]))
    seen = set()
    for _ in range(20):
        out, extra = model(tokens, classification_head_name=HEAD)
        (out.square().sum() + extra["aux"]["skim"]).backward()
        kept = extra["skim_counts"].counts()
        assert (kept.diff(dim=0) <= 0).all() and kept.shape == (3, 2)
        seen.add(tuple(int(b == a) for a, b in zip(extra["skim_counts"].lengths, kept[0], strict=True)))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_noise_is_drawn_in_training_only_and_is_another_in_each_layer():
    model, tokens = build(), pad(sentences([40, 40]))
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(model.train()(tokens, features_only=True)[1]["skim_masks"])
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    model = build(skim=False, encoder_layers=2)
    with torch.no_grad():
        for predictor in model.encoder.sentence_encoder.skim_predictors.values():
            predictor[4].weight.zero_()
            predictor[4].bias.zero_()  # every decision is a fair coin
    model.train()
    first, both = 0.0, 0.0
    for _ in range(30):
        mask = model(tokens, features_only=True)[1]["skim_masks"][:, :, 1:].detach()
        first, both = first + float(mask[0].mean()) / 30, both + float(mask[1].mean()) / 30
    assert abs(first - 0.5) < 0.05 and abs(both - 0.25) < 0.05


def test_padding_counts_where_it_did_as_published():
    model, tokens = build(skim_norm="padded", skim=False).train(), pad(sentences([9, 4]), 12)
    extra = model(tokens, features_only=True)[1]
    assert_close(extra["aux"]["skim"], torch.tensor(2.0), 1e-6)  # all of 12, of two sentences
    with torch.no_grad():
        for predictor in model.encoder.sentence_encoder.skim_predictors.values():
            predictor[4].bias.copy_(torch.tensor([50.0, -50.0]))
    extra = model(tokens, features_only=True)[1]
    assert_close(extra["aux"]["skim"], torch.tensor(2 / 12), 1e-6)
    for layers in ("1", "none"):  # layers that nothing decides for keep all, pads too
        some = build(skim_norm="padded", skim=False, skim_layers=layers, skim_threshold=-1e9)
        assert_close(some(tokens, features_only=True)[1]["aux"]["skim"], torch.tensor(2.0), 1e-6)
    set_options(model, count_padding=False)
    assert_close(model(tokens, features_only=True)[1]["aux"]["skim"], torch.tensor(1 / 9 + 1 / 4), 1e-6)
