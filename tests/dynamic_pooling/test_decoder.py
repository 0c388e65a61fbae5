"""The hourglass on whole sequences: causality, padding, equality with loops, gradients, options."""

import pytest
import torch
from torch import Tensor

from dynamic_pooling.causality import check_causality
from dynamic_pooling.config import BOUNDARIES
from dynamic_pooling.decoder import HourglassDecoder, HourglassOptions
from dynamic_pooling.model import DynamicPoolingModel, hourglass_options
from fairseq_efficient.errors import UserError
from fairseq_efficient.originals import BareTypes
from tests.dynamic_pooling.helpers import POOLED, SPACE, WORDS, config, decoder, model, text
from tests.util import assert_close

VARIANTS = [
    {},
    {"position_encoding": "rotary"},
    {"pooling": "last"},
    {"packed_shortened": True},
    {"packed_shortened": True, "position_encoding": "rotary"},
    {"shortened_embed_dim": 24, "shortened_attention_heads": 3, "shortened_ffn_embed_dim": 20},
    {"decoder_normalize_before": True},
]
SMOOTH = [{"upsampling": "smooth"}, {"upsampling": "smooth", "packed_shortened": True, "pooling": "last"}]


def cases() -> list:
    found = [(kind, {}) for kind in BOUNDARIES] + [("none", {"position_encoding": "rotary"})]
    found += [(kind, flags) for kind in ("whitespaces", "entropy") for flags in VARIANTS[1:]]
    found += [("gumbel", flags) for flags in [*VARIANTS[1:2], *SMOOTH]]
    return [pytest.param(kind, flags, id="-".join([kind, *map(str, flags.values())])) for kind, flags in found]


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize(("kind", "flags"), cases())
def test_p1_later_tokens_change_nothing(kind: str, flags: dict, sample: bool):
    built, tokens = decoder(kind, **flags), text(40, 40, seed=3)

    def logits(rows: Tensor) -> Tensor:
        torch.manual_seed(5)
        return built(rows, sample_boundaries=sample)[0]

    base = logits(tokens)
    for place in (1, 2, 9, 23, 39):
        changed = torch.cat([tokens[:, :place], text(40, 40, seed=place)[:, place:]], 1)
        assert_close(logits(changed)[:, :place], base[:, :place], 1e-12, 1e-12)
        assert not torch.allclose(logits(changed)[:, place:], base[:, place:])


@pytest.mark.parametrize(("kind", "flags"), cases())
def test_p11_padding_and_batch_mates_change_nothing(kind: str, flags: dict):
    built, tokens = decoder(kind, **flags), text(31, 7, 1, 18)
    logits, extra = built(tokens, boundary_targets=tokens == SPACE)
    lengths = tokens.ne(WORDS.pad()).sum(1).tolist()
    alone = [built(tokens[row : row + 1, :n], boundary_targets=tokens[row : row + 1, :n] == SPACE)
             for row, n in enumerate(lengths)]  # fmt: skip
    for row, (n, (expected, _)) in enumerate(zip(lengths, alone, strict=True)):
        assert_close(logits[row : row + 1, :n], expected, 1e-10, 1e-10)
    for name in extra.get("stats", {}):
        total = sum(one["stats"][name] for _, one in alone)
        assert_close(extra["stats"][name].double(), total.double(), 1e-9, 1e-9)
    for name in extra.get("aux", {}):
        assert_close(extra["aux"][name], sum(one["aux"][name] for _, one in alone), 1e-6, 1e-6)


def test_padding_on_the_left_is_moved():
    built, tokens = decoder("entropy"), text(20, 12)
    crooked = torch.stack([tokens[0], torch.cat([tokens[1, 12:], tokens[1, :12]])])
    right, left = built(tokens), built(crooked)
    assert_close(left[0][1, 8:], right[0][1, :12], 1e-10, 1e-10)
    assert torch.equal(left[1]["boundaries"][1, 8:], right[1]["boundaries"][1, :12])
    assert_close(left[1]["aux"], right[1]["aux"], 1e-6, 1e-6)


def by_hand(built: HourglassDecoder, tokens: Tensor, closed: Tensor) -> Tensor:
    """One row (T,) with loops over segments, through the same stacks."""
    h = built.pre(built.embed_tokens(tokens)[None], built.token_positions(len(tokens), built.null_segment))[0]
    segments, current = [built.null_segment], []
    for t in range(len(tokens)):
        current.append(h[t])
        if closed[t]:
            segments.append(torch.stack(current).mean(0))
            current = []
    s = built.segment_layer_norm(torch.stack(segments))
    z = built.short(s[None], built.segment_positions(len(s), s))[0]
    read = torch.stack([z[int(closed[: t + 1].sum())] for t in range(len(tokens))])
    y = built.post((read + h)[None], built.token_positions(len(tokens), h))
    return built.output_projection(y)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("closed", ["random", "none", "all"])
