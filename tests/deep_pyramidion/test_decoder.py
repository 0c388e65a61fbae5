"""Decoding: token by token equals all at once, and beam search equals fairseq's stock decoder."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment
from torch import Tensor, nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.modules.cached_attention import CachedCrossAttention, CachedSelfAttention
from fairseq_efficient.state import CrossAttentionCache, SelfAttentionCache
from tests.deep_pyramidion.helpers import (
    EOS,
    FIRST_WORD,
    NO_POOLING,
    PAD,
    VARIANTS,
    build,
    dictionary,
    documents,
    pad,
    prefixes,
    stock_twin,
)
from tests.util import assert_close

every_variant = pytest.mark.parametrize("name", VARIANTS)
SOURCES = [64, 9, 30]
TARGETS = [12, 5, 9]


def caches(state: dict, kind: type) -> list[Any]:
    return [value for value in state.values() if isinstance(value, kind)]


def step_logits(model: Any, prefix: Tensor, encoded: dict, state: dict, upto: int) -> Tensor:
    return model.decoder(prefix[:, : upto + 1], encoded, state)[0][:, -1]


STEPS = [(name, side) for name in VARIANTS for side in ("right", "left")]


@pytest.mark.parametrize(
    ("name", "side"),
    STEPS,
)
@torch.no_grad()
def test_p17_step_by_step_is_all_at_once(name: str, side: str):
    """Ragged targets, padded on either side."""
    model = build(**VARIANTS[name])
    encoded = model.encoder(pad(documents(SOURCES), "left"))
    prefix = pad(prefixes(documents(TARGETS, 1)), side)
    full, state = model.decoder(prefix, encoded)[0], {}
    steps = torch.stack([step_logits(model, prefix, encoded, state, t) for t in range(prefix.size(1))], 1)
    assert_close(steps[prefix != PAD], full[prefix != PAD])


@every_variant
@torch.no_grad()
def test_p17_after_reordering_beams(name: str):
    """Rows change places, are doubled and dropped, sentences finish: each row stays its own history."""
    model, beam, draw = build(**VARIANTS[name]), 3, torch.Generator().manual_seed(2)
    encoded = model.encoder(pad(documents(SOURCES), "left"))
    everything = encoded
    rows = torch.arange(3).repeat_interleave(beam)  # the sentence of each row
    encoded = model.encoder.reorder_encoder_out(encoded, rows)
    tokens, state = torch.full((9, 1), EOS), {}
    for step in range(40):
        logits = step_logits(model, tokens, encoded, state, step)
        alone = model.encoder.reorder_encoder_out(everything, rows)
        assert_close(logits, model.decoder(tokens, alone)[0][:, -1])
        sentences = torch.arange(rows.numel() // beam)
        if step == 5:
            sentences = torch.tensor([0, 2])  # the second is done
        if step == 20:
            sentences = torch.tensor([1])
        order = torch.randint(0, beam, (sentences.numel(), beam), generator=draw) + sentences.unsqueeze(1) * beam
        order = order.flatten()
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoded = model.encoder.reorder_encoder_out(encoded, order)
        rows = rows[order]
        words = torch.randint(FIRST_WORD, 30, (order.numel(), 1), generator=draw)
        tokens = torch.cat([tokens[order], words], 1)[:, :31] if step < 30 else tokens[order]
        if step == 29:
            break
    assert rows.unique().tolist() == [2]


@torch.no_grad()
def test_a_decoder_without_positions_has_none():
    """A prefix of equal words then gives equal logits at every position."""
    for name in ("no_decoder_positions", "no_positions", "plain"):
        model = build(**VARIANTS[name])
        steps = model.decoder(torch.full((1, 5), EOS), model.encoder(pad(documents([30]))))[0][0]
        assert torch.allclose(steps, steps[:1], atol=1e-5) == (name != "plain")


@torch.no_grad()
def test_rows_need_not_stand_together():
    """An order that mixes sentences (no beam search does) is right too."""
    model = build()
    encoded = model.encoder(pad(documents(SOURCES), "left"))
    tokens, state = torch.full((3, 1), EOS), {}
    step_logits(model, tokens, encoded, state, 0)
    order = torch.tensor([2, 0, 2, 1])
    model.decoder.reorder_incremental_state_scripting(state, order)
    mixed = model.encoder.reorder_encoder_out(encoded, order)
    tokens = torch.cat([tokens[order], torch.tensor([[5], [6], [7], [8]])], 1)
    assert_close(step_logits(model, tokens, mixed, state, 1), model.decoder(tokens, mixed)[0][:, -1])


def test_steps_with_gradients_switched_on():
    model = build()
    encoded, state, tokens = model.encoder(pad(documents(SOURCES))), {}, torch.full((3, 1), EOS)
    for step in range(3):
        logits = step_logits(model, tokens, encoded, state, step)
        assert_close(logits, model.decoder(tokens, encoded)[0][:, -1])
        model.decoder.reorder_incremental_state_scripting(state, torch.tensor([0, 1, 2]))
        logits = logits.index_fill(1, torch.tensor([PAD]), float("-inf"))
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)


@torch.no_grad()
def test_beams_copy_nothing_full_length():
    """Keys of the source exist once per sentence, in the same memory from the first step to the last."""
    model, beam = build(), 4
    encoded = model.encoder(pad(documents(SOURCES)))
    beams = model.encoder.reorder_encoder_out(encoded, torch.arange(3).repeat_interleave(beam))
    tokens, state, seen = torch.full((12, 1), EOS), {}, set()
    for step in range(6):
        step_logits(model, tokens, beams, state, step)
        cross = caches(state, CrossAttentionCache)
        assert len(cross) == 2 and all(c.keys.shape == (3, 2, 10, 8) and c.rows == 12 for c in cross)
        assert all(c.buffer.size(0) == 12 for c in caches(state, SelfAttentionCache))
        seen.add(tuple(t.data_ptr() for c in cross for t in (c.keys, c.values)))
        order = torch.arange(12).view(3, 4).flip(1).flatten()
        model.decoder.reorder_incremental_state_scripting(state, order)
        beams = model.encoder.reorder_encoder_out(beams, order)
        tokens = torch.cat([tokens[order], torch.full((12, 1), 5 + step)], 1)
    assert len(seen) == 1 and beams["encoder_out"][0].data_ptr() == encoded["encoder_out"][0].data_ptr()


def sharpened(model: Any) -> Any:
    """Output scores far enough apart that hypotheses finish at different lengths."""
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(2)
        model.decoder.output_projection.weight[EOS] *= 6
    return model


def search(model: Any, samples: dict, **options: Any) -> list[list[dict]]:
    generator = SequenceGenerator([model], dictionary(), max_len_b=20, **options)
    return generator.generate([model], {"net_input": samples})


def sample(lengths: list[int], side: str = "left") -> dict[str, Tensor]:
    rows = documents(lengths, seed=3)
    return {"src_tokens": pad(rows, side), "src_lengths": torch.tensor(lengths)}


def assert_same_hypotheses(ours: list[list[dict]], stock: list[list[dict]]) -> None:
    for mine, theirs in zip(ours, stock, strict=True):
        assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in theirs]
        assert_close([h["score"] for h in mine], [h["score"] for h in theirs])
        assert_close([h["positional_scores"] for h in mine], [h["positional_scores"] for h in theirs])


@pytest.mark.parametrize("name", ["plain", "pre_norm_learned"])
@pytest.mark.parametrize("beam", [1, 4])
@torch.no_grad()
def test_p17_beam_search_is_fairseqs(name: str, beam: int):
    """Without pooling: the same hypotheses and scores as stock, encoder and decoder, for sentences that finish at
    different times.
    """
    flags = {**VARIANTS[name], **NO_POOLING}
    model = sharpened(build(**flags))
    stock, samples = stock_twin(model, **flags), sample([50, 12, 33, 4, 20, 7, 41, 26])
    options = {"beam_size": beam, "normalize_scores": beam > 1, "min_len": 2}
    ours = search(model, samples, **options)
    assert_same_hypotheses(ours, search(stock, samples, **options))
    assert len({h[0]["tokens"].numel() for h in ours}) > 2


@pytest.mark.parametrize("name", ["pooled", "by_score", "overlap_shift"])
@torch.no_grad()
def test_p17_beam_search_over_pooled_states_is_fairseqs(name: str):
    """Our caches against stock's attention over the same pooled states, which it copies for every beam."""
    flags = VARIANTS[name]
    model = sharpened(build(**flags))
    expanded = stock_twin(model, **flags)
    expanded.encoder = _PlainOutput(model.encoder)
    samples = sample([64, 12, 33, 4, 20, 7, 47, 26])
    ours = search(model, samples, beam_size=5, len_penalty=0.7)
    assert_same_hypotheses(ours, search(expanded, samples, beam_size=5, len_penalty=0.7))
    assert len({h[0]["tokens"].numel() for h in ours}) > 2


