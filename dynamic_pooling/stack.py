"""Causal transformer layers over tokens or segments (Dai et al. 2019: Transformer-XL's, post-norm).

Shapes: x (B, T, C), or packed (N, C): rows one after another without padding. Pads stand at the right, where causality
already hides them. In incremental decoding one new state per row, (R, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fairseq import utils
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn
from torch.nn.functional import dropout

from fairseq_efficient.modules.layer_steps import add_residual, in_place_activation
from fairseq_efficient.modules.relative_self_attention import RelativeSelfAttention, sinusoids
from fairseq_efficient.modules.rotary_self_attention import RotarySelfAttention, rotary_table
from fairseq_efficient.precision import wide_dtype
from fairseq_efficient.state import LayerCache


@dataclass(frozen=True)
class LayerOptions:
    """Sizes and rates of the layers of one stack."""

    dim: int
    ffn: int
    heads: int
    head_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: str = "gelu"
    normalize_before: bool = False
    rotary: bool = False
    checkpoint: bool = False


class Positions(NamedTuple):
    """What attention knows about distance: a table up to the longest one, and for relative attention two biases."""

    table: Any  # rotary: (cos, sin); relative: (S, C), by ascending distance
    content_bias: Tensor | None = None  # (H, d)
    position_bias: Tensor | None = None  # (H, d)

    def arguments(self) -> tuple[Any, ...]:
        """What the attention module takes."""
        return (self.table,) if self.content_bias is None else tuple(self)


class Layer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm."""

    def __init__(self, options: LayerOptions):
        super().__init__()
        o = self.options = options
        attention: Any = RotarySelfAttention if o.rotary else RelativeSelfAttention
        self.self_attn: Any = attention(o.dim, o.heads, o.head_dim, o.attention_dropout, bias=True)
        self.self_attn_layer_norm = nn.LayerNorm(o.dim)
        self.fc1 = nn.Linear(o.dim, o.ffn)
        self.fc2 = nn.Linear(o.ffn, o.dim)
        self.final_layer_norm = nn.LayerNorm(o.dim)
        self.activation = in_place_activation(o.activation)

    def forward(self, x: Tensor, positions: Positions, lengths: Sequence[int] | None = None) -> Tensor:
        """x (B, T, C); with ``lengths`` packed (N, C), rows of these lengths."""
        return self._around(x, lambda y: self._attend(y, positions, lengths))

    def fill(self, x: Tensor, positions: Positions, cache: LayerCache, lengths: Tensor | None) -> Tensor:
        """:meth:`forward` that leaves its keys and values in an empty cache; lengths (B,) of ragged rows."""
        return self._around(x, lambda y: self.self_attn.fill(y, *positions.arguments(), cache, lengths))

    def step(self, x: Tensor, biases: Sequence[Tensor], cache: LayerCache, rows: Tensor | None) -> Tensor:
        """x (R, C): one new state for each row of the cache, or for its ``rows`` only."""
        return self._around(x, lambda y: self.self_attn.step(y, cache, *biases, rows=rows))

    def _attend(self, x: Tensor, positions: Positions, lengths: Sequence[int] | None) -> Tensor:
        if lengths is None:
            return self.self_attn(x, *positions.arguments())
        return self.self_attn.packed(x, lengths, *positions.arguments())

    def _around(self, x: Tensor, attend: Any) -> Tensor:
        before, rate = self.options.normalize_before, self.options.dropout
        y = attend(self.self_attn_layer_norm(x) if before else x)
        x = add_residual(dropout(y, rate, self.training), x)
        x = x if before else self.self_attn_layer_norm(x)
        y = self.activation(self.fc1(self.final_layer_norm(x) if before else x))
        y = self.fc2(dropout(y, self.options.activation_dropout, self.training))
        x = add_residual(dropout(y, rate, self.training), x)
        return x if before else self.final_layer_norm(x)


class Stack(nn.Module):
    """``layers`` layers; with ``normalize_before`` a LayerNorm at the end."""

    def __init__(self, options: LayerOptions, layers: int):
        super().__init__()
        self.options = options
        built: list[Any] = [Layer(options) for _ in range(layers)]
        self.layers: Any = nn.ModuleList(checkpoint_wrapper(layer) if options.checkpoint else layer for layer in built)
        self.layer_norm = nn.LayerNorm(options.dim) if options.normalize_before and layers else None

    def positions(self, length: int, like: Tensor, biases: Sequence[Tensor] = ()) -> Positions:
        """Tables for sequences of up to ``length``; dropout on the relative one in training."""
        kind = wide_dtype(like.dtype)
        if self.options.rotary:
            cos, sin = rotary_table(length, self.options.head_dim, like.device)
            return Positions((cos.to(kind), sin.to(kind)))
        table = sinusoids(length, self.options.dim, like.device, kind).to(like.dtype)
        return Positions(dropout(table, self.options.dropout, self.training), *biases)

    def forward(self, x: Tensor, positions: Positions, lengths: Sequence[int] | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, lengths)
        return self._end(x)

    def fill(
        self, x: Tensor, positions: Positions, caches: Sequence[LayerCache], lengths: Tensor | None = None
    ) -> Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.fill(x, positions, cache, lengths)
        return self._end(x)

    def step(
        self, x: Tensor, biases: Sequence[Tensor], caches: Sequence[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.step(x, biases, cache, rows)
        return self._end(x)

    def _end(self, x: Tensor) -> Tensor:
        return x if self.layer_norm is None else self.layer_norm(x)


def activation(name: str) -> Any:
    """fairseq's activation of that name, not in place."""
    return utils.get_activation_fn(name)
