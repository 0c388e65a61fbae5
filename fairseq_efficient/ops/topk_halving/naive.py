"""Successive-halving top-k, document by document (reference; Pietruszka et al. 2022, "Sparsifying Transformer Models
with Trainable Representation Pooling", section 3 and appendix A). Written for reading, in the precision of its inputs.

Each round ranks the m slots by score and pairs a winner from the upper half with a loser from the lower half
(``flip_right``: rank i with rank m-1-i, else rank i with rank i + m/2). A pair becomes one slot:
``w = sigmoid(base**a - base**b)``, value ``w*E_a + (1-w)*E_b``, score ``w*a + (1-w)*b``.
A winner whose loser is padding passes unchanged (a bye), so any n and k work: the bracket has ``k * 2**rounds`` slots.
"""

import torch
from torch import Tensor

from fairseq_efficient.ops.topk_halving.common import Pooled, check_arguments, num_rounds


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
    """Same contract as :func:`fairseq_efficient.ops.topk_halving.fast.topk_halving`."""
    check_arguments(values, scores, k, padding_mask, base)
    batch, n, channels = values.shape
    if n <= k:
        mask = padding_mask if padding_mask is None else padding_mask.clone()
        return Pooled(values, scores, mask, torch.arange(n).expand(batch, n).clone())
    out = values.new_zeros(batch, k, channels)
    out_scores = scores.new_zeros(batch, k)
    mask = torch.ones(batch, k, dtype=torch.bool)
    index = torch.full((batch, k), -1)
    for b in range(batch):
        real = [i for i in range(n) if padding_mask is None or not padding_mask[b, i]]
        slots = [(values[b, i], scores[b, i], i) for i in real]  # (value, score, champion)
        if len(slots) > k:
            slots = _hard(slots, k, sort_back) if hard else _halve(slots, n, k, base, flip_right, sort_back)
        for j, (value, score, champion) in enumerate(slots):
            out[b, j], out_scores[b, j], mask[b, j], index[b, j] = value, score, False, champion
    return Pooled(out, out_scores, None if padding_mask is None else mask, index)


def _ranked(slots: list) -> list:
    """Slots by descending score; ties keep their order."""
    return sorted(slots, key=lambda slot: -slot[1].item())


def _hard(slots: list, k: int, sort_back: bool) -> list:
    best = _ranked(slots)[:k]
    return sorted(best, key=lambda slot: slot[2]) if sort_back else best


def _halve(slots: list, n: int, k: int, base: float, flip_right: bool, sort_back: bool) -> list:
    size = k * 2 ** num_rounds(n, k)
    while size > k:
        half = size // 2
        ranked = _ranked(slots)
        winners, losers = ranked[:half], ranked[half:]
        merged = []
        for rank, (value, score, champion) in enumerate(winners):
            partner = half - 1 - rank if flip_right else rank
            if partner < len(losers):
                other_value, other_score, _ = losers[partner]
                weight = torch.sigmoid(base**score - base**other_score)
                value = weight * value + (1 - weight) * other_value
                score = weight * score + (1 - weight) * other_score
            merged.append((value, score, champion))
        slots = sorted(merged, key=lambda slot: slot[2]) if sort_back else merged
        size = half
    return slots
