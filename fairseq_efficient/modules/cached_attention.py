"""fairseq's decoder attention on SDPA, with caches that beam search does not have to copy.

Same parameters and names as fairseq's ``MultiheadAttention``. Time-first: query (T, R, C), R rows (hypotheses).
"""

from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fairseq_efficient.modules.layer_steps import attention_dropout
from fairseq_efficient.precision import wide
from fairseq_efficient.state import CrossAttentionCache, SelfAttentionCache

_STATE = "attention_cache"


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(T, R, C) -> (R, H, T, D), a view."""
    length, rows, channels = x.shape
    return x.view(length, rows, heads, channels // heads).permute(1, 2, 0, 3)


def _visible(padding_mask: Tensor | None, queries: int, causal: bool) -> Tensor | None:
    """Boolean SDPA mask (R, 1, queries, keys), True = may look; rows that see nothing look everywhere (finite)."""
    if padding_mask is None:
        return None
    visible = ~padding_mask[:, None, None, :].expand(-1, 1, queries, -1)
    if causal:
        visible = visible & torch.ones(queries, padding_mask.size(1), dtype=torch.bool, device=visible.device).tril()
    return visible | ~visible.any(-1, keepdim=True)


class CachedSelfAttention(MultiheadAttention):
    """Causal self-attention: full sequences in training, one token at a time with a cache in generation."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict | None = None,
        attn_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """key_padding_mask (R, T), True = pad. ``attn_mask`` only says that the sequence is causal (its values are
        not read); with ``incremental_state`` the queries are the newest tokens and see all cached ones."""
        length, rows, _channels = query.shape
        q = _split_heads(self.q_proj(query), self.num_heads)
        k = _split_heads(self.k_proj(query), self.num_heads)
        v = _split_heads(self.v_proj(query), self.num_heads)
        causal = attn_mask is not None and length > 1
        if incremental_state is not None:
            cache = self.get_incremental_state(incremental_state, _STATE)
            if cache is None:
                cache = SelfAttentionCache.empty(k)
                self.set_incremental_state(incremental_state, _STATE, cache)
            cache.append(k, v, key_padding_mask)
            k, v, key_padding_mask = cache.keys, cache.values, cache.padding_mask
        mask = _visible(key_padding_mask, length, causal)
        dropout = attention_dropout(self)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
        )
        return self.out_proj(out.permute(2, 0, 1, 3).reshape(length, rows, self.embed_dim)), None

    def reorder_cache(self, incremental_state: dict, new_order: Tensor) -> None:
        cache = self.get_incremental_state(incremental_state, _STATE)
        if cache is not None:
            cache.reorder(new_order)


class CachedCrossAttention(MultiheadAttention):
    """Attention over the encoder: the rows of one sentence are queries of one attention, so its keys exist once."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict | None = None,
        static_kv: bool = True,
        need_weights: bool = False,
        need_head_weights: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query (T, R, C); key (source length, S, C) with R a multiple of S, rows of a sentence together;
        key_padding_mask (S, source length), True = pad. Weights, if asked for: (H, R, T, source length) per head
        or (R, T, source length) averaged."""
        length, rows, _channels = query.shape
        cache = self._cache(key, key_padding_mask, rows, incremental_state)
        sentences = cache.keys.size(0)
        beam = rows // sentences
        # (T, S * beam, C) -> (S, H, beam * T, D)
        q = self.q_proj(query).view(length, sentences, beam, self.num_heads, self.head_dim)
        q = q.permute(1, 3, 2, 0, 4).reshape(sentences, self.num_heads, beam * length, self.head_dim)
        mask = _visible(cache.padding_mask, beam * length, causal=False)
        dropout = attention_dropout(self)
        out = scaled_dot_product_attention(q, cache.keys, cache.values, attn_mask=mask, dropout_p=dropout)
        out = out.view(sentences, self.num_heads, beam, length, self.head_dim).permute(3, 0, 2, 1, 4)
        out = self.out_proj(out.reshape(length, rows, self.embed_dim))
        if not (need_weights or need_head_weights):
            return out, None
        scores = wide(torch.matmul(q, cache.keys.transpose(2, 3))) * self.scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1).view(sentences, self.num_heads, beam, length, -1)
        weights = weights.permute(1, 0, 2, 3, 4).reshape(self.num_heads, rows, length, -1)
        return out, weights if need_head_weights else weights.mean(0)

    def _cache(
        self, key: Tensor | None, mask: Tensor | None, rows: int, incremental_state: dict | None
    ) -> CrossAttentionCache:
        cache = None if incremental_state is None else self.get_incremental_state(incremental_state, _STATE)
        if cache is None:
            assert key is not None
            k, v = (_split_heads(p(key), self.num_heads) for p in (self.k_proj, self.v_proj))
            cache = CrossAttentionCache(k, v, mask, rows)
            if incremental_state is not None:  # read at every step: worth contiguous rows
                cache.keys, cache.values = k.contiguous(), v.contiguous()
                self.set_incremental_state(incremental_state, _STATE, cache)
        return cache

    def reorder_cache(self, incremental_state: dict, new_order: Tensor) -> None:
        cache = self.get_incremental_state(incremental_state, _STATE)
        if cache is not None:
            cache.reorder(new_order)
