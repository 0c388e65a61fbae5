"""Analytic FLOPs of transformers: matrix products and pooling, 2 per multiply-add; softmax and norms are not counted.

Counted from the formulas because torch's ``FlopCounterMode`` sees 0 FLOPs in the CPU's fused attention. What an
implementation computes is counted: full squares for causal attention by a mask, keys once per copy.
Sizes: tokens, dim (model), ffn (hidden layer), all per sentence.
"""

from collections.abc import Sequence
from itertools import pairwise

TRAINING = 3  # forward and backward of a matrix product are three products of its size
FUSED_TRAINING = 3.5  # fused attention: two products forward, five backward, which computes the scores again


def linear(rows: int, fan_in: int, fan_out: int) -> int:
    """A matrix product."""
    return 2 * rows * fan_in * fan_out


def attention(queries: int, keys: int, dim: int) -> int:
    """Scores and weighted sum, over all heads."""
    return 4 * queries * keys * dim


def causal_attention(tokens: int, dim: int) -> int:
    """:func:`attention` by a fused kernel that skips later keys."""
    return 2 * tokens * (tokens + 1) * dim


def relative_attention(tokens: int, dim: int, tile: int = 128, training: bool = False) -> int:
    """Causal attention with relative positions in tiles of about ``tile`` queries, each with the keys up to its last.

    Forward: the scores of content and position (one distance more than keys) and the weighted sum. The backward
    computes both scores again and has six products more.
    """
    keys, distances = 0, 0
    tile = max(1, -(-tokens // max(1, round(tokens / tile))))  # as the operator cuts
    for start in range(0, tokens, tile):
        end = min(start + tile, tokens)
        keys += (end - start) * end
        distances += (end - start) * (end + 1)
    return 2 * dim * (7 * keys + 4 * distances if training else 2 * keys + distances)


def span_attention(queries: int, width: int, dim: int, training: bool = False) -> int:
    """One head's attention over the last ``width`` keys with relative positions, in tiles as the operator cuts them.

    Forward: the scores of position (``width`` distances a query) and content (the keys in reach of any query of the
    tile), and the weighted sum. The backward computes both scores again, and has two products more for positions and
    four for keys.
    """
    target = 64 if width <= 512 else 128
    step, total = -(-queries // max(1, round(queries / target))), 0
    for start in range(0, queries, step):
        rows = min(step, queries - start)
        keys = width + rows - 1
        total += rows * ((4 if training else 1) * width + (7 if training else 2) * keys)
    return 2 * dim * total


def chunked_attention(tokens: int, chunk: int | None, dim: int) -> int:
    """Self-attention within chunks, the last one filled up; None: full attention."""
    if chunk is None or chunk >= tokens:
        return attention(tokens, tokens, dim)
    return attention(-(-tokens // chunk) * chunk, chunk, dim)


def feed_forward(tokens: int, dim: int, ffn: int) -> int:
    """Both products of a feed-forward layer."""
    return linear(tokens, dim, ffn) + linear(tokens, ffn, dim)


def encoder_layer(tokens: int, dim: int, ffn: int, chunk: int | None = None) -> int:
    """Projections, attention and feed-forward."""
    return 4 * linear(tokens, dim, dim) + chunked_attention(tokens, chunk, dim) + feed_forward(tokens, dim, ffn)


def pooling(tokens: int, dim: int) -> int:
    """A linear scorer, and one multiply-add per value to blend each token into its slot."""
    return linear(tokens, dim, 1) + 2 * tokens * dim


def encoder(widths: Sequence[int], dim: int, ffn: int, chunk: int | None = None) -> int:
    """``widths``: tokens that enter each layer, and tokens that leave the last; where they fall there is a pool."""
    layers = sum(encoder_layer(width, dim, ffn, chunk) for width in widths[:-1])
    pools = sum(pooling(a, dim) for a, b in pairwise(widths) if b < a)
    return layers + pools


def decoder(target: int, source: int, layers: int, dim: int, ffn: int, vocab: int) -> int:
    """Teacher-forced decoder over ``source`` encoder states."""
    per_layer = (
        6 * linear(target, dim, dim)  # q, k, v, out; cross q, out
        + 2 * linear(source, dim, dim)  # cross k, v
        + attention(target, target, dim)
        + attention(target, source, dim)
        + feed_forward(target, dim, ffn)
    )
    return layers * per_layer + linear(target, dim, vocab)


def generation(
    steps: int, source: int, layers: int, dim: int, ffn: int, vocab: int, beam: int = 1, key_copies: int = 1
) -> int:
    """Beam search with caches; ``key_copies``: how many hypotheses have cross-attention keys of their own."""
    row = 6 * linear(1, dim, dim) + attention(1, source, dim) + feed_forward(1, dim, ffn)
    cached = sum(attention(1, step + 1, dim) for step in range(steps))
    keys = key_copies * 2 * linear(source, dim, dim)
    return layers * (beam * (steps * row + cached) + keys) + steps * linear(beam, dim, vocab)
