"""Decoding token by token with caches, and by recomputing each prefix, as pieces of work to be timed.

Tokens are given, not chosen. ``best`` makes the choice of the next token of what the decoder returns for the last one,
(B, 1, .), and is part of the work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_efficient.bench.timing import Stopwatch

SAMPLED = 8  # prefixes that are recomputed, besides the shortest

Best = Callable[[Tensor], Any]


def largest(output: Tensor) -> Tensor:
    """The best token by logits (B, 1, V)."""
    return output.argmax(-1)


def token_by_token(
    decoder: Any, tokens: Tensor, state: dict[str, Any] | None = None, start: int = 0
) -> Iterator[Tensor]:
    """What a decoder returns for each of the tokens (B, n) when it has caches; ``start`` of them are in ``state``."""
    state = {} if state is None else state
    for end in range(start + 1, tokens.size(1) + 1):
        yield decoder(tokens[:, :end], incremental_state=state)[0][:, -1:]


def block_by_block(decoder: Any, tokens: Tensor, size: int, memory: Any = None) -> Iterator[tuple[Tensor, Any]]:
    """What a decoder returns for each block of so many tokens, and its memory after it."""
    for block in tokens.split(size, 1):
        output, extra = decoder(block, memory=memory)
        memory = extra["memory"]
        yield output, memory


def with_caches(decoder: Any, tokens: Tensor, best: Best = largest) -> Callable[[], None]:
    """Read tokens (B, n) one by one, with caches, and find the best next one after each."""

    @torch.no_grad()
    def run() -> None:
        for output in token_by_token(decoder, tokens):
            best(output)

    return run


def by_recomputing(
    decoder: Any, tokens: Tensor, lengths: Sequence[int], best: Best = largest
) -> Callable[[], dict[str, float]]:
    """The same without caches; reports ``total``. Prefixes between ``lengths`` are taken to need what lies between."""
    watch = Stopwatch(tokens.device)
    step = watch.wrap(lambda end: best(decoder(tokens[:, :end])[0][:, -1:]))

    @torch.no_grad()
    def run() -> dict[str, float]:
        seconds = []
        for length in lengths:
            step(length)
            seconds.append(watch.take())
        return {"total": float(np.interp(np.arange(1, tokens.size(1) + 1), lengths, seconds).sum())}

    return run


def prefixes(n: int, full: bool = False) -> list[int]:
    """Lengths for :func:`by_recomputing`: a sample, or all of them."""
    if full or n <= SAMPLED:
        return list(range(1, n + 1))
    return sorted({1, *(n * part // SAMPLED for part in range(1, SAMPLED + 1))})
