"""P11: a task whose label depends on one token learns to skip the others, at no cost in accuracy."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from skimming.model import SkimRobertaModel
from tests.skimming.helpers import BOS, EOS, FIRST_WORD, HEAD, config, pad, task
from tests.skimming.test_criterion import criterion, sample

UPDATES, BATCH, WORDS = 150, 16, 20
MARKERS = (FIRST_WORD, FIRST_WORD + 1)


class Trained(NamedTuple):
    accuracy: float
    kept: float
    markers: list[float]  # share of them that enters each layer
    fillers: list[float]


def planted(count: int, seed: int) -> tuple[list[Tensor], list[int]]:
    """Sentences of 8 to 24 tokens with one marker; the label says which."""
    draw, rows, labels = torch.Generator().manual_seed(seed), [], []
    for _ in range(count):
        length, label, place = (int(torch.randint(0, 2**30, (1,), generator=draw)) for _ in range(3))
        row = torch.randint(FIRST_WORD + 2, FIRST_WORD + WORDS, (8 + length % 17,), generator=draw)
        row[0], row[-1], row[1 + place % (len(row) - 2)] = BOS, EOS, MARKERS[label % 2]
        rows.append(row)
        labels.append(label % 2)
    return rows, labels


def train(price: float, **flags: Any) -> Trained:
    torch.manual_seed(0)
    sizes = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "skim_predictor_dim": 16, "skim_init_bias": 2.0}
    model = SkimRobertaModel.build_model(config(**sizes, **flags), task(WORDS))
    model.register_classification_head(HEAD, num_classes=2)
    loss_of, optimizer = criterion(2, skim_lambda=price), torch.optim.Adam(model.parameters(), lr=2e-3)
    rows, labels = planted(UPDATES * BATCH, seed=1)
    model.train()
    for start in range(0, len(rows), BATCH):
        loss, size, _ = loss_of(model, sample(rows[start : start + BATCH], labels[start : start + BATCH]))
        optimizer.zero_grad()
        (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    rows, labels = planted(400, seed=2)
    tokens = pad(rows)
    with torch.no_grad():
        logits, extra = model.eval()(tokens, classification_head_name=HEAD, return_skim_masks=True)
    above, below = extra["stats"]["keep_ratio"]
    accuracy = (logits.argmax(1) == torch.tensor(labels)).float().mean()
    marker, filler = torch.isin(tokens, torch.tensor(MARKERS)), tokens > MARKERS[1]
    shares = ([float(mask[where].mean()) for mask in extra["skim_masks"]] for where in (marker, filler))
    return Trained(float(accuracy), float(above / below), *shares)


@pytest.mark.full
def test_p11_a_planted_task_keeps_its_markers_and_its_accuracy():
    dense = train(0.0, skim_layers="none")
    assert dense.accuracy > 0.97 and dense.kept == 1.0
    found = [train(price) for price in (0.002, 0.02, 0.5)]
    assert all(one.accuracy >= dense.accuracy - 0.01 for one in found)
    kept = [one.kept for one in found]
    assert kept[0] > kept[1] + 0.1 > kept[2] + 0.2 and kept[2] < 0.3, kept  # a higher price, fewer tokens
    for one in found[1:]:
        assert sum(one.markers) > sum(one.fillers) + 0.4, one
