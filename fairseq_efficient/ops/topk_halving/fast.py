"""Successive-halving top-k for whole batches: no loop over the batch, no host sync, exact under padding.

Ranking and blending weights depend on the scores alone, so all rounds run on (B, m) score tensors first. They leave,
for every input, the output slot it joins and its weight there; the values are then pooled in one pass. Every input
joins exactly one slot, so the backward of that pass is a gather, not a scatter.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

from fairseq_efficient.ops.common import flat_rows, take_rows
from fairseq_efficient.ops.topk_halving.common import Pooled, check_arguments, num_rounds
from fairseq_efficient.precision import wide


def topk_halving(
    values: Tensor,
    scores: Tensor,
    k: int,
    padding_mask: Tensor | None = None,
    base: float = 20.0,
    flip_right: bool = True,
    sort_back: bool = False,
    hard: bool = False,
) -> Pooled:
    """Pool n scored vectors to k by successive halving (Pietruszka et al. 2022, section 3).

    Args:
        values: (B, n, C), any float dtype.
        scores: (B, n); ranking and blending run in fp32 (fp64 if given). Meant to lie in (0, 1 + 1e-5].
        k: slots to keep. n <= k returns the inputs as they are.
        padding_mask: (B, n) bool, True = pad, anywhere in the row. Pads never win, never weigh.
        base: sharpness (> 1); pairs blend with ``sigmoid(base**a - base**b)``.
        flip_right: pair rank i with rank m-1-i instead of rank i + m/2.
        sort_back: keep slots in the order of their strongest input; else by descending score.
        hard: exact top-k instead (no blending, no gradient to scores); ties go to the lower position.

    Rows with at most k real inputs keep all of them, unblended and in their order.

    Returns:
        :class:`Pooled`; survivors are left-aligned in each row.

    Raises:
        ValueError: wrong shapes, k < 1 or base <= 1.
    """
    check_arguments(values, scores, k, padding_mask, base)
    batch, n, _ = values.shape
    scores = wide(scores)
    if n <= k:
        index = torch.arange(n, device=values.device).expand(batch, n)
        return Pooled(values, scores, padding_mask, index)
    with torch.autocast(values.device.type, enabled=False):
        if hard:
            return _hard(values, scores, k, padding_mask, sort_back)
        members, weights, scores, mask = _bracket(scores, k, padding_mask, base, flip_right, sort_back)
        index = members[:, :, 0]
        if mask is not None:  # empty slots hold padding only
            index = index.masked_fill(mask, -1)
            scores = scores.masked_fill(mask, 0.0)
            weights = weights.masked_fill(mask.unsqueeze(-1), 0.0)
        pooled = _PoolSlots.apply(values, weights, members)
    return Pooled(pooled, scores, mask, index)


def _sort_key(scores: Tensor, padding_mask: Tensor | None) -> Tensor:
    key = scores.detach()
    return key if padding_mask is None else key.masked_fill(padding_mask, float("-inf"))


def _by_position(index: Tensor, mask: Tensor | None, n: int) -> Tensor:
    """Order that sorts slots by input position, empty slots last."""
    return (index if mask is None else index.masked_fill(mask, n)).argsort(dim=1, stable=True)


def _short_rows_by_position(index: Tensor, mask: Tensor, padding_mask: Tensor) -> Tensor:
    """Order that restores the input order in rows which keep every input, and leaves the others alone."""
    slots, n = index.size(1), padding_mask.size(1)
    keeps_all = (~padding_mask).sum(1, keepdim=True) <= slots
    rank = torch.arange(slots, device=index.device)
    return torch.where(keeps_all, index.masked_fill(mask, n), rank).argsort(dim=1, stable=True)


def _hard(values: Tensor, scores: Tensor, k: int, padding_mask: Tensor | None, sort_back: bool) -> Pooled:
    """Exact top-k by score: a gather."""
    index = _sort_key(scores, padding_mask).sort(dim=1, descending=True, stable=True).indices[:, :k]
    mask = None if padding_mask is None else padding_mask.gather(1, index)
    order = None
    if sort_back:
        order = _by_position(index, mask, scores.size(1))
    elif mask is not None and padding_mask is not None:
        order = _short_rows_by_position(index, mask, padding_mask)
    if order is not None:
        index = index.gather(1, order)
        mask = None if mask is None else mask.gather(1, order)
    scores = scores.gather(1, index)
    pooled = take_rows(values, index)
    if mask is not None:
        pooled = pooled.masked_fill(mask.unsqueeze(-1), 0.0)
        scores, index = scores.masked_fill(mask, 0.0), index.masked_fill(mask, -1)
    return Pooled(pooled, scores, mask, index)


def _bracket(scores: Tensor, k: int, padding_mask: Tensor | None, base: float, flip_right: bool, sort_back: bool):
    """Run every round on the scores.

    Returns:
        members (B, k, G) int64: the inputs each slot absorbs, the strongest first (n and above: bracket fill, of
        weight 0); weights (B, k, G) of those inputs; scores (B, k), blended; mask (B, k) True = empty slot, or
        None when no input was padded.
    """
    batch, n = scores.shape
    rounds = num_rounds(n, k)
    fill = k * 2**rounds - n
    mask = padding_mask
    if fill:
        mask = torch.zeros_like(scores, dtype=torch.bool) if mask is None else mask
        scores, mask = pad(scores, (0, fill)), pad(mask, (0, fill), value=True)
    members = torch.arange(n + fill, device=scores.device).expand(batch, -1).unsqueeze(-1)
    weights = torch.ones_like(scores).unsqueeze(-1)
    for _ in range(rounds):
        scores, mask, members, weights = _round(scores, mask, members, weights, base, flip_right, sort_back)
    if padding_mask is None or mask is None:  # n > k real inputs: no slot is empty
        return members, weights, scores, None
    if not sort_back:
        order = _short_rows_by_position(members[:, :, 0], mask, padding_mask)
        index = order.unsqueeze(-1).expand_as(members)
        members, weights = members.gather(1, index), weights.gather(1, index)
        scores, mask = scores.gather(1, order), mask.gather(1, order)
    return members, weights, scores, mask


def _round(scores, mask, members, weights, base: float, flip_right: bool, sort_back: bool):
    """One halving of m slots: (B, m) -> (B, m / 2)."""
    half = scores.size(1) // 2
    order = _sort_key(scores, mask).sort(dim=1, descending=True, stable=True).indices
    winner, loser = order[:, :half], order[:, half:]
    if flip_right:
        loser = loser.flip(1)
    if sort_back:
        back = _by_position(winner, None if mask is None else mask.gather(1, winner), scores.size(1))
        winner, loser = winner.gather(1, back), loser.gather(1, back)
    high, low = scores.gather(1, winner), scores.gather(1, loser)
    weight = torch.sigmoid(base**high - base**low)
    scores = low + weight * (high - low)
    if mask is not None:
        bye = mask.gather(1, loser)  # nobody to merge with: pass unchanged, to the last bit
        weight, scores = weight.masked_fill(bye, 1.0), torch.where(bye, high, scores)
        mask = mask.gather(1, winner)
    form = (-1, -1, members.size(2))
    won, lost = winner.unsqueeze(-1).expand(form), loser.unsqueeze(-1).expand(form)
    share = weight.unsqueeze(-1)
    members = torch.cat([members.gather(1, won), members.gather(1, lost)], 2)
    weights = torch.cat([weights.gather(1, won) * share, weights.gather(1, lost) * (1 - share)], 2)
    return scores, mask, members, weights


class _PoolSlots(torch.autograd.Function):
    """out[b, j] = sum_g weights[b, j, g] * values[b, members[b, j, g]], members a partition of the inputs."""

    @staticmethod
    def forward(ctx, values: Tensor, weights: Tensor, members: Tensor) -> Tensor:
        batch, n, channels = values.shape
        ctx.save_for_backward(values, weights, members)
        group = members.size(2)
        out = embedding_bag(
            flat_rows(members.clamp(max=n - 1), n).view(-1, group),
            values.reshape(batch * n, channels),
            mode="sum",
            per_sample_weights=weights.to(values.dtype).reshape(-1, group),
        )
        return out.view(batch, -1, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        values, weights, members = ctx.saved_tensors
        batch, n = values.shape[:2]
        slots, group = members.shape[1:]
        flat = members.view(batch, -1)
        owner = torch.arange(slots, device=members.device).repeat_interleave(group).expand_as(flat)
        slot = torch.empty_like(flat).scatter_(1, flat, owner)[:, :n]
        spread = take_rows(grad, slot)
        grad_weights = grad_values = None
        if ctx.needs_input_grad[1]:
            dots = (values * spread).sum(-1, dtype=weights.dtype)
            grad_weights = pad(dots, (0, flat.size(1) - n)).gather(1, flat).view_as(weights)
        if ctx.needs_input_grad[0]:
            weight = torch.empty_like(weights.view(batch, -1)).scatter_(1, flat, weights.view(batch, -1))[:, :n]
            grad_values = spread * weight.to(spread.dtype).unsqueeze(-1)
        return grad_values, grad_weights, None
