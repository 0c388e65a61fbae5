"""R11, R12: drawn batches. What is beside a text, and how much padding, changes nothing; nor does how it is decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.adaptive_span import helpers as adaptive_span
from tests.deep_pyramidion import helpers as pyramidion
from tests.dynamic_pooling import helpers as hourglass
from tests.par_search import helpers as par_search
from tests.reliability.figures import Record
from tests.skimming import helpers as skimming
from tests.stream_models import tokens as tokens_of
from tests.util import assert_close

EXAMPLES = max(200, settings().max_examples)  # 2,000 with --hypothesis-profile full
MOST = 5  # texts of a batch


@dataclass(frozen=True)
class Reader:
    """A model, and what it makes of texts.

    texts: (lengths, seed) -> ids. read: (model, texts, side, width) -> what it says of the real tokens of each.
    """

    build: Callable[[], Any]
    texts: Callable[[list[int], int], list[Tensor]]
    read: Callable[[Any, list[Tensor], str, int], list[Tensor]]
    sides: tuple[str, ...] = ("right", "left")


def summarizer(**flags: Any) -> Reader:
    def read(model: Any, texts: list[Tensor], side: str, width: int) -> list[Tensor]:
        heads = pyramidion.prefixes([text[-4:] for text in texts])
        other = "left" if side == "right" else "right"
        prefix = pyramidion.pad(heads, other)
        logits = model(pyramidion.pad(texts, side, width), None, prefix)[0]
        return [row[words.ne(pyramidion.PAD)] for row, words in zip(logits, prefix, strict=True)]

    return Reader(lambda: pyramidion.build(**flags), pyramidion.documents, read)


def language_model(build: Callable[[], Any], texts: Callable[[list[int], int], list[Tensor]], pad: int) -> Reader:
    def read(model: Any, rows: list[Tensor], side: str, width: int) -> list[Tensor]:
        width = max([width, *map(len, rows)])
        tokens = torch.full((len(rows), width), pad)
        for row, text in zip(tokens, rows, strict=True):
            row[slice(0, len(text)) if side == "right" else slice(width - len(text), width)] = text
        logits = model.decoder(tokens)[0]
        return [out[words.ne(pad)] for out, words in zip(logits, tokens, strict=True)]

    return Reader(build, texts, read)


def letters(lengths: list[int], seed: int) -> list[Tensor]:
    return [row[:length] for row, length in zip(hourglass.text(*lengths, seed=seed), lengths, strict=True)]


def words(lengths: list[int], seed: int) -> list[Tensor]:
    return [row[:length] for row, length in zip(tokens_of(len(lengths), max(lengths), seed), lengths, strict=True)]


def classifier(mode: str, **flags: Any) -> Reader:
    def read(model: Any, rows: list[Tensor], side: str, width: int) -> list[Tensor]:
        out = skimming.features(model, skimming.pad(rows, width), mode)[0]
        return [row[: len(text)] for row, text in zip(out, rows, strict=True)]

    return Reader(lambda: skimming.build(**flags), skimming.sentences, read, ("right",))


def mixed() -> Any:
    model = par_search.supernet(4, supernet_eval="mixture")
    with torch.no_grad():
        model.decoder.alpha.normal_()
    return model


def segmenting(kind: str, **flags: Any) -> Reader:
    return language_model(lambda: hourglass.model(kind, **flags), letters, hourglass.WORDS.pad())


READERS: dict[str, Reader] = {
    "pyramidion": summarizer(),
    "pyramidion, overlapping chunks": summarizer(**pyramidion.VARIANTS["overlap_shift"]),
    "pyramidion, blockwise": summarizer(**pyramidion.VARIANTS["blockwise"]),
    "hourglass, gumbel": segmenting("gumbel"),
    "hourglass, packed": segmenting("whitespaces", packed_shortened=True, position_encoding="rotary"),
    "skimming, masked": classifier("masked"),
    "skimming, packed": classifier("packed", skim_protect="cls+sep"),
    "par_search, layout": language_model(lambda: par_search.par_lm("affaif"), words, 1),
    "par_search, mixture": language_model(mixed, words, 1),
    "adaptive_span": language_model(lambda: adaptive_span.sequential_lm(**adaptive_span.SPANS), words, 1),
    "adaptive_span, persistent": language_model(
        lambda: adaptive_span.sequential_lm(**adaptive_span.SPANS, pers_mem_size=4), words, 1
    ),
}


# the others in the long run
SHORT = ("pyramidion", "hourglass, gumbel", "skimming, packed", "par_search, mixture", "adaptive_span, persistent")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in READERS]
)
def test_r11_neighbours_order_and_padding_change_nothing(name: str, figure: Record):
    """One text alone, and a batch in any order, padded on either side to any width."""
    reader = READERS[name]
    model = reader.build()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.integers(1, 40), min_size=1, max_size=MOST),
        st.integers(0, 2**20),
        st.sampled_from(reader.sides),
        st.integers(0, 20),
        st.randoms(use_true_random=False),
    )
    def check(lengths: list[int], seed: int, side: str, more: int, draw: Any) -> None:
        with torch.no_grad():
            texts = reader.texts(lengths, seed)
            order = draw.sample(range(len(texts)), len(texts))
            width = min(max(lengths) + more, 40) if name.startswith("skimming") else max(lengths) + more
            together = reader.read(model, [texts[place] for place in order], side, width)
            one = draw.randrange(len(texts))
            alone = reader.read(model, [texts[one]], reader.sides[0], 0)[0]
            assert_close(together[order.index(one)], alone, 1e-5, 1e-5)
            again = reader.read(model, texts, reader.sides[-1], 0)
            assert_close([again[place] for place in order], together, 1e-5, 1e-5)

    check()
    figure("R11", "drawn batches", EXAMPLES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (classifier("packed"), classifier("masked")),
        pytest.param(segmenting("gumbel", packed_shortened=True), segmenting("gumbel"), marks=pytest.mark.full),
        (segmenting("whitespaces", packed_shortened=True), segmenting("whitespaces")),
    ],
    ids=["skimming", "hourglass, gumbel", "hourglass, whitespaces"],
)
def test_r11_packed_is_padded(one: Reader, other: Reader, figure: Record):
    models = [one.build(), other.build()]
    models[0].load_state_dict(models[1].state_dict())

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=MOST), st.integers(0, 2**20))
    def check(lengths: list[int], seed: int) -> None:
        with torch.no_grad():
            texts = one.texts(lengths, seed)
            found = [reader.read(model, texts, "right", 0) for reader, model in zip((one, other), models, strict=True)]
            assert_close(found[0], found[1], 1e-5, 1e-5)

    check()
    figure("R11", "drawn batches", EXAMPLES)


# --- R12: decoding ----------------------------------------------------------------------------------------------------

STEPS = 64
DECODERS: dict[str, tuple[Callable[[], Any], int]] = {  # name -> (model, words)
    "pyramidion": (lambda: pyramidion.build(max_target_positions=STEPS + 2), 26),
    "hourglass": (lambda: hourglass.model("gumbel"), len(hourglass.WORDS) - 4),
    "par_search": (lambda: par_search.par_lm("afaf", mem_len=STEPS + 2), 30),
    "supernet": (lambda: par_search.supernet(4, mem_len=STEPS + 2), 30),
    "adaptive_span": (lambda: adaptive_span.sequential_lm(**adaptive_span.SPANS), 30),
    "adaptive_span, persistent": (lambda: adaptive_span.sequential_lm(**adaptive_span.SPANS, pers_mem_size=4), 30),
}


def encoded(model: Any, rows: Tensor) -> Any:
    """What the decoder attends to in rows of two documents; None for a language model."""
    if not hasattr(model, "encoder"):
        return None
    documents = model.encoder(pyramidion.pad(pyramidion.documents([50, 23]), "left"))
    return model.encoder.reorder_encoder_out(documents, rows)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_r12_steps_with_reordering_are_the_full_forward(name: str, figure: Record):
    """64 steps; after each, the beams of a sentence take each other's places."""
    build, types = DECODERS[name]
    model, beam, largest = build(), 3, 0.0
    sentence = torch.arange(2).repeat_interleave(beam)
    source = encoded(model, sentence)
    tokens, state = torch.full((2 * beam, 1), 2), {}
    for _ in range(STEPS):
        found = model.decoder(tokens, encoder_out=source, incremental_state=state)[0][:, -1]
        expected = model.decoder(tokens, encoder_out=source)[0][:, -1]
        assert_close(found, expected, 1e-5, 1e-5)
        largest = max(largest, float((found - expected).abs().max()))
        order = (torch.randint(0, beam, (2, beam)) + torch.tensor([[0], [beam]])).flatten()
        model.decoder.reorder_incremental_state_scripting(state, order)
        source = None if source is None else model.encoder.reorder_encoder_out(source, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 4 + types, (2 * beam, 1))], 1)
    figure("R12", "steps equal to full forwards", STEPS)
    figure("R12", "largest difference of a score", float(f"{largest:.1e}"), largest=True)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_r12_the_same_hypotheses_without_caches(name: str, figure: Record):
    """fairseq's beam search with the decoder's state, and by full forwards."""
    build, types = DECODERS[name]
    model = build()
    dictionary = pyramidion.dictionary(types) if name == "pyramidion" else model.decoder.dictionary
    rows = pyramidion.pad(pyramidion.documents([50, 23]), "left") if name == "pyramidion" else torch.full((2, 1), 2)
    sample = {"net_input": {"src_tokens": rows, "src_lengths": rows.ne(1).sum(1)}}
    prefix = None if name == "pyramidion" else torch.tensor([[4, 5, 6], [7, 8, 9]])
    found = []
    for with_state in (True, False):
        generator = SequenceGenerator([model], dictionary, beam_size=4, max_len_b=20)
        generator.model.has_incremental = with_state
        found.append(generator.generate([model], sample, prefix_tokens=prefix, bos_token=2))
    for one, other in zip(*found, strict=True):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]
        assert_close([h["positional_scores"] for h in one], [h["positional_scores"] for h in other], 1e-5, 1e-5)
    figure("R12", "searches with the same hypotheses", 1)
