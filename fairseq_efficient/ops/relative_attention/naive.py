"""Relative attention with a position vector looked up for every pair of query and key (reference; Dai et al. 2019,
section 3.3). Written for reading, in the precision of its inputs."""

import torch
from torch import Tensor

from fairseq_efficient.ops.relative_attention.common import check_arguments


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    scale: float | None = None,
    keep: int = 0,
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.relative_attention.fast.relative_attention`."""
    check_arguments(q, k, v, r, content_bias, position_bias, key_padding_mask, dropout_p, window)
    queries, keys, dim = q.size(2), k.size(2), q.size(3)
    place = torch.arange(keys - queries, keys, device=q.device)
    distance = place.unsqueeze(1) - torch.arange(keys, device=q.device)
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
    visible = visible[None, None] if key_padding_mask is None else visible & ~key_padding_mask[:, None, None, :]
    content = torch.einsum("bhid,bhjd->bhij", q + content_bias.unsqueeze(1), k)
    position = torch.einsum("bhid,hijd->bhij", q + position_bias.unsqueeze(1), r[:, distance.clamp(min=0)])
    scores = (content + position) * (dim**-0.5 if scale is None else scale)
    probs = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    probs = probs.masked_fill(~visible, 0.0)  # a query that sees nothing gives zero, not NaN
    probs = torch.dropout(probs, dropout_p, dropout_p > 0)
    return torch.einsum("bhij,bhjd->bhid", probs, v)


def relative_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    lengths: Tensor | int,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.relative_attention.fast.relative_attention_step`."""
    rows = []
    for row in range(q.size(0)):
        length = lengths if isinstance(lengths, int) else int(lengths[row])
        one, k_row, v_row = q[row : row + 1], k[row : row + 1, :, :length], v[row : row + 1, :, :length]
        out = relative_attention(one, k_row, v_row, r, content_bias, position_bias, window=window, scale=scale)
        rows.append(out)
    return torch.cat(rows)
