"""Loading weights of relatives: the original Pyramidion, fairseq's transformer and BART."""

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_SCORER = "encoder.pooler.scorer."


def upgrade_state_dict(model: Any, state: dict[str, Tensor], prefix: str) -> None:
    """Make ``state`` fit ``model`` in place.

    - scorers of layers that do not pool here (the original has one per layer) are left out, missing ones stay new;
    - learned positions beyond the checkpoint's are continued by repeating its table (as Longformer does);
    - BART's classification heads and, if the dictionary lacks it, its ``<mask>`` row are left out.
    """
    own = model.state_dict()
    if "decoder.output_projection.weight" not in own:  # of an adaptive softmax; stock adds one to every checkpoint
        state.pop(f"{prefix}decoder.output_projection.weight", None)
    for key in [k for k in state if k.startswith(prefix + _SCORER)]:
        if key[len(prefix) :] not in own:
            del state[key]
    for key, value in own.items():
        if key.startswith(_SCORER) and prefix + key not in state:
            logger.warning("%s is not in the checkpoint: starts new", key)
            model.untrained_scorers.add(int(key[len(_SCORER) :].split(".")[0]))
            state[prefix + key] = value
    for key in [k for k in state if k.startswith(f"{prefix}classification_heads.")]:
        logger.info("left out: %s", key)
        del state[key]
    _drop_mask_row(model, state, prefix)
    for side in ("encoder", "decoder"):
        key = f"{side}.embed_positions.weight"
        if key in own and prefix + key in state:
            state[prefix + key] = _continue_positions(
                state[prefix + key], own[key], getattr(model, side).padding_idx, key
            )


def _drop_mask_row(model: Any, state: dict[str, Tensor], prefix: str) -> None:
    """fairseq's pretrained BART has one more row, ``<mask>``, than the dictionary used for finetuning."""
    dictionary = model.encoder.dictionary
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        rows = state.get(prefix + name)
        if rows is not None and rows.size(0) == len(dictionary) + 1 and "<mask>" not in dictionary:
            logger.info("left out: the <mask> row of %s", name)
            state[prefix + name] = rows[:-1]


def _continue_positions(old: Tensor, own: Tensor, padding_idx: int, key: str) -> Tensor:
    first = padding_idx + 1  # rows up to the pad are not positions
    have, want = old.size(0) - first, own.size(0) - first
    if have == want or have < 1:
        return old
    if have > want:
        logger.info("%s: %d positions cut to %d", key, have, want)
        return old[: first + want]
    logger.info("%s: %d positions continued to %d by repetition", key, have, want)
    repeats = -(-want // have)
    return torch.cat([old[:first], old[first:].repeat(repeats, 1)[:want]])
