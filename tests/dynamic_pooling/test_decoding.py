"""Step by step equals the full forward: ragged rows, beams, prompts, every option (P4, P5)."""

from typing import Any

import pytest
import torch
from fairseq.search import BeamSearch, Sampling
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from torch import Tensor

from dynamic_pooling.decoder import HourglassDecoder
from fairseq_efficient.plugin.prefilled_generation import PrefilledGenerator, common_prefix_length, cut_prefix
from tests.dynamic_pooling.helpers import WORDS, decoder, model, text
from tests.dynamic_pooling.test_decoder import cases
from tests.util import assert_close


def stepwise(
    built: HourglassDecoder, tokens: Tensor, prompt: int = 1, orders: dict[int, Tensor] | None = None
) -> Tensor:
    """Logits (B, T, V) of rows fed one token at a time after a prompt; ``orders``: step -> new order of the rows,
    which the caller has applied to what is fed."""
    state: dict[str, Any] = {}
    found = [built(tokens[:, :prompt], incremental_state=state)[0]]
    for length in range(prompt + 1, tokens.size(1) + 1):
        found.append(built(tokens[:, :length], incremental_state=state)[0])
    return torch.cat(found, 1)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 30])
@pytest.mark.parametrize(("kind", "flags"), cases())
def test_p4_steps_equal_the_full_forward(kind: str, flags: dict, prompt: int):
    built, tokens = decoder(kind, **flags), text(*[75] * 5)
    assert_close(stepwise(built, tokens, prompt), built(tokens)[0], 1e-9, 1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "flags"), [("whitespaces", {}), ("none", {}), ("gumbel", {"upsampling": "smooth"}),
                                             ("entropy", {"position_encoding": "rotary"})])  # fmt: skip
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 1, 0, 0], [3, 2, 1, 0], [2, 0], [0, 0, 2, 2, 3, 3], [1]])
def test_p4_after_a_reorder(kind: str, flags: dict, order: list[int]):
    """Rows repeat, move, go; before and after a cache has grown."""
    built, draw = decoder(kind, **flags), text(*[135] * 6)
    for first in (1, 70):
        new = torch.tensor(order)
        head, tail = draw[:4, :first], draw[: len(order), first:]
        state: dict[str, Any] = {}
        for length in range(1, first + 1):
            built(head[:, :length], incremental_state=state)
        built.reorder_incremental_state(state, new)
        rows = torch.cat([head[new], tail], 1)
        found = [built(rows[:, :length], incremental_state=state)[0] for length in range(first + 1, 136)]
        assert_close(torch.cat(found, 1), built(rows)[0][:, first:], 1e-9, 1e-9)


@torch.no_grad()
def test_several_tokens_at_once_on_a_filled_state():
    built, tokens = decoder("whitespaces"), text(30, 30)
    state: dict[str, Any] = {}
    parts = [built(tokens[:, :end], incremental_state=state)[0] for end in (4, 5, 11, 30)]
    assert_close(torch.cat(parts, 1), built(tokens)[0], 1e-9, 1e-9)


@torch.no_grad()
def test_a_row_that_closes_nothing_beside_one_that_closes_always():
    built = decoder("whitespaces")
    tokens = text(50, 50)
    tokens[0] = WORDS.index("a")
    tokens[1] = WORDS.index("\u2581")
    assert_close(stepwise(built, tokens), built(tokens)[0], 1e-9, 1e-9)


# --- fairseq's generator ----------------------------------------------------------------------------------------------


def sample_of(prompts: Tensor) -> dict[str, Any]:
    return {
        "id": torch.arange(len(prompts)),
        "net_input": {"src_tokens": prompts, "src_lengths": torch.ones(len(prompts))},
    }


def generate(kind: type, built: Any, prefix: Tensor | None, **options: Any) -> list:
    generator = kind([built], WORDS, max_len_b=24, **options)
    prompts = prefix if prefix is not None else torch.full((2, 1), WORDS.eos())
    return generator.generate([built], sample_of(prompts), prefix_tokens=prefix, bos_token=WORDS.eos())


