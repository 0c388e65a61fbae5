"""Post-norm layers (1905.07799): attention and feed-forward, or attention with persistent memory (1907.01470)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import dropout

from adaptive_span.attention import AttentionOptions, LayerState, SpanSelfAttention
from fairseq_efficient.modules.layer_steps import add_residual, in_place_activation


@dataclass(frozen=True)
class LayerOptions:
    """ffn: width of the feed-forward, which layers with persistent memory do not have."""

    attention: AttentionOptions
    ffn: int
    activation_dropout: float = 0.0
    activation: str = "relu"


class Layer(nn.Module):
    """``h = LN(x + attention(x))``, then ``LN(h + W2 dropout(act(W1 h)))``; no dropout on branches.

    Shapes: x (B, M, C), memory (B, L, C) layer inputs before x; in incremental decoding (R, C).
    """

    def __init__(self, options: LayerOptions):
        super().__init__()
        o = self.options = options
        dim = o.attention.dim
        self.self_attn = SpanSelfAttention(o.attention)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        if not o.attention.persistent:
            self.fc1, self.fc2 = nn.Linear(dim, o.ffn), nn.Linear(o.ffn, dim)
            self.final_layer_norm = nn.LayerNorm(dim)
            self.activation = in_place_activation(o.activation)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor | None = None,
        known: Sequence[float] | None = None,
        memory_length: int | None = None,
    ) -> Tensor:
        return self._around(x, lambda y: self.self_attn(y, positions, memory, known, memory_length))

    def fill(self, x: Tensor, positions: Tensor, state: LayerState, known: Sequence[float] | None) -> Tensor:
        """:meth:`forward` without memory that leaves its keys and values in empty caches."""
        return self._around(x, lambda y: self.self_attn.fill(y, positions, state, known))

    def step(self, x: Tensor, positions: Tensor, state: LayerState) -> Tensor:
        """x (R, C): one new state for each row of the caches."""
        return self._around(x, lambda y: self.self_attn.step(y, positions, state))

    def _around(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = self.self_attn_layer_norm(add_residual(attend(x), x))
        if self.options.attention.persistent:
            return x
        y = dropout(self.activation(self.fc1(x)), self.options.activation_dropout, self.training)
        return self.final_layer_norm(add_residual(self.fc2(y), x))
