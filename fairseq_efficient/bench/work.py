"""Pieces of the work that benchmarks time: a training step, a model made ready for generation, words to read."""

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@lru_cache(maxsize=4)
def dictionary(types: int) -> Dictionary:
    """As many words, fairseq's four special ones among them."""
    words = Dictionary()
    for number in range(types - len(words)):
        words.add_symbol(f"w{number}")
    return words


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) in fp32."""
    return cross_entropy(logits.float().view(-1, logits.size(-1)), target.flatten())


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward (``loss``) and backward, no optimizer."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    return run


def trained_mb(model: nn.Module) -> float:
    """2**20 bytes of the weights and of as many gradients."""
    return 2 * sum(weight.nbytes for weight in model.parameters()) / 2**20


def for_generation(model: Any, beam: int = 1) -> Any:
    """In evaluation mode, as fairseq-generate makes it."""
    model.eval().prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=beam, print_alignment=None)))
    return model


def generation_batch(source: Tensor) -> dict[str, Any]:
    """A batch without padding as fairseq's generators take it."""
    lengths = torch.full((source.size(0),), source.size(1), device=source.device)
    return {"net_input": {"src_tokens": source, "src_lengths": lengths}}
