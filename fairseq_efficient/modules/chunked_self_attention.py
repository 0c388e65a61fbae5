"""fairseq's encoder self-attention restricted to chunks, on SDPA."""

from typing import Any

from fairseq.modules import MultiheadAttention
from torch import Tensor

from fairseq_efficient.modules.layer_steps import attention_dropout
from fairseq_efficient.ops.chunk_attention import chunk_attention


class ChunkedSelfAttention(MultiheadAttention):
    """Same parameters and names as fairseq's ``MultiheadAttention``; batch-first, within chunks.

    Args:
        chunk_size: tokens per chunk, or None for full attention.
        chunk_overlap, chunk_shift: see :func:`fairseq_efficient.ops.chunk_attention.fast.chunk_attention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        chunk_size: int | None,
        chunk_overlap: int = 0,
        chunk_shift: int = 0,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.chunk_size, self.chunk_overlap, self.chunk_shift = chunk_size, chunk_overlap, chunk_shift

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query (B, T, C); key and value are the query; key_padding_mask (B, T), True = pad."""
        batch, length, _channels = query.shape
        shape = (batch, length, self.num_heads, self.head_dim)
        out = chunk_attention(
            self.q_proj(query).view(shape),
            self.k_proj(query).view(shape),
            self.v_proj(query).view(shape),
            self.chunk_size or length,
            key_padding_mask,
            overlap=self.chunk_overlap if self.chunk_size else 0,
            shift=self.chunk_shift if self.chunk_size else 0,
            dropout_p=attention_dropout(self),
        )
        return self.out_proj(out.reshape(batch, length, self.embed_dim)), None
