"""Transformer-XL's attention as it is usually written, which several benchmarks measure theirs against."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def einsum_attention(q: Tensor, k: Tensor, v: Tensor, r: Tensor, content_bias: Tensor, position_bias: Tensor) -> Tensor:
    """Two einsums, the second shifted, softmax over whole matrices, a third einsum; the last keys are the queries'."""
    content = torch.einsum("bhid,bhjd->bhij", q + content_bias.unsqueeze(1), k)
    position = torch.einsum("bhid,hxd->bhix", q + position_bias.unsqueeze(1), r.flip(1))
    scores = (content + shifted(position)) * q.size(-1) ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + k.size(2) - q.size(2))
    probs = scores.masked_fill(later, float("-inf")).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", probs, v)


def shifted(scores: Tensor) -> Tensor:
    """(B, H, T, K) by descending distance -> by key (those of later keys mean nothing)."""
    batch, heads, queries, keys = scores.shape
    return pad(scores, (1, 0)).view(batch, heads, keys + 1, queries)[:, :, 1:].reshape(batch, heads, queries, keys)
