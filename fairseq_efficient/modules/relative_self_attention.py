"""Transformer-XL's self-attention (Dai et al. 2019, section 3.3), batch-first, whole sequences or token by token."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fairseq_efficient.modules.fused_self_attention import FusedSelfAttention, next_size, remember
from fairseq_efficient.ops.relative_attention import relative_attention, relative_attention_step
from fairseq_efficient.state import LayerCache


def sinusoids(
    count: int, dim: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(count, dim): row x is ``concat(sin(x * w), cos(x * w))`` with ``w_i = 10000 ** (-2 i / dim)``.

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoids need an even number of channels, got {dim}")
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angle = torch.arange(count, dtype=torch.float64, device=device).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).to(dtype)


class RelativeSelfAttention(FusedSelfAttention):
    """Causal; positions enter as distances, through their own projection and two biases that layers may share.

    Args:
        window: keys that a query sees at most, itself included; others as :class:`FusedSelfAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        head_dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        window: int | None = None,
    ):
        super().__init__(embed_dim, heads, head_dim, dropout, bias)
        self.window = window
        self.r_proj = nn.Linear(embed_dim, heads * head_dim, bias)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        padding_mask: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """Attend over all of x and what went before.

        Args:
            x: (B, T, C).
            positions: (M + T or more, C), :func:`sinusoids` by ascending distance (dropout on it is the caller's).
            content_bias, position_bias: (H, d), u and v of the paper.
            padding_mask: (B, T) bool, True = pad. Pads on the right need none: nothing real sees them.
            memory: (B, M, C), layer inputs before x; never padded.

        Returns:
            (B, T, C).
        """
        return self._attend(x, positions, content_bias, position_bias, padding_mask, memory)[0]

    def fill(
        self,
        x: Tensor,
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        cache: LayerCache,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward`, leaving an empty cache as if the tokens had come one by one.

        lengths (B,) int64: real tokens of each row, the rest being pads on the right; makes the cache ragged.
        """
        out, k, v = self._attend(x, positions, content_bias, position_bias)
        cache.fill(k, v, lengths)
        return out

    def step(
        self,
        x: Tensor,
        cache: LayerCache,
        content_bias: Tensor,
        position_bias: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One new token (R, C) for each row of the cache, or (m, C) for ``rows`` (m,) int64 of a ragged one."""
        q, k, v = self.split(x.unsqueeze(1))
        keys, values, lengths = remember(cache, rows, k, v)
        count = next_size(cache, cache.longest)
        if count is not None:
            cache.table = self._project(sinusoids(count, self.embed_dim, x.device))
        assert cache.table is not None
        out = relative_attention_step(
            q, keys, values, cache.table, content_bias, position_bias, lengths, window=self.window
        )
        return self.merge(out).squeeze(1)

    def _project(self, positions: Tensor) -> Tensor:
        """(S, C) -> (H, S, d)"""
        r = self.r_proj(positions.to(self.r_proj.weight.dtype))
        return r.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)

    def _attend(
        self,
        x: Tensor,
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        padding_mask: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output (B, T, C), and the keys and values (B, H, S, d) it attended to."""
        q, k, v = self.split(x)
        if memory is not None:
            old_k, old_v = self.split_memory(memory)
            k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
            padding_mask = None if padding_mask is None else pad(padding_mask, (memory.size(1), 0), value=False)
        out = relative_attention(
            q,
            k,
            v,
            self._project(positions[: k.size(2)]),
            content_bias,
            position_bias,
            key_padding_mask=padding_mask,
            dropout_p=self.dropout_now(),
            window=self.window,
        )
        return self.merge(out), k, v
