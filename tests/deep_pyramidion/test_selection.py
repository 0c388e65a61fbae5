"""kept_tokens against one document at a time, layer by layer, with the naive operator."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

from deep_pyramidion.config import PyramidionConfig
from deep_pyramidion.model import PyramidionModel
from deep_pyramidion.selection import kept_tokens
from fairseq_efficient.ops.topk_halving.naive import topk_halving as naive_halving

LIMIT = 40


def build(widths: str = "0:20,1:12,2:5", **changes) -> PyramidionModel:
    words = Dictionary()
    for number in range(30):
        words.add_symbol(f"w{number}")
    cfg = PyramidionConfig()
    sizes = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "encoder_layers": 4}
    decoder = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32, "decoder_attention_heads": 2, "decoder_layers": 1}
    pyramid = {"encoder_pooling": "topk", "enc_layers_and_token_width": widths, "chunk_size": 8, "sort_back": 1}
    for name, value in {**sizes, **decoder, **pyramid, "max_source_positions": LIMIT, **changes}.items():
        setattr(cfg, name, value)
    model = PyramidionModel.build_model(cfg, SimpleNamespace(source_dictionary=words, target_dictionary=words))
    if model.encoder.pooler is not None:
        for scorer in model.encoder.pooler.scorer.values():  # scores well apart
            torch.nn.init.normal_(scorer.weight)
    return model.eval()


def documents(model: PyramidionModel, lengths: list[int], left: bool = False) -> torch.Tensor:
    pad, eos = model.encoder.padding_idx, model.encoder.dictionary.eos()
    rows = torch.full((len(lengths), max(lengths)), pad)
    for row, length in enumerate(lengths):
        tokens = torch.cat([torch.randint(4, 34, (length - 1,)), torch.tensor([eos])])
        rows[row, slice(max(lengths) - length, None) if left else slice(0, length)] = tokens
    return rows


@torch.no_grad()
def by_hand(model: PyramidionModel, document: torch.Tensor) -> list[tuple[list[int], list[float]]]:
    """(positions, scores) after each pooling layer for one unpadded document."""
    encoder = model.encoder
    positions = list(range(len(document)))
    if len(document) > encoder.source_limit:
        document = torch.cat([document[: encoder.source_limit - 1], document[-1:]])
        positions = [*positions[: encoder.source_limit - 1], positions[-1]]
    x = encoder.forward_embedding(document.unsqueeze(0), None)[0]
    found = []
    for number, layer in enumerate(encoder.layers):
        x = layer(x, encoder_padding_mask=None)
        if number not in encoder.pooler.widths:
            continue
        scores, width = [math.nan] * len(positions), encoder.pooler.widths[number]
        if x.size(1) > width:
            pooler = encoder.pooler
            pooled = naive_halving(
                x, pooler.scores(x, number), width, None, pooler.base, pooler.flip_right, pooler.sort_back
            )
            x, scores = pooled.values, pooled.scores[0].tolist()
            positions = [positions[i] for i in pooled.index[0].tolist()]
        found.append((positions, scores))
    return found


@pytest.mark.parametrize("changes", [{}, {"sort_back": 0}, {"flip_right": 0}], ids=str)
@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
def test_same_as_one_document_at_a_time(left: bool, changes: dict):
    model = build(**changes)
    lengths = [LIMIT, 33, 18, 4, 55]
    tokens = documents(model, lengths, left)
    kept = kept_tokens(model, tokens)
    assert [layer.layer for layer in kept] == [0, 1, 2]
    for row, length in enumerate(lengths):
        document = tokens[row, tokens[row] != model.encoder.padding_idx]
        assert len(document) == length
        for layer, (positions, scores) in zip(kept, by_hand(model, document), strict=True):
            real = layer.positions[row] >= 0
            assert layer.positions[row][real].tolist() == positions
            assert not real[len(positions) :].any() and layer.scores[row][~real].isnan().all()
            expected = torch.tensor(scores)
            scored = ~expected.isnan()  # a document that keeps all is scored only if a batch-mate is pooled
            torch.testing.assert_close(layer.scores[row][real][scored], expected[scored], atol=1e-5, rtol=1e-4)


def test_survivors_are_nested_unique_and_end_with_the_last_token_of_a_cut_document():
    model = build()
    tokens = documents(model, [60])
    start = [set(range(LIMIT - 1)) | {59}]
    for layer in kept_tokens(model, tokens):
        positions = layer.positions[0].tolist()
        assert len(set(positions)) == len(positions) == model.encoder.pooler.widths[layer.layer]
        assert set(positions) <= start[-1]
        start.append(set(positions))


def test_a_short_document_keeps_everything_unscored():
    model = build()
    kept = kept_tokens(model, documents(model, [4])[0])  # one row, no batch dimension
    assert [layer.positions.tolist() for layer in kept] == [[[0, 1, 2, 3]]] * 3
    assert all(layer.scores.isnan().all() for layer in kept)


def test_leaves_the_training_mode_as_it_was_and_draws_nothing():
    model = build(dropout=0.5).train()
    tokens = documents(model, [30])
    state = torch.get_rng_state()
    one, two = kept_tokens(model, tokens), kept_tokens(model, tokens)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(one, two, strict=True))


def test_without_pooling_there_is_nothing_to_tell():
    assert kept_tokens(build(encoder_pooling="lambda"), torch.tensor([[4, 5, 2]])) == []
