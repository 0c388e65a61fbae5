"""The encoder: fairseq's numbers when it keeps all, the same numbers under a mask, packed, or by removal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_efficient.errors import UserError
from skimming.packed import encode_packed
from skimming.predictor import SkimPredictor, keeps, segments
from tests.skimming.helpers import (
    BOS,
    EOS,
    HEAD,
    PAD,
    RAGGED,
    VARIANTS,
    build,
    features,
    pad,
    sentences,
    set_options,
    stock_twin,
)
from tests.util import assert_close

BACKENDS = ("auto", "loop", "bucket", "padded")
every_variant = pytest.mark.parametrize("name", VARIANTS)
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of stock


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def removal(model, row: Tensor) -> tuple[Tensor, list[list[int]]]:
    """One sentence, layer by layer, with skipped tokens taken out for good: states (T, C), tokens of each layer."""
    encoder = model.encoder.sentence_encoder
    options = encoder.options
    x = encoder.forward_embedding(row[None])[0][0]
    ends = (row == EOS).long()
    free = torch.ones(len(row), dtype=torch.bool)
    free[0] = False
    if options.protect == "cls+sep":
        free &= row != EOS
    elif options.protect == "cls+question":
        free &= ends.cumsum(0) - ends > 0
    alive, kept, final = torch.arange(len(row)), [], x.clone()
    for number, layer in enumerate(encoder.layers):
        if str(number) in encoder.skim_predictors:
            logits = encoder.skim_predictors[str(number)](x)
            stays = keeps(logits, options.threshold) | ~free[alive]
            x, alive = x[stays], alive[stays]
        kept.append(alive.tolist())
        x = layer(x.unsqueeze(1), encoder_padding_mask=None).squeeze(1)
        final[alive] = x
    return (final if encoder.layer_norm is None else encoder.layer_norm(final)), kept


# --- P1: keeping all is fairseq's RoBERTa -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "pre_norm", "some_layers"])
@pytest.mark.parametrize("lengths", RAGGED)
def test_p1_keeping_all_is_stock(name: str, lengths: list[int]):
    """Bitwise under the mask, at pads too; to 1e-5 packed; features, a head, the language model and all states."""
    model = build(skim=False, **VARIANTS[name])
    stock, tokens = stock_twin(model), pad(sentences(lengths))
    real = tokens.ne(PAD)
    expected, states = stock(tokens, features_only=True, return_all_hiddens=True)
    masked, extra = features(model, tokens, "masked")
    assert torch.equal(masked, expected) and extra["stats"]["keep_ratio"][0] == 3 * real.sum()
    packed = features(model, tokens, "packed")[0]
    assert_close(packed[real], expected[real])
    assert (packed[~real] == 0).all() or name == "pre_norm"
    for mode in ("masked", "packed", "auto"):
        set_options(model, inference=mode)
        for more in ({"classification_head_name": HEAD}, {}):
            ours, theirs = model(tokens, **more)[0], stock(tokens, **more)[0]
            assert_close(ours if more else ours[real], theirs if more else theirs[real])
        own = model(tokens, features_only=True, return_all_hiddens=True)[1]["inner_states"]
        assert all(torch.equal(a, b) for a, b in zip(own, states["inner_states"], strict=True))


def test_p1_a_threshold_below_all_logits_keeps_all():
    model = build(skim_threshold=-1e9)
    tokens = pad(sentences([9, 5]))
    expected = stock_twin(model)(tokens, features_only=True)[0]
    assert torch.equal(features(model, tokens, "masked")[0], expected)
    real = tokens.ne(PAD)
    assert_close(features(model, tokens, "packed")[0][real], expected[real])


# --- P2, P8: one mask, three ways to apply it -------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("lengths", RAGGED)
def test_p2_masked_packed_and_removed_are_equal(name: str, lengths: list[int]):
    model, rows = build(**VARIANTS[name]), sentences(lengths)
    tokens = pad(rows)
    real = tokens.ne(PAD)
    masked, of_masked = features(model, tokens, "masked")
    for backend in BACKENDS:
        packed, of_packed = features(model, tokens, "packed", backend)
        assert_close(packed[real], masked[real])
        assert torch.equal(of_packed["skim_masks"], of_masked["skim_masks"])
        assert torch.equal(of_packed["skim_counts"].counts(), of_masked["skim_counts"].counts())
        assert_close(of_packed["skim_counts"].ratio(), of_masked["skim_counts"].ratio())
        assert_close(dict(of_packed["stats"]), dict(of_masked["stats"]), 0, 0)
        set_options(model, backend=backend)
        assert_close(model(tokens, classification_head_name=HEAD)[0], model.classification_heads[HEAD](masked))
    for number, row in enumerate(rows):
        states, kept = removal(model, row)
        assert_close(masked[number, : len(row)], states)
        for mask, places in zip(of_masked["skim_masks"][:, number], kept, strict=True):
            assert mask.nonzero().flatten().tolist() == places


@every_variant
def test_the_tiny_models_do_skip(name: str):
    """Else the test above would test nothing."""
    model = build(**VARIANTS[name])
    above, below = features(model, pad(sentences([30, 40, 22], seed=3)), "masked")[1]["stats"]["keep_ratio"]
    assert 0.2 < above / below < 0.97


@given(st.lists(st.integers(1, 14), min_size=1, max_size=5), st.integers(0, 2**20), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_p2_any_batch(lengths: list[int], seed: int, more: int):
    with torch.no_grad():
        model = build(seed % 7)
        tokens = pad(sentences(lengths, seed), max(lengths) + more)
        real = tokens.ne(PAD)
        masked, packed = (features(model, tokens, mode)[0] for mode in ("masked", "packed"))
        assert_close(packed[real], masked[real])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_p2_nothing_or_everything_is_kept(share: float):
    """All but the protected tokens skipped at once: <s> attends to itself alone."""
    model = build(skim_threshold=1e9 if share == 0 else -1e9)
    tokens = pad(sentences([7, 1, 12]))
    masked, extra = features(model, tokens, "masked")
    packed, _ = features(model, tokens, "packed")
    real = tokens.ne(PAD)
    assert_close(packed[real], masked[real])
    expected = [3, 3, 3] if share == 0 else [20, 20, 20]
    assert extra["skim_masks"].sum((1, 2)).tolist() == expected
    if share == 0:
        alone = features(model, torch.tensor([[BOS]]), "masked")[0][0, 0]
        assert_close(masked[:, 0], alone.expand(3, -1))


def test_p2_sentences_of_pads_only():
    model = build()
    for tokens in (torch.full((2, 4), PAD), torch.cat([pad(sentences([5, 3])), torch.full((1, 5), PAD)])):
        real = tokens.ne(PAD)
        masked, packed = (features(model, tokens, mode)[0] for mode in ("masked", "packed"))
        assert_close(packed[real], masked[real])
        assert packed.isfinite().all() and model(tokens, classification_head_name=HEAD)[0].isfinite().all()
        assert model(tokens, features_only=True)[1]["aux"]["skim"].isfinite()


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_p8_a_skipped_token_keeps_its_state(mode: str):
    """A token skipped before layer l ends as its state before l; before the first, as its embedding."""
    model, tokens = build(), pad(sentences([25, 11]))
    states = model(tokens, features_only=True, return_all_hiddens=True)[1]["inner_states"]
    out, extra = features(model, tokens, mode)
    alive = torch.cat([tokens.ne(PAD)[None].float(), extra["skim_masks"]])
    left = [(alive[number] > alive[number + 1]) for number in range(3)]
    assert all(rows.any() for rows in left)
    for number, rows in enumerate(left):
        assert_close(out[rows], states[number].transpose(0, 1)[rows], 1e-5 if mode == "packed" else 0, 0)
    embedded = model.encoder.sentence_encoder.forward_embedding(tokens)[0]
    assert_close(states[0].transpose(0, 1)[left[0]], embedded[left[0]])


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_every_token_has_a_question_answering_score(mode: str):
    model, tokens = build(), pad(sentences([9, 4]))
    model.register_question_answering_head("squad")
    set_options(model, inference=mode)
    logits = model(tokens, classification_head_name="squad")[0]
    assert logits.shape == (2, 9, 2)
    assert_close(logits, model.classification_heads["squad"](features(model, tokens, mode)[0]))


# --- P3: what is protected --------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("training", [False, True])
def test_p3_protected_tokens_stay_masks_only_shrink_and_pads_never_count(name: str, mode: str, training: bool):
    model = build(**VARIANTS[name]).train(training)
    tokens = pad(sentences([14, 3, 1, 40]))
    _, extra = features(model, tokens, mode)
    masks, real = extra["skim_masks"], tokens.ne(PAD)
    ends = tokens.eq(EOS) & real
    assert masks.shape == (3, 4, 40) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert (masks[:, :, 0] == 1).all() and (masks.diff(dim=0) <= 0).all() and (masks[:, ~real] == 0).all()
    protect = VARIANTS[name].get("skim_protect", "cls")
    if protect == "cls+sep":
        assert (masks[:, ends] == 1).all()
    if protect == "cls+question":
        question = real & (ends.cumsum(1) - ends.long() == 0)
        assert (masks[:, question] == 1).all() and question.sum() > 4
    assert torch.equal(extra["skim_counts"].counts(), masks.sum(-1).long())


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_p3_whatever_the_weights(scale: float):
    model = build()
    for predictor in model.encoder.sentence_encoder.skim_predictors.values():
        predictor[4].bias.copy_(torch.tensor([scale, -scale]))
    for mode in ("masked", "packed"):
        out, extra = features(model, pad(sentences([6, 12])), mode)
        assert out.isfinite().all() and (extra["skim_masks"][:, :, 0] == 1).all()


@pytest.mark.parametrize("protect", ["cls", "cls+sep", "cls+question"])
def test_the_predictor_sees_live_unprotected_tokens_only(protect: str, monkeypatch: pytest.MonkeyPatch):
    model, tokens, seen = build(skim_protect=protect), pad(sentences([20, 9, 1])), []
    stock = SkimPredictor.forward
    monkeypatch.setattr(SkimPredictor, "forward", lambda self, x: (seen.append(x.size(0)), stock(self, x))[1])
    _, extra = features(model, tokens, "packed")
    counts = extra["skim_counts"]
    before = [int(counts.lengths.sum()), *counts.counts().sum(1).tolist()[:-1]]
    assert seen == [n - int(counts.protected.sum()) for n in before]


# --- P4: batches and padding ------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_p4_neighbours_padding_and_order_change_nothing(name: str, mode: str):
    model, rows = build(**VARIANTS[name]), sentences([12, 3, 29, 1, 7])
    tokens = pad(rows, 35)
    set_options(model, inference=mode)
    logits, extra = model(tokens, classification_head_name=HEAD)
    ratio = extra["skim_counts"].ratio()
    order = [3, 1, 4, 0, 2]
    shuffled, of_shuffled = model(tokens[order], classification_head_name=HEAD)
    assert_close(shuffled, logits[order])
    assert_close(of_shuffled["skim_counts"].ratio(), ratio[order])
    for number, row in enumerate(rows):
        alone, of_alone = model(row[None], classification_head_name=HEAD)
        assert_close(alone[0], logits[number])
        assert_close(of_alone["skim_counts"].ratio()[0], ratio[number])
    parts = [model(pad(rows[some]), classification_head_name=HEAD)[1] for some in (slice(0, 2), slice(2, 5))]
    for key, (above, below) in extra["stats"].items():
        if key != "flops_ratio_padded":  # is about this batch's padding
            assert above == sum(part["stats"][key][0] for part in parts)
            assert below == sum(part["stats"][key][1] for part in parts)
    assert_close(extra["aux"]["skim"], sum(part["aux"]["skim"] for part in parts))


# --- flags ------------------------------------------------------------------------------------------------------------


def test_evaluation_draws_nothing_and_is_deterministic():
    model, tokens = build(encoder_layerdrop=0.5), pad(sentences([12, 7]))
    for mode in ("masked", "packed"):
        before = torch.get_rng_state()
        one, other = (features(model, tokens, mode)[0] for _ in range(2))
        assert torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


def test_eval_sample_draws_as_published():
    model, tokens = build(skim_eval_sample=True), pad(sentences([30, 30]))
    for mode in ("masked", "packed"):
        masks = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            masks.append(features(model, tokens, mode)[1]["skim_masks"])
        assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_a_higher_threshold_keeps_less():
    model, tokens = build(), pad(sentences([30, 22]))
    kept = []
    for threshold in (-5.0, -1.0, 0.0, 1.0, 5.0):
        set_options(model, threshold=threshold)
        above, below = features(model, tokens, "packed")[1]["stats"]["keep_ratio"]
        kept.append(float(above / below))
    assert kept == sorted(kept, reverse=True) and kept[0] > 0.9 and kept[-1] < 0.3


@pytest.mark.parametrize(("flags", "packs"), [
    ({}, True), ({"skim_attn": "postmult"}, False), ({"skim_norm": "padded"}, False), ({"skim_layers": "none"}, True),
    ({"skim_inference": "masked"}, False),
])  # fmt: skip
def test_auto_packs_where_that_computes_the_same(flags: dict, packs: bool):
    encoder = build(**flags).encoder.sentence_encoder
    assert encoder.runs_packed() == packs and not encoder.runs_packed(return_all_hiddens=True)
    encoder.train()
    assert not encoder.runs_packed()


def test_packed_skips_the_last_layers_other_tokens_for_a_head_that_reads_the_first(monkeypatch: pytest.MonkeyPatch):
    model, tokens = build(), pad(sentences([12, 7, 30]))
    padding = tokens.eq(PAD)
    encoder = model.encoder.sentence_encoder
    full, skimmed = encode_packed(encoder, tokens, padding)
    first, of_first = encode_packed(encoder, tokens, padding, first_only=True)
    assert full.shape == (30, 3, 16) and first.shape == (1, 3, 16)
    assert_close(first[0], full[0])
    assert torch.equal(skimmed.counts.counts(), of_first.counts.counts())


def test_token_embeddings_may_be_given():
    model, tokens = build(num_segments=2), pad(sentences([9, 4]))
    given_ones = model.encoder.sentence_encoder.embed_tokens(tokens) * 0.5
    set_options(model, inference="masked")
    masked = model(tokens, features_only=True, token_embeddings=given_ones)[0]
    set_options(model, inference="packed")
    packed = model(tokens, features_only=True, token_embeddings=given_ones)[0]
    real = tokens.ne(PAD)
    assert_close(packed[real], masked[real])
    assert (packed - model(tokens, features_only=True)[0])[real].abs().max() > 0.1


def test_segments_count_the_separators_before_a_token():
    tokens = torch.tensor([[BOS, 5, EOS, 6, EOS, EOS, 7], [BOS, EOS, EOS, EOS, EOS, PAD, PAD]])
    assert segments(tokens, EOS, 2).tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert segments(tokens, EOS, 9).tolist() == [[0, 0, 0, 1, 1, 2, 3], [0, 0, 1, 2, 3, 4, 4]]


def test_layer_norm_eps_is_everywhere_but_in_the_predictor():
    model = build(layer_norm_eps=1e-3)
    eps = {name: module.eps for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert len(eps) == 1 + 3 * 2 + 3 * 2 + 1
    assert all(value == (1e-5 if "skim_predictors" in name else 1e-3) for name, value in eps.items())


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_sentence_beyond_the_positions_is_one_line(mode: str):
    model = build()
    with pytest.raises(UserError, match="a sentence has 41 tokens, the model --max-positions 40"):
        features(model, pad(sentences([41, 3])), mode)
    features(model, pad(sentences([40, 3]), 60), mode)  # wider, but of pads


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_bfloat16_on_the_cpu_is_close(mode: str):
    model, tokens = build(), pad(sentences([20, 9]))
    expected, extra = features(model, tokens, mode)
    set_options(model, cpu_bf16=True)
    out, of_half = features(model, tokens, mode)
    same = (extra["skim_masks"] == of_half["skim_masks"]).float().mean()
    assert out.dtype == torch.float32 and same > 0.9
    assert (out[:, 0] - expected[:, 0]).norm() / expected[:, 0].norm() < 0.3


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    for name in ("plain", "bert", "late_compaction"):
        model = build(**VARIANTS[name])
        for mode in ("masked", "packed"):
            assert features(model, pad(sentences([9, 1, 30])), mode)[0].isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "bert", "protect_question", "late_compaction"])
def test_on_cuda(name: str, kind: torch.dtype):
    """The form for GPUs (ragged or padded attention, no host sync within a layer) decides and computes as the CPU's."""
    flags = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, **VARIANTS[name]}
    model, tokens = build(**flags), pad(sentences([40, 3, 17, 1, 26]))
    real = tokens.ne(PAD)
    expected, extra = features(model, tokens, "masked")
    model = model.to("cuda", kind)
    found, of_found = features(model, tokens.cuda(), "packed")
    same = (of_found["skim_masks"].cpu() == extra["skim_masks"]).float().mean()
    if kind == torch.float32:
        assert same == 1
        assert_close(found.cpu()[real], expected[real], 1e-3, 1e-3)
    else:  # near a threshold a decision may turn
        assert same > 0.9 and found.isfinite().all()
    logits = model(tokens.cuda(), classification_head_name=HEAD)[0]
    assert_close(logits.float(), model.classification_heads[HEAD](found).float(), 2e-2, 2e-2)
