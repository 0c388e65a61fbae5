"""Causal self-attention with rotary positions (Su et al. 2021), batch-first, on SDPA, whole or token by token."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fairseq_efficient.modules.fused_self_attention import FusedSelfAttention, causal_mask, next_size, remember
from fairseq_efficient.precision import wide_dtype
from fairseq_efficient.state import LayerCache


def rotary_table(
    count: int, dim: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin of ``position * 10000 ** (-2 i / dim)``, each (count, dim / 2), in ``dtype`` but fp32 for half types.

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"rotary positions need an even number of channels per head, got {dim}")
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angle = torch.arange(count, dtype=torch.float64, device=device).unsqueeze(1) * frequency
    kind = wide_dtype(dtype)
    return angle.cos().to(kind), angle.sin().to(kind)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i of x (..., d) with channel i + d / 2 (GPT-NeoX's halves); cos, sin broadcast to (..., d / 2).

    Computed in fp32 or better, returned in the dtype of x.
    """
    one, two = x.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(x.dtype)


class RotarySelfAttention(FusedSelfAttention):
    """Causal; queries and keys are turned by their positions, and keys are cached so. Args: see the base class."""

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], padding_mask: Tensor | None = None) -> Tensor:
        """Attend over all of x.

        Args:
            x: (B, T, C).
            table: :func:`rotary_table` of at least T positions and d channels.
            padding_mask: (B, T) bool, True = pad. Pads on the right need none, and without one (and without dropout)
                no (T, T) matrix is made. Elsewhere pads are not seen, but count as positions.

        Returns:
            (B, T, C).
        """
        return self._attend(x, table, padding_mask)[0]

    def packed(self, x: Tensor, lengths: Sequence[int], table: tuple[Tensor, Tensor]) -> Tensor:
        """:meth:`forward` over rows of ``lengths`` one after another: (N, C) -> (N, C), no work on pads.

        Projections see all rows at once; attention one row after the other.
        """
        q, k, v = self.split(x.unsqueeze(0))
        place = torch.cat([torch.arange(length, device=x.device) for length in lengths])
        cos, sin = (one[place] for one in table)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        rows = zip(*(one.split(list(lengths), 2) for one in (q, k, v)), strict=True)
        rate = self.dropout_now()
        out = [
            scaled_dot_product_attention(one, keys, values, dropout_p=rate, is_causal=True)
            for one, keys, values in rows
        ]
        return self.merge(torch.cat(out, 2)).squeeze(0)

    def fill(self, x: Tensor, table: tuple[Tensor, Tensor], cache: LayerCache, lengths: Tensor | None = None) -> Tensor:
        """:meth:`forward`, leaving an empty cache as if the tokens had come one by one.

        lengths (B,) int64: real tokens of each row, the rest being pads on the right; makes the cache ragged.
        """
        out, k, v = self._attend(x, table)
        cache.fill(k, v, lengths)
        return out

    def step(self, x: Tensor, cache: LayerCache, rows: Tensor | None = None) -> Tensor:
        """One new token (R, C) for each row of the cache, or (m, C) for ``rows`` (m,) int64 of a ragged one."""
        count = next_size(cache, cache.longest + 1)
        if count is not None:
            cache.table = torch.stack(rotary_table(count, self.head_dim, x.device))
        assert cache.table is not None
        place = cache.lengths
        if isinstance(place, int):
            angle = cache.table[:, place]  # (2, d / 2)
        else:
            angle = cache.table[:, place if rows is None else place[rows], None, None]  # (2, m, 1, 1, d / 2)
        cos, sin = angle.unbind()
        q, k, v = self.split(x.unsqueeze(1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values, lengths = remember(cache, rows, k, v)
        mask = None
        if not isinstance(lengths, int):
            mask = torch.arange(keys.size(2), device=x.device) < lengths.unsqueeze(1)
            mask = mask[:, None, None, :]
        return self.merge(scaled_dot_product_attention(q, keys, values, attn_mask=mask)).squeeze(1)

    def _attend(
        self, x: Tensor, table: tuple[Tensor, Tensor], padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output (B, T, C), and the keys and values (B, H, T, d)."""
        q, k, v = self.split(x)
        cos, sin = (one[: x.size(1)] for one in table)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = None if padding_mask is None else causal_mask(padding_mask)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout_now(), is_causal=mask is None
        )
        if padding_mask is not None:
            out = out.masked_fill(padding_mask.cumprod(1).bool()[:, None, :, None], 0.0)
        return self.merge(out), k, v
