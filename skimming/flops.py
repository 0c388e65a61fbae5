"""Exact multiply-adds of an encoder that skips tokens: integers, one count per sentence (FLOPs are twice as many).

Counted are matrix products; embeddings, LayerNorm, softmax, activations and biases are not. d width, f feed-forward
width, p predictor width, n tokens. Masks and counts are of one sentence each, in tensors over the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EncoderSizes:
    """``predictors``: for each layer, whether one stands before it."""

    dim: int
    ffn: int
    predictor_dim: int
    predictors: tuple[bool, ...]

    @property
    def layers(self) -> int:
        return len(self.predictors)


def layer_macs(tokens: Tensor, dim: int, ffn: int) -> Tensor:
    """``n (4 d^2 + 2 d f) + 2 n^2 d`` for each count in ``tokens`` (int64)."""
    return tokens * (4 * dim * dim + 2 * dim * ffn) + 2 * tokens * tokens * dim


def predictor_macs(tokens: Tensor, dim: int, hidden: int) -> Tensor:
    """``n (d p + 2 p)``"""
    return tokens * (dim * hidden + 2 * hidden)


def skim_macs(kept: Tensor, lengths: Tensor, protected: Tensor, sizes: EncoderSizes) -> Tensor:
    """Multiply-adds of each sentence (B,) int64.

    Args:
        kept: (L, B) int64, tokens that enter each layer. lengths: (B,) int64, real tokens before the first predictor.
        protected: (B,) int64, tokens that no predictor looks at.
    """
    total = torch.zeros_like(lengths)
    before = lengths
    for number, entering in enumerate(kept):
        if sizes.predictors[number]:
            total = total + predictor_macs(before - protected, sizes.dim, sizes.predictor_dim)
        total = total + layer_macs(entering, sizes.dim, sizes.ffn)
        before = entering
    return total


def dense_macs(lengths: Tensor, sizes: EncoderSizes) -> Tensor:
    """The same encoder without predictors over sentences of these lengths (B,) int64."""
    return sizes.layers * layer_macs(lengths, sizes.dim, sizes.ffn)


def classification_macs(dim: int, inner: int, classes: int) -> int:
    """Of a sentence's classification head."""
    return dim * inner + inner * classes


def question_answering_macs(tokens: Tensor, dim: int) -> Tensor:
    """Of the head that gives each token a start and an end score."""
    return tokens * 2 * dim


def gflop(macs: Tensor) -> float:
    """10**9 floating point operations of all sentences together."""
    return 2 * int(macs.sum()) / 1e9
