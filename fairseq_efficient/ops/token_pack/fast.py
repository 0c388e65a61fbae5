"""Token packing by index arithmetic, attention within sentences by SDPA; one host sync to pack and one to compact."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fairseq_efficient.ops.token_pack import attention
from fairseq_efficient.ops.token_pack.common import BACKENDS, TokenLayout


def pack_tokens(padding_mask: Tensor) -> TokenLayout:
    """Layout of the real tokens of a batch.

    Args:
        padding_mask: (B, T) bool, True = pad; pads may stand anywhere.

    Returns:
        index (N,), cu_seqlens (B + 1,) and the longest sentence; ``values.flatten(0, 1)[index]`` packs (B, T, ...).
    """
    real = ~padding_mask
    lengths = real.sum(1)
    index = real.flatten().nonzero().squeeze(1)
    longest = int(lengths.max()) if lengths.numel() else 0
    return TokenLayout(index, _offsets(lengths), longest)


def compact_tokens(layout: TokenLayout, keep: Tensor) -> tuple[TokenLayout, Tensor]:
    """Layout of the tokens where ``keep`` (N,) is True, and their places (N',) int64 in the old buffer, ascending."""
    selection = keep.nonzero().squeeze(1)
    before = pad(keep.cumsum(0, dtype=torch.int32), (1, 0))  # kept tokens before each place
    cu_seqlens = before[layout.cu_seqlens]
    longest = layout.max_len
    if keep.device.type == "cpu" and cu_seqlens.numel() > 1:
        longest = int(cu_seqlens.diff().max())
    return TokenLayout(layout.index[selection], cu_seqlens, longest), selection


def repad_tokens(values: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
    """values (N, ...) -> (B, T, ...), zeros where ``index`` (N,) names no place."""
    out = values.new_zeros(batch * length, *values.shape[1:])
    return out.index_copy(0, index, values).view(batch, length, *values.shape[1:])


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
    """Full attention within each of B sentences of packed tokens.

    Args:
        q: (N, H, D). k, v: (M, H, D).
        cu_seqlens: (B + 1,) int32, where each sentence's queries start, and N. max_len: a bound of their number.
        cu_keys, max_keys: the same for keys, where they are not the queries' own; a sentence with queries has a key.
        backend: ``loop``: one SDPA call for each sentence; ``bucket``: one for each group of similar length;
            ``padded``: one for all; ``varlen``: the flash kernel for ragged batches (CUDA, half precision);
            ``auto``: the fastest for these lengths.

    Returns:
        (N, H, D).

    Raises:
        ValueError: an unknown backend, or ``varlen`` where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if cu_keys is None:
        cu_keys, max_keys = cu_seqlens, max_len
    elif max_keys is None:
        raise ValueError("cu_keys needs max_keys")
    if not q.numel():
        return torch.zeros_like(q)
    on_cpu = q.device.type == "cpu"
    if backend == "auto" and not on_cpu:
        backend = "varlen" if attention.varlen_runs(q) else "padded"
    if backend == "varlen":
        return attention.ragged_kernel(q, k, v, cu_seqlens, cu_keys, max_len, int(max_keys or 0))
    if backend == "padded" and not on_cpu:
        return attention.padded_to_bound(q, k, v, cu_seqlens, cu_keys, max_len, int(max_keys or 0))
    return attention.by_groups(q, k, v, cu_seqlens.tolist(), cu_keys.tolist(), backend)


def _offsets(lengths: Tensor) -> Tensor:
    """(B,) -> (B + 1,) int32: 0 and the running sums."""
    return pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