@pytest.mark.parametrize("kind", ["whitespaces", "none", "gumbel"])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (12, 3, 7), (1, 5, 5)])
def test_a_prompt_read_at_once_changes_nothing(kind: str, beam: int, lengths: tuple):
    built = model(kind)
    prefix = text(*(n + 1 for n in lengths))[:, 1:]
    prefix = cut_prefix(prefix, WORDS.eos(), WORDS.pad())
    stock = generate(SequenceGenerator, built, prefix, beam_size=beam, search_strategy=BeamSearch(WORDS))
    ours = generate(PrefilledGenerator, built, prefix, beam_size=beam, search_strategy=BeamSearch(WORDS))
    assert len(stock) == len(ours) == 3
    for row, (one, other, n) in enumerate(zip(ours, stock, lengths, strict=True)):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]
        for a, b in zip(one, other, strict=True):
            assert_close(a["positional_scores"], b["positional_scores"], 1e-5, 1e-5)
            assert a["tokens"][:n].tolist() == prefix[row, :n].tolist()


@pytest.mark.parametrize("kind", ["whitespaces", "none", "entropy"])
def test_p5_generated_scores_are_what_rescoring_gives(kind: str):
    built = model(kind)
    for hypotheses in generate(
        PrefilledGenerator, built, text(6, 6)[:, 1:], beam_size=3, search_strategy=BeamSearch(WORDS)
    ):
        for found in hypotheses:
            tokens = found["tokens"]
            source = torch.cat([torch.tensor([WORDS.eos()]), tokens[:-1]])[None]
            rescored = SequenceScorer(WORDS).generate(
                [built], {"net_input": {"src_tokens": source}, "target": tokens[None], "ntokens": len(tokens)}
            )[0][0]
            assert_close(
                found["positional_scores"], rescored["positional_scores"].to(found["positional_scores"]), 1e-5, 1e-5
            )


@torch.no_grad()
def test_p5_greedy_is_the_argmax_of_full_forwards():
    built = model("whitespaces", seed=4)
    prefix = text(8)[:, 1:]
    found = generate(PrefilledGenerator, built, prefix, beam_size=1, search_strategy=BeamSearch(WORDS))[0][0]["tokens"]
    rows = torch.cat([torch.tensor([[WORDS.eos()]]), prefix], 1)
    while rows.size(1) < len(found) + 1:
        logits = built(rows)[0][0, -1].clone()
        logits[WORDS.pad()] = -torch.inf
        if rows.size(1) == 25:
            break
        rows = torch.cat([rows, logits.argmax().view(1, 1)], 1)
    assert rows[0, 1:].tolist() == found[: rows.size(1) - 1].tolist()


def test_sampling_and_shrinking_batches():
    built = model("whitespaces")
    with torch.no_grad():
        built.decoder.output_projection.bias[WORDS.eos()] += 3  # rows end at different steps
    for options in ({"sampling_topk": 5}, {"sampling_topp": 0.8}, {}):
        found = generate(
            PrefilledGenerator,
            built,
            text(5, 5, 5, 5, 5)[:, 1:],
            beam_size=2,
            search_strategy=Sampling(WORDS, **options),
        )
        assert len(found) == 5 and all(len(hypotheses) == 2 for hypotheses in found)


def test_prompts_end_with_their_document():
    prefix = torch.tensor([[5, 6, 2, 7, 8], [5, 6, 7, 8, 9], [2, 5, 6, 7, 8]])
    cut = cut_prefix(prefix, WORDS.eos(), WORDS.pad())
    assert cut.tolist() == [[5, 6, 1, 1, 1], [5, 6, 7, 8, 9], [1, 1, 1, 1, 1]]
    assert [common_prefix_length(rows, 2, 1) for rows in (cut, cut[:2], cut[1:2], prefix[1:2, :0])] == [0, 2, 5, 0]
