"""The two kinds of blocks (Mandava et al. 2020): attention or feed-forward, with residual and LayerNorm of their own.

Shapes: x (B, T, C); memory (B, M, C), what attention was given before x, or (B, 2, H, M, d), its keys and values.
H heads of width d. In incremental decoding one new state per row, (R, C).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fairseq_efficient.modules.layer_steps import add_residual, in_place_activation
from fairseq_efficient.modules.relative_self_attention import RelativeSelfAttention
from fairseq_efficient.state import LayerCache
from fairseq_efficient.stream_memory import extend

KEEP = 1 << 22  # attention weights that a block may keep for its backward: 16 MiB in fp32


@dataclass(frozen=True)
class BlockOptions:
    """Sizes and rates of a block."""

    dim: int
    ffn: int
    heads: int
    head_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: str = "relu"
    normalize_before: bool = False
    clamp_len: int | None = None
    cache_keys: bool = False
    init_std: float = 0.02


@dataclass(frozen=True)
class Reach:
    """How far attention looks in a call.

    positions: (M + T or more, C), sinusoids by ascending distance. length: places to remember. window: keys that a
    query sees at most (``--same-length``).
    """

    positions: Tensor
    length: int = 0
    window: int | None = None


class AttentionBlock(nn.Module):
    """``LN(x + dropout(attention(x, memory)))``, or with ``normalize_before`` ``x + dropout(attention(LN(x), ...))``.

    Relative attention of Transformer-XL, without biases in its projections, with its own two bias vectors.
    """

    projected: Tensor | None  # what is made of positions, while weights stay

    def __init__(self, options: BlockOptions):
        super().__init__()
        o = self.options = options
        self.self_attn = RelativeSelfAttention(
            o.dim, o.heads, o.head_dim, o.attention_dropout, bias=False, clamp_length=o.clamp_len, keep=KEEP
        )
        self.content_bias = nn.Parameter(torch.empty(o.heads, o.head_dim))
        self.position_bias = nn.Parameter(torch.empty(o.heads, o.head_dim))
        self.layer_norm = nn.LayerNorm(o.dim)
        self.register_buffer("projected", None, persistent=False)
        for name, weight in self.named_parameters():
            if not name.startswith("layer_norm"):
                nn.init.normal_(weight, 0.0, o.init_std)

    def prepare_positions(self, positions: Tensor) -> None:
        """Project sinusoids (K, C) before evaluation with weights that stay; training and other weights undo it."""
        self.projected = self.self_attn.project_positions(positions).contiguous()

    def train(self, mode: bool = True) -> "AttentionBlock":
        if mode:
            self.projected = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.projected = None
        super()._load_from_state_dict(*args, **kwargs)

    def _positions(self, reach: "Reach", keys: int) -> Tensor:
        """Sinusoids for so many keys, or what was made of them."""
        known = self.projected
        return reach.positions if known is None or known.size(1) < keys else known

    def forward(self, x: Tensor, memory: Tensor | None, reach: Reach) -> tuple[Tensor, Tensor]:
        """(out (B, T, C), what to remember: the last ``reach.length`` places of memory and x, without gradient)."""
        kept: list[Tensor] = []

        positions = self._positions(reach, x.size(1) + (0 if memory is None else memory.size(-2)))

        def attend(y: Tensor) -> Tensor:
            out, keys, values = self.self_attn.attend(
                y, positions, self.content_bias, self.position_bias, memory=memory, window=reach.window
            )
            if self.options.cache_keys:
                start = max(0, keys.size(2) - reach.length)
                kept.append(torch.stack([keys[:, :, start:].detach(), values[:, :, start:].detach()], 1))
            else:
                old = memory if memory is not None and memory.dim() == 3 else None
                kept.append(extend(old, y, reach.length))
            return out

        out = self._around(x, attend)
        return out, kept[0]

    def no_memory(self, rows: int) -> Tensor:
        """What a block remembers of nothing: no place."""
        o = self.options
        shape = (rows, 2, o.heads, 0, o.head_dim) if o.cache_keys else (rows, 0, o.dim)
        return self.content_bias.detach().new_empty(shape)

    def fill(self, x: Tensor, reach: Reach, cache: LayerCache) -> Tensor:
        """:meth:`forward` without memory, leaving an empty cache as if the tokens had come one by one."""
        positions, biases = self._positions(reach, x.size(1)), (self.content_bias, self.position_bias)
        return self._around(x, lambda y: self.self_attn.fill(y, positions, *biases, cache))

    def step(self, x: Tensor, cache: LayerCache) -> Tensor:
        """x (R, C): a new state for each row of the cache."""
        return self._around(x, lambda y: self.self_attn.step(y, cache, self.content_bias, self.position_bias))

    def _around(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        before, rate = self.options.normalize_before, self.options.dropout
        out = dropout(attend(self.layer_norm(x) if before else x), rate, self.training)
        out = add_residual(out, x)
        return out if before else self.layer_norm(out)


class FeedForwardBlock(nn.Module):
    """``LN(x + dropout(W2 act(W1 x)))``, or with ``normalize_before`` ``x + dropout(W2 act(W1 LN(x)))``."""

    def __init__(self, options: BlockOptions):
        super().__init__()
        o = self.options = options
        self.fc1, self.fc2 = nn.Linear(o.dim, o.ffn), nn.Linear(o.ffn, o.dim)
        self.layer_norm = nn.LayerNorm(o.dim)
        self.activation = in_place_activation(o.activation)
        for linear in (self.fc1, self.fc2):
            nn.init.normal_(linear.weight, 0.0, o.init_std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        o = self.options
        y = self.activation(self.fc1(self.layer_norm(x) if o.normalize_before else x))
        y = self.fc2(dropout(y, o.activation_dropout, self.training))
        out = add_residual(dropout(y, o.dropout, self.training), x)
        return out if o.normalize_before else self.layer_norm(out)
