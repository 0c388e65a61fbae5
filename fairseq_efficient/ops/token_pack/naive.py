"""Token packing by loops over sentences and tokens. Reference."""

from itertools import pairwise

import torch
from torch import Tensor

from fairseq_efficient.ops.token_pack.common import TokenLayout


def pack_tokens(padding_mask: Tensor) -> TokenLayout:
    """Same contract as :func:`fairseq_efficient.ops.token_pack.fast.pack_tokens`."""
    index, ends = [], [0]
    for row, mask in enumerate(padding_mask.tolist()):
        index += [row * len(mask) + column for column, pad in enumerate(mask) if not pad]
        ends.append(len(index))
    lengths = [end - start for start, end in pairwise(ends)]
    return TokenLayout(
        torch.tensor(index, dtype=torch.int64, device=padding_mask.device),
        torch.tensor(ends, dtype=torch.int32, device=padding_mask.device),
        max(lengths, default=0),
        min(lengths, default=0),
    )


def compact_tokens(layout: TokenLayout, keep: Tensor) -> tuple[TokenLayout, Tensor]:
    """Same contract as :func:`fairseq_efficient.ops.token_pack.fast.compact_tokens`."""
    ends, selected = [0], []
    bounds = layout.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        selected += [place for place in range(start, end) if keep[place]]
        ends.append(len(selected))
    selection = torch.tensor(selected, dtype=torch.int64, device=keep.device)
    lengths = [end - start for start, end in pairwise(ends)]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=keep.device)
    found = TokenLayout(layout.index[selection], cu_seqlens, max(lengths, default=0), min(lengths, default=0))
    return found, selection


def places_where(mask: Tensor, count: int) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.token_pack.fast.places_where`."""
    found = [place for place, flag in enumerate(mask.tolist()) if flag]
    assert len(found) == count
    return torch.tensor(found, dtype=torch.int64, device=mask.device)


def repad_tokens(values: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.token_pack.fast.repad_tokens`."""
    rows = [values.new_zeros(values.shape[1:])] * (batch * length)
    for place, target in enumerate(index.tolist()):
        rows[target] = values[place]
    if not rows:
        return values.new_zeros(batch, length, *values.shape[1:])
    return torch.stack(rows).view(batch, length, *values.shape[1:])


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    cu_keys: Tensor | None = None,
    max_keys: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Same contract as :func:`fairseq_efficient.ops.token_pack.fast.varlen_attention`."""
    queries = cu_seqlens.tolist()
    keys = queries if cu_keys is None else cu_keys.tolist()
    rows = []
    for b in range(len(queries) - 1):
        one_q, one_k, one_v = q[queries[b] : queries[b + 1]], k[keys[b] : keys[b + 1]], v[keys[b] : keys[b + 1]]
        scores = torch.einsum("qhd,khd->hqk", one_q, one_k) / q.size(-1) ** 0.5
        rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), one_v))
    return torch.cat(rows) if rows else torch.zeros_like(q)
