"""Decoding with caches, without, and by fairseq's generator, as pieces of work of the dynamic pooling benchmark.

Tokens are given, not chosen: from a model without training, greedy decoding is one character for ever, and boundaries
at spaces would never come.
"""

from collections.abc import Callable
from typing import Any

import torch

from bench_parts.dynamic_pooling.models import SPACE, Setup, build, dictionary, text
from fairseq_efficient.bench import decoding
from fairseq_efficient.bench.work import for_generation, generation_batch
from fairseq_efficient.plugin.prefilled_generation import PrefilledGenerator


def ready(kind: str, n: int, setup: Setup) -> Any:
    """A model as fairseq-generate makes it."""
    return for_generation(build(kind, n, setup))


def decode(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Read n tokens one by one, with caches, and find the best next one after each."""
    return decoding.with_caches(ready(kind, n, setup).decoder, text(n, setup))


def recompute(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """The same without caches; reports ``total``. Unless ``setup.full``, prefixes between those of a sample are taken
    to need what lies between."""
    lengths = decoding.prefixes(n, setup.full)
    return decoding.by_recomputing(ready(kind, n, setup).decoder, text(n, setup), lengths)


def generate(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """fairseq-generate's greedy search: a prompt of n / 2 tokens, then as many new ones."""
    generator, sample, prompt = searcher(ready(kind, n, setup), n, setup)

    @torch.no_grad()
    def run() -> None:
        generator.generate([], sample, prefix_tokens=prompt, bos_token=generator.eos)

    return run


def searcher(model: Any, n: int, setup: Setup) -> tuple[PrefilledGenerator, dict[str, Any], torch.Tensor]:
    """The generator, a batch for it, and its prompts (batch, n / 2)."""
    generator = PrefilledGenerator([model], dictionary(setup), beam_size=1, max_len_a=0, max_len_b=n, min_len=n)
    prompt = text(n // 2 + 1, setup)[:, 1:]
    return generator, generation_batch(prompt), prompt


def firing_share(kind: str, n: int, setup: Setup) -> float:
    """Percent of the steps of :func:`decode` in which the shortened layers run, for one row at least."""
    if kind.startswith("sf"):
        return 100 * (n // int(kind.partition("-")[0].removeprefix("sf"))) / n
    words = dictionary(setup)
    tokens = text(n, setup)
    closes = tokens.eq(words.index(SPACE)) | tokens.eq(words.eos())
    return 100 * closes.any(0).float().mean().item()
