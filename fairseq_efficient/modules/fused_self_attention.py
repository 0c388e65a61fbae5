"""What causal self-attentions with one projection for queries, keys and values share; batch-first."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fairseq_efficient.state import LayerCache


class FusedSelfAttention(nn.Module):
    """Projections only. C channels, H heads of d channels; parameters keep torch's initialisation.

    Args:
        embed_dim: C.
        heads, head_dim: H, d; H * d need not be C.
        dropout: on attention weights, in training.
        bias: whether the projections have one.
    """

    def __init__(self, embed_dim: int, heads: int, head_dim: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.embed_dim, self.heads, self.head_dim, self.dropout = embed_dim, heads, head_dim, dropout
        self.qkv_proj = nn.Linear(embed_dim, 3 * heads * head_dim, bias)  # rows: queries, keys, values, each by head
        self.out_proj = nn.Linear(heads * head_dim, embed_dim, bias)

    def dropout_now(self) -> float:
        """The probability of this pass: 0 outside training."""
        return self.dropout if self.training else 0.0

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> queries, keys, values (B, H, T, d), views of one projection."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def split_memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, M, C) -> keys, values (B, H, M, d)."""
        weight, bias, width = self.qkv_proj.weight, self.qkv_proj.bias, self.heads * self.head_dim
        both = linear(x, weight[width:], None if bias is None else bias[width:])
        k, v = both.unflatten(-1, (2, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return k, v

    def merge(self, out: Tensor) -> Tensor:
        """(B, H, T, d) -> (B, T, C)"""
        return self.out_proj(out.transpose(1, 2).flatten(2))


def remember(cache: LayerCache, rows: Tensor | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
    """Append one key and value (m, H, 1, d) to all rows of a cache or to ``rows`` (m,), and return what those hold."""
    if not isinstance(cache.lengths, int):
        cache.append_rows(rows, k, v)
    elif rows is None:
        cache.append(k, v)
    else:
        raise ValueError("rows that share a length step together")
    return cache.select_rows(rows)


def next_size(cache: LayerCache, needed: int) -> int | None:
    """How many positions the table of a cache must have next, if ``needed`` are more than it has: it doubles."""
    size = 0 if cache.table is None else cache.table.size(-2)
    return None if size >= needed else max(64, 2 * size, needed)


def causal_mask(padding_mask: Tensor) -> Tensor:
    """padding_mask (B, T), True = pad -> (B, 1, T, T), True = may look; a query that sees nothing looks everywhere."""
    length = padding_mask.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=padding_mask.device).tril()
    visible = causal & ~padding_mask[:, None, None, :]
    return visible | ~visible.any(-1, keepdim=True)
