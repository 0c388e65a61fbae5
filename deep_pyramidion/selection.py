"""Which source tokens survive each pooling layer of a trained Pyramidion.

::

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides={"data": data})
    for kept in kept_tokens(models[0], src_tokens):
        print(kept.layer, kept.positions[0].tolist())
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class KeptTokens(NamedTuple):
    """What is left of each document after one encoder layer that can pool. B documents, k slots, in slot order."""

    layer: int
    positions: (
        Tensor  # (B, k) int64: position in the document (0: its first token) of each slot's token; -1: empty slot
    )
    scores: (
        Tensor  # (B, k) fp32: the slot's score; nan where the layer kept all (nothing was scored) and in empty slots
    )


@torch.no_grad()
def kept_tokens(model: Any, src_tokens: Tensor) -> list[KeptTokens]:
    """The tokens that dominate each slot after each pooling layer, in evaluation mode, for a batch of documents.

    Pooling blends: a slot is a weighted mean of tokens. The token named here has the largest weight in its slot, and
    through several layers it is followed from the deepest slot back to the text. A document shorter than a layer's
    width loses nothing there. A document longer than the model was built for is cut as in training: its last position
    is that of its EOS.

    Args:
        model: a ``PyramidionModel``, trained or loaded from a checkpoint.
        src_tokens: (B, T) or (T,) ids, padded on either side; positions do not count the padding.

    Returns:
        One :class:`KeptTokens` for each layer that can pool, first layer first; empty for a model without pooling.
    """
    encoder = model.encoder
    if encoder.pooler is None:
        return []
    tokens = torch.atleast_2d(src_tokens).to(next(encoder.parameters()).device)
    lengths = tokens.ne(encoder.padding_idx).sum(1, keepdim=True)
    trace: list[tuple[int, Any]] = []
    training = model.training
    model.eval()
    try:
        encoder.encode(tokens, trace=trace)
    finally:
        model.train(training)
    pools = dict(trace)
    positions = _starting_positions(lengths, encoder.source_limit)
    kept = []
    for layer in sorted(encoder.pooler.widths):
        scores = torch.full(positions.shape, float("nan"), device=tokens.device)
        if layer in pools:
            index, scores = pools[layer].index, pools[layer].scores.float()
            scores = scores.masked_fill(index < 0, float("nan"))
            positions = positions.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)
        kept.append(KeptTokens(layer, positions, scores))
    return kept


def _starting_positions(lengths: Tensor, limit: int) -> Tensor:
    """lengths (B, 1) -> (B, T'): 0, 1, 2 ... and -1 beyond a document's end; cut documents end in their EOS."""
    longest = max(min(int(lengths.max()), limit), 1)
    positions = torch.arange(longest, device=lengths.device).expand(lengths.size(0), -1)
    positions = torch.where((positions == limit - 1) & (lengths > limit), lengths - 1, positions)
    return positions.masked_fill(positions >= lengths, -1)