def test_p3_the_batch_equals_loops(closed: str, rotary: bool):
    built = decoder("fixed", position_encoding="rotary" if rotary else "relative")
    tokens = text(25, 25, 25)
    b = {"random": torch.rand(3, 25) < 0.3, "none": torch.zeros(3, 25, dtype=torch.bool),
         "all": torch.ones(3, 25, dtype=torch.bool)}[closed]  # fmt: skip
    logits, extra = built(tokens, boundaries=b)
    assert torch.equal(extra["boundaries"], b)
    for row in range(3):
        assert_close(logits[row : row + 1], by_hand(built, tokens[row], b[row]), 1e-10, 1e-10)


@pytest.mark.parametrize("kind", POOLED)
def test_one_token(kind: str):
    logits, extra = decoder(kind)(text(1, 1))
    assert logits.shape == (2, 1, len(WORDS)) and bool(logits.isfinite().all())
    assert all(bool(value.isfinite()) for value in extra["aux"].values())


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
def test_p9_fixed_phases(every: int):
    tokens = text(30, 30)
    place = torch.arange(30)
    for phase, expected in (("paper", place % every == every - 1), ("orig", place % every == 0)):
        found = decoder("fixed", fixed_sf=every, fixed_phase=phase)(tokens)[1]["boundaries"]
        assert torch.equal(found, expected.expand(2, -1))


def test_p9_whitespaces_close_at_spaces_and_eos():
    tokens = text(50, 50)
    found = decoder("whitespaces")(tokens)[1]["boundaries"]
    assert torch.equal(found, tokens.eq(SPACE) | tokens.eq(WORDS.eos()))


def test_p12_the_shortening_factor_is_a_recount():
    tokens = text(33, 20, 5)
    for kind in POOLED:
        extra = decoder(kind)(tokens)[1]
        assert int(extra["stats"]["tokens"]) == 58
        assert int(extra["stats"]["closed"]) == int(extra["boundaries"].sum())
        assert not bool((extra["boundaries"] & tokens.eq(WORDS.pad())).any())


def test_gumbel_evaluation_is_the_threshold_unless_asked_otherwise():
    tokens = text(40)
    built = decoder("gumbel")
    assert torch.equal(built(tokens)[0], built(tokens)[0])
    h = built.pre(built.embed_tokens(tokens), built.token_positions(40, built.null_segment))
    assert torch.equal(built(tokens)[1]["boundaries"], built.boundary_rule.predictor(h) > 0)
    drawn = {tuple(decoder("gumbel", gumbel_eval="sampled")(tokens)[1]["boundaries"][0].tolist()) for _ in range(8)}
    torch.manual_seed(1)
    many = {tuple(built(tokens, sample_boundaries=True)[1]["boundaries"][0].tolist()) for _ in range(8)}
    assert len(many) > 1 and len(drawn) >= 1


@pytest.mark.parametrize("temp", [0.1, 0.5, 5.0])
def test_p7_the_sampled_rate_is_the_probability(temp: float):
    rule = decoder("gumbel", temp=temp, double=False).boundary_rule
    for p in (0.05, 0.3, 0.8):
        rule.predictor.forward = lambda x, p=p: torch.full(x.shape[:-1], p).logit()
        values = rule(torch.zeros(10, 5000), torch.zeros(10, 5000, 16), sample=True).values
        assert abs(float(values.float().mean()) - p) < 0.01


# --- gradients --------------------------------------------------------------------------------------------------------


def predictor_gradient(kind: str, of: str, **flags: object) -> tuple[Tensor, Tensor]:
    """Gradients of the LM loss or the boundary loss at the predictor and at the token layers."""
    built = decoder(kind, **flags).train()
    tokens = text(60, 60)
    logits, extra = built(tokens, boundary_targets=tokens == SPACE)
    loss = logits.log_softmax(-1)[..., 5].sum() if of == "lm" else extra["aux"]["boundary"]
    names = (built.boundary_rule.predictor.fc1.weight, built.pre.layers[0].fc1.weight)
    grads = torch.autograd.grad(loss, names, allow_unused=True)
    return tuple(torch.zeros(1) if grad is None else grad for grad in grads)


