"""Measured time of an evaluation step: tokens and memory in, the loss of the tokens and the next memory out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.bench.timing import take_turns
from par_search.costs import Shape
from par_search.decoder import DecoderOptions, ParDecoder
from par_search.layout import KINDS


def zipf(types: int) -> Tensor:
    """(types,) float64: how often the types of a text come, the most frequent first, but for a factor."""
    return 1 / (torch.arange(types, dtype=torch.float64) + 2.7)


def usual_tokens(dictionary: Any, count: int, seed: int = 1) -> Tensor:
    """``count`` random ids, each as often as the dictionary counted it; by Zipf's law where all counts are alike.

    How many tokens are rare is what an adaptive softmax costs. The global generator is left alone.
    """
    first = dictionary.nspecial
    weights = torch.tensor(dictionary.count[first:], dtype=torch.float64)
    if not (weights > 0).any() or (weights == weights[0]).all():
        weights = zipf(len(weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.multinomial(weights, count, replacement=True) + first


def evaluation_step(decoder: Any, batch: int, tokens: int, memory: int) -> Callable[[], Any]:
    """A call that evaluates random tokens (batch, tokens) after ``memory`` random states."""
    weight = next(decoder.parameters())
    stream = usual_tokens(decoder.dictionary, 2 * batch * tokens).view(2, batch, tokens).to(weight.device)
    past = []
    for slot in decoder.slots():
        shape = list(slot.no_memory(batch).shape)
        shape[-2] = memory
        past.append(torch.randn(shape, device=weight.device, dtype=weight.dtype))
    decoder.eval()

    @torch.no_grad()
    def run() -> None:
        output, _ = decoder(stream[0], memory=past, memory_length=memory)
        decoder.nll(output, stream[1])

    return run


def measure(
    dictionary: Any,
    options: DecoderOptions,
    layouts: Sequence[str],
    shape: Shape,
    device: torch.device,
    runs: int = 7,
) -> list[float]:
    """Milliseconds of an evaluation step of nets with random weights, each the median of ``runs``, in turns.

    As fairseq-eval-lm runs them: what depends on weights alone is known before.
    """
    calls: dict[str, Callable[[], Any]] = {}
    options = replace(options, tokens=shape.tokens, mem_len=shape.memory)
    ends = ParDecoder(dictionary, options, "").to(device)
    for number, layout in enumerate(layouts):
        decoder = ParDecoder(dictionary, options, layout, ends).to(device).eval()
        decoder.prepare_positions(shape.tokens + shape.memory)
        calls[str(number)] = evaluation_step(decoder, max(shape.batch, 1), shape.tokens, shape.memory)
    samples = take_turns(calls, runs, device)
    return [1000 * median(sample.seconds for sample in samples[str(number)]) for number in range(len(layouts))]


def measure_kinds(
    dictionary: Any,
    options: DecoderOptions,
    shape: Shape,
    device: torch.device,
    runs: int = 7,
    copies: int = 6,
    layouts: Sequence[str] = (),
) -> tuple[list[float], float, list[float]]:
    """(milliseconds of a block of each kind, of all that is not a block, and of each of ``layouts`` as a whole).

    A block is measured as one of ``copies`` different ones, so that its weights come from where they come from in a
    deep net, and not from a cache that holds a single block.
    """
    nets = ["", *(kind * copies for kind in KINDS), *layouts]
    rest, *found = measure(dictionary, options, nets, shape, device, runs)
    count = len(KINDS)
    return [max(0.0, one - rest) / copies for one in found[:count]], rest, found[count:]