class _PlainOutput(nn.Module):
    """An encoder whose output is reordered by plain index_select, as stock does."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.inner = encoder

    def forward_torchscript(self, net_input: dict) -> dict:
        return self.inner(net_input["src_tokens"])

    def max_positions(self) -> int:
        return 64

    def reorder_encoder_out(self, out: dict, order: Tensor) -> dict:
        states, mask = out["encoder_out"][0], out["encoder_padding_mask"][0]
        return {**out, "encoder_out": [states.index_select(1, order)], "encoder_padding_mask": [mask[order]]}


@torch.no_grad()
def test_p17_beam_of_one_is_greedy():
    model = sharpened(build())
    samples = sample([64, 12, 33])
    encoded = model.encoder(samples["src_tokens"])
    tokens = torch.full((3, 1), EOS)
    for _ in range(20):
        logits = model.decoder(tokens, encoded)[0][:, -1].index_fill(1, torch.tensor([PAD]), float("-inf"))
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    for (best, *_), row in zip(search(model, samples, beam_size=1), tokens[:, 1:].tolist(), strict=True):
        greedy = row[: row.index(EOS) + 1] if EOS in row else [*row, EOS]
        assert best["tokens"].tolist() == greedy


@torch.no_grad()
def test_beam_search_of_a_document_does_not_see_the_batch():
    model, lengths = sharpened(build()), [64, 12, 33, 4, 20]
    together = search(model, sample(lengths), beam_size=3)
    rows = documents(lengths, seed=3)
    for row, found in zip(rows, together, strict=True):
        alone = search(model, {"src_tokens": row[None], "src_lengths": torch.tensor([row.numel()])}, beam_size=3)
        assert_same_hypotheses([found], alone)


@pytest.mark.parametrize(
    "side",
    [
        "left",
        "right",
    ],
)
@pytest.mark.parametrize("how", ["hard", "soft"])
@torch.no_grad()
def test_alignment_without_pooling_is_fairseqs(side: str, how: str):
    """``--print-alignment`` and ``--replace-unk``: attention of stock, whatever side the batch is padded on."""
    flags = NO_POOLING
    found, samples = [], sample([50, 12, 33], side)
    model = sharpened(build(**flags))
    for one in (model, stock_twin(model, **flags)):
        one.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(print_alignment=how, beam=2)))
        generator = SequenceGeneratorWithAlignment(
            [one], dictionary(), left_pad_target=False, print_alignment=how, beam_size=2, max_len_b=12, min_len=6
        )
        found.append(generator.generate([one], {"net_input": samples}))
    for ours, stock in zip(*found, strict=True):
        mine, theirs = ([torch.tensor(_numbers(h["alignment"])) for h in hypotheses] for hypotheses in (ours, stock))
        assert len(mine[0]) > 1
        assert_close(mine, theirs, 0 if how == "hard" else 2e-6)


def _numbers(alignment: Any) -> list:
    """Soft alignments are printed numbers."""
    return [[float(n) for n in row] for row in alignment]


def test_alignment_is_refused_while_pooling():
    for flag in ("print_alignment", "replace_unk"):
        cfg = SimpleNamespace(generation=SimpleNamespace(**{flag: "hard"}, beam=2))
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} needs attention over source tokens"):
            build().prepare_for_inference_(cfg)
    build().prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(print_alignment=None, replace_unk=None)))


@pytest.mark.parametrize("per_head", [False, True])
@torch.no_grad()
def test_attention_weights_are_fairseqs(per_head: bool):
    """Weights of cross-attention that are asked for, in the rows of beams too."""
    from fairseq.modules import MultiheadAttention

    sizes = {"embed_dim": 16, "num_heads": 2, "kdim": 12, "vdim": 12, "encoder_decoder_attention": True}
    ours, stock = CachedCrossAttention(**sizes).eval(), MultiheadAttention(**sizes).eval()
    ours.load_state_dict(stock.state_dict())
    query, key = torch.randn(5, 6, 16), torch.randn(7, 2, 12)
    mask = torch.arange(7) >= torch.tensor([[7], [4]])
    wide = key.repeat_interleave(3, 1)
    flags = {"need_weights": True, "need_head_weights": per_head}
    out = ours(query, key, key_padding_mask=mask, **flags)
    assert_close(
        out, stock(query, wide, wide, key_padding_mask=mask.repeat_interleave(3, 0), static_kv=True, **flags), 1e-6
    )


@torch.no_grad()
def test_self_attention_over_nothing_but_pads_is_finite():
    attention = CachedSelfAttention(16, 2, self_attention=True).eval()
    x, mask = torch.randn(4, 2, 16), torch.tensor([[True] * 4, [True, False, False, True]])
    out = attention(x, key_padding_mask=mask, attn_mask=x.new_empty(0))[0]
    assert out.isfinite().all()
