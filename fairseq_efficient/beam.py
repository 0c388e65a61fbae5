"""Rows of a beam search that share a sentence: keep one copy of what belongs to the sentence."""

import torch
from torch import Tensor


def reorder_sentences(new_order: Tensor, sentences: int, rows_per_sentence: int) -> tuple[Tensor | None, int]:
    """How ``new_order`` over rows acts on tensors stored once per sentence.

    Before, row r belongs to sentence ``r // rows_per_sentence``. After, row i is the old row ``new_order[i]``.

    Args:
        new_order: (R',) int64, values in [0, sentences * rows_per_sentence).

    Returns:
        index_select argument for the sentence dimension, or None if nothing moves; the new rows per sentence.
        When rows of a sentence no longer stand together in equal groups, every row gets its own copy.
    """
    owner = new_order // rows_per_sentence
    rows = new_order.numel()
    same = sentences * rows_per_sentence
    if rows == same and torch.equal(owner, torch.arange(rows, device=owner.device) // rows_per_sentence):
        return None, rows_per_sentence
    kept, counts = torch.unique_consecutive(owner, return_counts=True)
    if kept.numel() and bool((counts == counts[0]).all()):
        group = int(counts[0])
        identity = kept.numel() == sentences and torch.equal(kept, torch.arange(sentences, device=kept.device))
        return (None if identity else kept), group
    return owner, 1
