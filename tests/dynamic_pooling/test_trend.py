"""A short training on made-up words shows what the paper finds: segments that are words beat those that are not."""

import math
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from dynamic_pooling.decoder import HourglassDecoder
from dynamic_pooling.model import hourglass_options
from tests.dynamic_pooling.helpers import SPACE, WORDS, config

LENGTH, ROWS, UPDATES = 96, 12, 320
LETTERS = range(WORDS.nspecial + 1, len(WORDS))


def stream(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words of 2 to 7 letters, each one of two that may come third after another; and their ends as boundaries."""
    draw = random.Random(0)
    words = [draw.choices(LETTERS, k=draw.randint(2, 7)) for _ in range(40)]
    follow = [draw.sample(range(len(words)), 2) for _ in words]
    text, last = [], [0, 1, 2]
    while len(text) < tokens:
        last = [*last[1:], draw.choice(follow[last[0]])]
        text += [*words[last[-1]], SPACE]
    ids = torch.tensor(text[:tokens])
    return ids, ids.eq(SPACE)


def bits(kind: str, **flags: object) -> tuple[float, float]:
    """Bits per character of text that was not trained on, and the share of spaces that end a segment."""
    torch.manual_seed(1)
    sizes = {"decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64, "init_std": 0.1}
    model = HourglassDecoder(WORDS, hourglass_options(config(kind, **sizes, **flags), WORDS)).train()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    ids, ends = stream((UPDATES + 8) * LENGTH * ROWS + 1)
    losses, found, spaces = [], 0, 0
    for update in range(UPDATES + 8):
        if update == UPDATES:
            model.eval()
        place = slice(update * LENGTH * ROWS, (update + 1) * LENGTH * ROWS)
        tokens, closed = ids[place].view(ROWS, LENGTH), ends[place].view(ROWS, LENGTH)
        target = ids[place.start + 1 : place.stop + 1]
        with torch.set_grad_enabled(model.training):
            logits, extra = model(tokens, boundary_targets=closed)
            loss = cross_entropy(logits.flatten(0, 1), target)
        if not model.training:
            losses.append(loss.item() / math.log(2))
            found, spaces = found + int((extra["boundaries"] & closed).sum()), spaces + int(closed.sum())
            continue
        optimizer.zero_grad()
        (loss + extra["aux"].get("boundary", 0.0) / tokens.numel()).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - update / UPDATES))
    return sum(losses) / len(losses), found / spaces


@pytest.mark.full
def test_p15_segments_that_are_words_beat_fixed_ones():
    fixed, by_chance = bits("fixed", fixed_sf=4)
    whitespaces, every = bits("whitespaces")
    unigram, learned = bits("unigram")
    print(f"fixed {fixed:.3f} ({by_chance:.2f}), whitespaces {whitespaces:.3f}, unigram {unigram:.3f} ({learned:.2f})")
    assert whitespaces < fixed - 0.02 and unigram < fixed - 0.02
    assert every == 1.0 and learned > 0.9 and by_chance < 0.5
