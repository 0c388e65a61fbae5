"""The backends of :func:`fairseq_efficient.ops.token_pack.fast.varlen_attention`."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Sentence(NamedTuple):
    """Host-side bounds of one sentence."""

    number: int
    queries: int
    keys: int


class BackendError(ValueError):
    """A backend that cannot run on this device, or on these tensors."""


@cache
def _varlen_attn() -> Callable[..., Any] | None:
    """torch's kernel, None in an older torch. Imported when a GPU asks for it: with it comes torch's compiler, a second
    of every start."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def varlen_runs(q: Tensor) -> bool:
    """Whether torch's flash kernel for ragged batches takes queries (N, H, D): Ampere or newer, half precision, D a
    multiple of 8 up to 256."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return False
    fits = q.size(-1) % 8 == 0 and q.size(-1) <= 256 and torch.cuda.get_device_capability(q.device) >= (8, 0)
    return fits and _varlen_attn() is not None


def ragged_kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, max_len: int, max_keys: int
) -> Tensor:
    """torch's flash attention over ragged batches; BackendError where it does not run."""
    kernel = _varlen_attn() if varlen_runs(q) else None
    if kernel is None:
        raise BackendError("needs a GPU (Ampere or newer), half precision, and heads of 8, 16 ... 256 channels")
    out = kernel(q, k, v, cu_seqlens, cu_keys, max_len, max_keys)
    assert isinstance(out, Tensor)
    return out


def padded_to_bound(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, max_len: int, max_keys: int
) -> Tensor:
    """One SDPA call over all sentences, padded, without asking the device for lengths."""
    lengths = cu_seqlens.diff()
    places_q, _ = _places(cu_seqlens[:-1], lengths, max_len, q.size(0))
    places_k, real = _places(cu_keys[:-1], cu_keys.diff(), max_keys, k.size(0))
    out = _masked(q, k, v, places_q, places_k, real)
    numbers = torch.arange(lengths.numel(), device=q.device)
    owner = torch.repeat_interleave(numbers, lengths, output_size=q.size(0))
    offset = torch.arange(q.size(0), device=q.device) - cu_seqlens[owner]
    return out.flatten(0, 1)[owner * max_len + offset]


def by_groups(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Sequence[int], cu_keys: Sequence[int], backend: str
) -> Tensor:
    """One SDPA call for each group of sentences; groups as ``backend`` wants them."""
    sentences = [
        Sentence(b, cu_seqlens[b + 1] - cu_seqlens[b], cu_keys[b + 1] - cu_keys[b])
        for b in range(len(cu_seqlens) - 1)
        if cu_seqlens[b + 1] > cu_seqlens[b]
    ]
    groups = _groups(sentences, backend)
    if len(groups) == len(sentences):
        return _one_by_one(q, k, v, sentences, cu_seqlens, cu_keys)
    pieces, targets = [], []
    for group in groups:
        numbers = [sentence.number for sentence in group]
        starts, keys = ([bounds[b] for b in numbers] for bounds in (cu_seqlens, cu_keys))
        pieces.append(_group(q, k, v, group, starts, keys))
        for start, sentence in zip(starts, group, strict=True):
            targets.append(torch.arange(start, start + sentence.queries, device=q.device))
    if len(groups) == 1 and _in_order(groups[0]):
        return pieces[0]
    place = torch.cat(targets)
    return torch.cat(pieces)[torch.empty_like(place).index_copy_(0, place, torch.arange(len(place), device=q.device))]


def _groups(sentences: list[Sentence], backend: str) -> list[list[Sentence]]:
    """Cut the sentences, shortest first, into groups that share one call."""
    first = sentences[0]
    equal = all(s.queries == first.queries and s.keys == first.keys for s in sentences)
    if backend == "padded" or (equal and backend != "loop"):
        return [sentences]
    if backend != "bucket":  # on the CPU a call for each costs less than to gather sentences of like length
        return [[sentence] for sentence in sentences]
    groups: list[list[Sentence]] = []
    for sentence in sorted(sentences, key=lambda one: (one.keys, one.queries)):
        if groups and sentence.keys <= 1.25 * groups[-1][0].keys:
            groups[-1].append(sentence)
        else:
            groups.append([sentence])
    return groups


def _in_order(group: list[Sentence]) -> bool:
    return all(one.number < other.number for one, other in pairwise(group))


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, sentences: list[Sentence], cu_seqlens: Sequence[int], cu_keys: Sequence[int]
) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    pieces = []
    for number, queries, keys in sentences:
        start = cu_keys[number]
        one = scaled_dot_product_attention(
            q.narrow(2, cu_seqlens[number], queries), k.narrow(2, start, keys), v.narrow(2, start, keys)
        )
        pieces.append(one.squeeze(0).transpose(0, 1))
    return torch.cat(pieces)


def _group(q: Tensor, k: Tensor, v: Tensor, group: list[Sentence], starts: list[int], keys: list[int]) -> Tensor:
    """Attention of one group by one call -> (its queries, H, D), sentence after sentence."""
    queries, most = max(s.queries for s in group), max(s.keys for s in group)
    equal = all(s.queries == queries and s.keys == most for s in group)
    if equal and _dense(starts, queries) and _dense(keys, most):
        q, k, v = (
            x.narrow(0, start, size * len(group)).unflatten(0, (len(group), size)).transpose(1, 2)
            for x, start, size in ((q, starts[0], queries), (k, keys[0], most), (v, keys[0], most))
        )
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    lengths = torch.tensor([s.queries for s in group], device=q.device)
    places_q, used = _places(torch.tensor(starts, device=q.device), lengths, queries, q.size(0))
    lengths = torch.tensor([s.keys for s in group], device=q.device)
    places_k, real = _places(torch.tensor(keys, device=q.device), lengths, most, k.size(0))
    out = _masked(q, k, v, places_q, places_k, None if all(s.keys == most for s in group) else real)
    return out.flatten(0, 1) if all(s.queries == queries for s in group) else out[used]


def _dense(starts: list[int], size: int) -> bool:
    """Whether sentences of one length stand side by side."""
    return all(start == starts[0] + i * size for i, start in enumerate(starts))


def _places(starts: Tensor, lengths: Tensor, longest: int, rows: int) -> tuple[Tensor, Tensor]:
    """Places (G, longest) of each sentence's tokens, any valid place behind its end, and which are real."""
    step = torch.arange(longest, device=starts.device)
    real = step < lengths.unsqueeze(1)
    return (starts.long().unsqueeze(1) + step).clamp(max=rows - 1), real


def _masked(q: Tensor, k: Tensor, v: Tensor, places_q: Tensor, places_k: Tensor, real: Tensor | None) -> Tensor:
    """SDPA over gathered sentences -> (G, longest, H, D)."""
    mask = None
    if real is not None:
        real = real | ~real.any(1, keepdim=True)  # a row without any key would be NaN on some backends
        mask = real[:, None, None, :].expand(-1, 1, places_q.size(1), -1)
    out = scaled_dot_product_attention(
        q[places_q].transpose(1, 2), k[places_k].transpose(1, 2), v[places_k].transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)
