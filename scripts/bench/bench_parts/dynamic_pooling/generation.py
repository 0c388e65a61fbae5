"""Decoding with caches, without, and by fairseq's generator, as pieces of work of the dynamic pooling benchmark.

Tokens are given, not chosen: from a model without training, greedy decoding is one character for ever, and boundaries
at spaces would never come.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from bench_parts.dynamic_pooling.models import SPACE, Setup, build, dictionary, text
from fairseq_efficient.bench import decoding
from fairseq_efficient.plugin.prefilled_generation import PrefilledGenerator

RECOMPUTE = "recompute"


def ready(kind: str, n: int, setup: Setup) -> Any:
    """A model in evaluation mode as fairseq-generate makes it."""
    model = build(kind, n, setup).eval()
    model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=1, print_alignment=None)))
    return model


def decode(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Read n tokens one by one, with caches, and find the best next one after each."""
    return decoding.with_caches(ready(kind, n, setup).decoder, text(n, setup))


def recompute(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """The same without caches; reports ``total``. Unless ``setup.full``, prefixes between those of a sample are taken
    to need what lies between."""
    return decoding.by_recomputing(ready(kind, n, setup).decoder, text(n, setup), prefixes(n, setup))


def prefixes(n: int, setup: Setup) -> list[int]:
    """Lengths that :func:`recompute` measures."""
    return decoding.prefixes(n, setup.full)


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
    lengths = torch.full((setup.batch,), prompt.size(1), device=setup.place)
    return generator, {"net_input": {"src_tokens": prompt, "src_lengths": lengths}}, prompt


def firing_share(kind: str, n: int, setup: Setup) -> float:
    """Percent of the steps of :func:`decode` in which the shortened layers run, for one row at least."""
    if kind.startswith("sf"):
        return 100 * (n // int(kind.partition("-")[0].removeprefix("sf"))) / n
    words = dictionary(setup)
    tokens = text(n, setup)
    closes = tokens.eq(words.index(SPACE)) | tokens.eq(words.eos())
    return 100 * closes.any(0).float().mean().item()
