"""What several ops share; each keeps what it alone needs in a ``common.py`` of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def shapes(*tensors: Tensor) -> str:
    """For messages."""
    return ", ".join(str(tuple(one.shape)) for one in tensors)


def check_dropout(dropout_p: float) -> None:
    """ValueError outside [0, 1)."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")


def check_keys(q: Tensor, k: Tensor) -> None:
    """ValueError for fewer keys (B, H, K, d) than queries (B, H, M, d)."""
    if k.size(2) < q.size(2):
        raise ValueError(f"at least as many keys as queries expected, got {shapes(q, k)}")


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit``; 1 if there is none."""
    return max(one for one in range(1, number + 1) if number % one == 0 and one <= max(1, limit))


def random_state(device: torch.device) -> Tensor:
    """Of torch's global generator, by which a backward draws again what the forward drew."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def same_draws(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Draw inside as from :func:`random_state`; what is drawn afterwards is not changed. None: nothing is done."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else [], state is not None):
        if state is not None and cuda:
            torch.cuda.set_rng_state(state, device)
        elif state is not None:
            torch.set_rng_state(state)
        yield


def add_product(total: Tensor, one: Tensor, two: Tensor, fresh: bool = False) -> None:
    """total += one @ two, (n, ., .) each, total being fp32 or better; ``fresh``: there is nothing in it yet."""
    if fresh:
        if total.dtype == one.dtype:
            torch.bmm(one, two, out=total)
        else:
            total.copy_(torch.bmm(one, two))
    elif total.dtype == one.dtype:
        total.baddbmm_(one, two)
    else:
        total.add_(torch.bmm(one, two))


def flat_rows(index: Tensor, n: int) -> Tensor:
    """Positions (B, ...) within rows of n -> positions in the (B * n) flattened rows."""
    if index.size(0) == 1:
        return index
    return index + torch.arange(index.size(0), device=index.device).view(-1, *[1] * (index.dim() - 1)) * n


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, n, C), index (B, m) -> (B, m, C); one contiguous row copy per index."""
    batch, n, channels = x.shape
    return x.reshape(batch * n, channels).index_select(0, flat_rows(index, n).flatten()).view(batch, -1, channels)
