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
        index (N,), cu_seqlens (B + 1,), the longest and the shortest sentence; ``values.flatten(0, 1)[index]`` packs
        (B, T, ...).
    """
    real = ~padding_mask
    lengths = real.sum(1)
    total, longest, shortest = _on_the_host(lengths)
    return TokenLayout(places_where(real.flatten(), total), _offsets(lengths), longest, shortest)


def compact_tokens(layout: TokenLayout, keep: Tensor) -> tuple[TokenLayout, Tensor]:
    """Layout of the tokens where ``keep`` (N,) is True, and their places (N',) int64 in the old buffer, ascending."""
    before = pad(keep.cumsum(0, dtype=torch.int32), (1, 0))  # kept tokens before each place
    cu_seqlens = before[layout.cu_seqlens]
    total, longest, shortest = _on_the_host(cu_seqlens.diff())
    selection = places_where(keep, total)
    return TokenLayout(layout.index[selection], cu_seqlens, longest, shortest), selection


def places_where(mask: Tensor, count: int) -> Tensor:
    """The ``count`` places where ``mask`` (N,) is True, int64, ascending; ``nonzero`` would ask the device for their
    number."""
    return torch.nonzero_static(mask, size=count).squeeze(1) if count else mask.new_empty(0, dtype=torch.int64)


def repad_tokens(values: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
    """values (N, ...) -> (B, T, ...), zeros where ``index`` (N,) names no place."""
    out = values.new_zeros(batch * length, *values.shape[1:])
    return out.index_copy_(0, index, values).view(batch, length, *values.shape[1:])


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
            ``auto``: the fastest that runs here.

    Returns:
        (N, H, D).

    Raises:
        ValueError: an unknown backend; :class:`BackendError` for ``varlen`` where it cannot run.
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


def _on_the_host(lengths: Tensor) -> list[int]:
    """Sum, largest and smallest of (B,), by one question to the device; zeros without any."""
    if not lengths.numel():
        return [0, 0, 0]
    lengths = lengths.long()
    found: list[int] = torch.stack([lengths.sum(), *lengths.aminmax()]).tolist()
    return [found[0], found[2], found[1]]


def _offsets(lengths: Tensor) -> Tensor:
    """(B,) -> (B + 1,) int32: 0 and the running sums."""
    return pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
