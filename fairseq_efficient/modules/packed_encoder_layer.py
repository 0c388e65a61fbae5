"""fairseq's encoder layer for batches that lose tokens: under a mask that is learned, or packed into one buffer."""

from typing import Any, NamedTuple

from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor

from fairseq_efficient.modules.layer_steps import add_residual, attention_dropout
from fairseq_efficient.ops.token_mask import masked_attention
from fairseq_efficient.ops.token_pack import varlen_attention


class PackedRows(NamedTuple):
    """How the N rows of a packed buffer attend to each other; see :func:`varlen_attention` for the bounds."""

    cu_seqlens: Tensor  # (B + 1,) of the queries
    max_len: int
    cu_keys: Tensor | None = None  # (B + 1,) of the keys, if they are not the queries
    max_keys: int | None = None
    queries: Tensor | None = None  # rows that ask and go through the feed-forward; None: all
    keys: Tensor | None = None  # rows that are attended to; None: all


class PackedSelfAttention(MultiheadAttention):
    """fairseq's parameters and names. C channels.

    Args:
        rule: how a mask over keys acts; see :func:`fairseq_efficient.ops.token_mask.fast.masked_attention`.
        backend: of packed attention; see :func:`fairseq_efficient.ops.token_pack.fast.varlen_attention`.
    """

    def __init__(self, embed_dim: int, num_heads: int, rule: str = "renorm", backend: str = "auto", **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.rule, self.backend = rule, backend

    def masked(self, x: Tensor, padding_mask: Tensor | None, keep: Tensor) -> Tensor:
        """x (T, B, C); padding_mask (B, T), True = pad; keep (B, T), in [0, 1] -> (T, B, C)"""
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (project(x).view(shape).transpose(0, 1) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = masked_attention(q, k, v, keep, padding_mask, attention_dropout(self), self.rule)
        return self.out_proj(out.transpose(0, 1).reshape(x.shape))

    def packed(self, x: Tensor, rows: PackedRows) -> Tensor:
        """x (N, C) -> (number of queries, C)"""
        keys = x if rows.keys is None else x.index_select(0, rows.keys)
        asking = x if rows.queries is None else x.index_select(0, rows.queries)
        q, k, v = (
            project(part).unflatten(-1, (self.num_heads, self.head_dim))
            for project, part in ((self.q_proj, asking), (self.k_proj, keys), (self.v_proj, keys))
        )
        out = varlen_attention(q, k, v, rows.cu_seqlens, rows.max_len, rows.cu_keys, rows.max_keys, self.backend)
        return self.out_proj(out.flatten(-2))


class PackedEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer, which also runs under a mask or packed.

    Args:
        cfg: nested ``TransformerConfig``. rule, backend: see :class:`PackedSelfAttention`.
    """

    def __init__(self, cfg: Any, rule: str = "renorm", backend: str = "auto"):
        self.rule, self.backend = rule, backend
        super().__init__(cfg)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> PackedSelfAttention:
        return PackedSelfAttention(
            embed_dim,
            cfg.encoder.attention_heads,
            self.rule,
            self.backend,
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        keep: Tensor | None = None,
        rows: PackedRows | None = None,
    ) -> Tensor:
        """x (T, B, C), or with ``rows`` (N, C) packed.

        Args:
            encoder_padding_mask: (B, T), True: never attended to.
            keep: (B, T) in [0, 1]: how much each key counts; None: fairseq's own attention.
            rows: of a packed x.

        Returns:
            As x; with ``rows.queries`` those rows only.
        """
        if keep is None and rows is None:
            return super().forward(x, encoder_padding_mask, attn_mask)
        residual = x if rows is None or rows.queries is None else x.index_select(0, rows.queries)
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        if rows is not None:
            x = self.self_attn.packed(x, rows)
        else:
            x = self.self_attn.masked(x, encoder_padding_mask, keep)
        x = add_residual(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        x = self.activation_dropout_module(self.activation_fn(self.fc1(x)))
        x = add_residual(self.dropout_module(self.fc2(x)), residual)
        return x if self.normalize_before else self.final_layer_norm(x)
