"""Transformer-XL's self-attention (Dai et al. 2019, section 3.3), batch-first, whole sequences or token by token."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fairseq_efficient.modules.fused_self_attention import FusedSelfAttention, next_size, remember
from fairseq_efficient.ops.relative_attention import relative_attention, relative_attention_step
from fairseq_efficient.precision import wide_dtype
from fairseq_efficient.state import LayerCache, WindowCache


def sinusoids(
    count: int, dim: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(count, dim): row x is ``concat(sin(x * w), cos(x * w))`` with ``w_i = 10000 ** (-2 i / dim)``.

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoids need an even number of channels, got {dim}")
    return _sinusoids(count, dim, torch.device(device or "cpu"), dtype).clone()


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sinusoids(count: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Kept, because double precision over a long window takes as long as a layer over a short one."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angle = torch.arange(count, dtype=torch.float64, device=device).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).to(dtype)


class RelativeSelfAttention(FusedSelfAttention):
    """Causal; positions enter as distances, through their own projection and two biases that layers may share.

    Memory is what the layer was given before x: hidden states, whose keys and values are made anew (the paper), or the
    keys and values of :meth:`attend` (the same numbers, as long as weights stay).

    Args:
        window: keys that a query sees at most, itself included; ``--same-length`` of Transformer-XL with memory M is
            ``window=M``. Others as :class:`FusedSelfAttention`.
        clamp_length: distances beyond it count as this one (``--clamp-len``).
        keep: attention weights that a call may keep for its backward; see the operator.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        head_dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        window: int | None = None,
        clamp_length: int | None = None,
        keep: int = 0,
    ):
        super().__init__(embed_dim, heads, head_dim, dropout, bias)
        self.window, self.clamp_length, self.keep = window, clamp_length, keep
        self.r_proj = nn.Linear(embed_dim, heads * head_dim, bias)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        padding_mask: Tensor | None = None,
        memory: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attend over all of x and what went before.

        Args:
            x: (B, T, C).
            positions: (M + T or more, C), :func:`sinusoids` by ascending distance (dropout on it is the caller's); or
                (H, M + T or more, d), what :meth:`project_positions` makes of them.
            content_bias, position_bias: (H, d), u and v of the paper.
            padding_mask: (B, T) bool, True = pad. Pads on the right need none: nothing real sees them.
            memory: (B, M, C), layer inputs before x, or (B, 2, H, M, d), keys and values; never padded.
            window: keys that a query sees at most in this call, if fewer than the module's.

        Returns:
            (B, T, C).
        """
        return self.attend(x, positions, content_bias, position_bias, padding_mask, memory, window)[0]

    def packed(
        self,
        x: Tensor,
        lengths: Sequence[int],
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
    ) -> Tensor:
        """:meth:`forward` over rows of ``lengths`` one after another: (N, C) -> (N, C), no work on pads.

        Projections see all rows (and positions) at once; attention one row after the other.
        """
        q, k, v = self.split(x.unsqueeze(0))
        r = self.project_positions(positions[: max(lengths)])
        rows = zip(*(one.split(list(lengths), 2) for one in (q, k, v)), strict=True)
        rate, window = self.dropout_now(), self.window
        out = [
            relative_attention(one, keys, values, r, content_bias, position_bias, dropout_p=rate, window=window)
            for one, keys, values in rows
        ]
        return self.merge(torch.cat(out, 2)).squeeze(0)

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

        lengths (B,) int64: real tokens of each row, the rest being pads on the right; makes the cache ragged. A
        ``WindowCache`` says how many keys a query sees.
        """
        window = cache.window if isinstance(cache, WindowCache) else None
        out, k, v = self.attend(x, positions, content_bias, position_bias, window=window)
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
        count = next_size(cache, keys.size(2))
        if count is not None:
            cache.table = self.project_positions(sinusoids(count, self.embed_dim, x.device, wide_dtype(x.dtype)))
        assert cache.table is not None
        out = relative_attention_step(
            q, keys, values, cache.table, content_bias, position_bias, lengths, window=self.window
        )
        return self.merge(out).squeeze(1)

    def project_positions(self, positions: Tensor) -> Tensor:
        """(S, C) by ascending distance -> (H, S, d)."""
        count, known = positions.size(0), positions.size(0)
        if self.clamp_length is not None:
            known = min(known, self.clamp_length + 1)
        r = self.r_proj(positions[:known].to(self.r_proj.weight.dtype))
        r = r.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)
        return r if known == count else torch.cat([r, r[:, -1:].expand(-1, count - known, -1)], 1)

    def attend(
        self,
        x: Tensor,
        positions: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        padding_mask: Tensor | None = None,
        memory: Tensor | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`forward`, and the keys and values (B, H, M + T, d) that it attended to."""
        q, k, v = self.split(x)
        if memory is not None:
            old = self.split_memory(memory.to(x.dtype)) if memory.dim() == 3 else memory.to(k.dtype).unbind(1)
            k, v = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
            if padding_mask is not None:
                padding_mask = pad(padding_mask, (k.size(2) - x.size(1), 0), value=False)
        r = self.project_positions(positions[: k.size(2)]) if positions.dim() == 2 else positions
        out = relative_attention(
            q,
            k,
            v,
            r,
            content_bias,
            position_bias,
            key_padding_mask=padding_mask,
            dropout_p=self.dropout_now(),
            window=min((one for one in (window, self.window) if one is not None), default=None),
            keep=self.keep,
        )
        return self.merge(out), k, v