@pytest.mark.parametrize("kind", ["unigram", "entropy", "gumbel"])
def test_p6_who_teaches_the_predictor(kind: str):
    by_lm = predictor_gradient(kind, "lm")[0]
    assert bool(by_lm.abs().sum() > 0) == (kind == "gumbel")
    for grad in predictor_gradient(kind, "aux"):
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["unigram", "entropy", "gumbel"])
def test_smooth_upsampling_teaches_every_predictor(kind: str):
    assert predictor_gradient(kind, "lm", upsampling="smooth")[0].abs().sum() > 0


def test_ratio_loss_and_the_second_estimator_are_used():
    for flags in ({"rate_loss": "ratio"}, {"straight_through": "both"}):
        base = predictor_gradient("gumbel", "aux" if "rate_loss" in flags else "lm")[0]
        assert not torch.allclose(
            base, predictor_gradient("gumbel", "aux" if "rate_loss" in flags else "lm", **flags)[0]
        )


def test_teacher_forcing_ends_and_never_reaches_evaluation():
    built, tokens = decoder("unigram", teacher_forcing_updates=3), text(40)
    targets = torch.rand(1, 40) < 0.3
    own = built(tokens)[1]["boundaries"]
    for updates, training, expected in ((0, True, targets), (2, True, targets), (3, True, own), (0, False, own)):
        built.train(training).set_num_updates(updates)
        assert torch.equal(built(tokens, boundary_targets=targets)[1]["boundaries"], expected)


_EACH = [(loss, alpha) for loss in ("binomial", "ratio") for alpha in (0.1, 0.2, 0.5)]


@pytest.mark.parametrize(
    ("loss", "alpha"), [pytest.param(*one, marks=pytest.mark.full if one[1] != 0.2 else ()) for one in _EACH]
)
def test_p7_the_prior_draws_the_rate_to_itself(alpha: float, loss: str):
    built = decoder("gumbel", prior=alpha, rate_loss=loss, double=False, init_std=0.1).train()
    optimizer = torch.optim.Adam(built.parameters(), 0.01)
    tokens = text(*[200] * 8)
    for _ in range(150):
        loss_ = built(tokens)[1]["aux"]["boundary"] / tokens.numel()
        optimizer.zero_grad()
        loss_.backward()
        optimizer.step()
    rates = [built(tokens)[1]["stats"]["closed"] / tokens.numel() for _ in range(20)]
    assert abs(float(sum(rates)) / 20 - alpha) < (0.01 if loss == "binomial" else 0.03)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layers", "expected"),
    [
        ("none", "[12, (0,), 0]", 41_009_179),
        ("whitespaces", "[2, (8,), 2]", 41_010_715),
        ("gumbel", "[2, (8,), 2]", 41_010_715 + 1_052_673),
        ("none", "[8, (0,), 0]", 27_350_000),
        ("none", "[20, (0,), 0]", 68_330_000),
    ],
)
def test_p13_parameter_counts_of_the_paper(kind: str, layers: str, expected: int):
    cfg = config(kind, model_config=layers)
    for name, value in {"decoder_embed_dim": 512, "decoder_ffn_embed_dim": 2048, "decoder_attention_heads": 8}.items():
        setattr(cfg, name, value)
    with torch.device("meta"):
        built = HourglassDecoder(BareTypes(27, 0), hourglass_options(cfg, BareTypes(27, 0)))
    count = sum(p.numel() for p in built.parameters())
    assert count == expected if expected % 10_000 else abs(count - expected) < 10_000
    assert ("null_segment" in dict(built.named_parameters())) == (kind != "none")


def test_a_vanilla_model_has_no_pooling():
    built = decoder("none")
    assert built.boundary_rule is None and not any("segment" in name for name, _ in built.named_parameters())
    assert "stats" not in built(text(5))[1]


# --- the self-check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_the_causality_check_passes_and_disturbs_nothing(kind: str):
    built = model(kind, double=False).train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert check_causality(built, len(WORDS)) < 5
    assert torch.equal(torch.get_rng_state(), state) and built.training


def test_the_causality_check_finds_a_leak():
    built = model("whitespaces", double=False)
    attention = built.decoder.short.layers[0].self_attn
    stock = attention.forward
    attention.forward = lambda x, *more: stock(x, *more) + 1e-3 * x.mean(1, keepdim=True)
    with pytest.raises(UserError, match="not causal"):
        check_causality(built, len(WORDS))


def test_options_are_plain_values():
    assert isinstance(decoder().options, HourglassOptions) and isinstance(model(), DynamicPoolingModel)
