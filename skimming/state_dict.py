"""Loading weights of relatives: fairseq's RoBERTa, and models of ours with other predictors or heads."""

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_ENCODER = "encoder.sentence_encoder."
_PREDICTORS = f"{_ENCODER}skim_predictors."
_SEGMENTS = f"{_ENCODER}segment_embeddings.weight"
_HEADS = "classification_heads."


def missing_heads(model: Any, state: dict[str, Tensor], prefix: str) -> set[str]:
    """Heads of the model whose weights are not in ``state``, or in other shapes: fairseq lets them start at random."""
    found = set()
    for name, head in model.classification_heads.items():
        for key, value in head.state_dict().items():
            given = state.get(f"{prefix}{_HEADS}{name}.{key}")
            if given is None or given.shape != value.shape:
                found.add(name)
    return found


def take_token_heads(model: Any, state: dict[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """Remove the heads that fairseq's reader trips over from ``state``: without a hidden layer, there or here (question
    answering), or with spectral normalisation.

    Returns:
        head name -> weights by their names in the head.
    """
    start, taken, heads = prefix + _HEADS, {}, dict(model.classification_heads.items())
    for name in sorted({key[len(start) :].split(".")[0] for key in state if key.startswith(start)}):
        own = heads.get(name)
        common = all(f"{start}{name}.{part}.weight" in state for part in ("dense", "out_proj"))
        if common and (own is None or hasattr(own, "dense")):
            continue
        keys = [key for key in state if key.startswith(f"{start}{name}.")]
        taken[name] = {key[len(f"{start}{name}.") :]: state.pop(key) for key in keys}
    return taken


def put_token_heads(model: Any, state: dict[str, Tensor], prefix: str, heads: dict[str, dict[str, Tensor]]) -> None:
    """Give back what :func:`take_token_heads` took, for the heads that the model has, or shall register."""
    for name, weights in heads.items():
        known = name in model.classification_heads
        if not known and model.args.load_checkpoint_heads and "dense.weight" not in weights:
            model.register_question_answering_head(name)
        own = model.classification_heads[name].state_dict() if name in model.classification_heads else {}
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in weights.items()}:
            logger.warning("left out: head %s of the checkpoint, which this model does not have", name)
            continue
        state.update({f"{prefix}{_HEADS}{name}.{key}": value for key, value in weights.items()})


def upgrade_state_dict(model: Any, state: dict[str, Tensor], prefix: str) -> None:
    """Make ``state`` fit ``model`` in place, after fairseq's own upgrade.

    Missing predictors start new (noted in ``model.untrained_predictors``), those of layers that do not skim here are
    left out; missing segment embeddings are zeros, so that the outputs stay what they were.
    """
    own = model.state_dict()
    kept = {key for key in own if key.startswith(_PREDICTORS)}
    for key in [key for key in state if key.startswith(prefix + _PREDICTORS)]:
        if key[len(prefix) :] not in kept:
            logger.info("left out: %s", key)
            del state[key]
    missing = sorted(key for key in kept if prefix + key not in state)
    model.untrained_predictors = {int(key[len(_PREDICTORS) :].split(".")[0]) for key in missing}
    for key in missing:
        state[prefix + key] = own[key]
    if missing:
        layers = ", ".join(map(str, sorted(model.untrained_predictors)))
        logger.warning("the checkpoint has no skim predictor for layer %s: starts new, keeping all tokens", layers)
    if _SEGMENTS in own and prefix + _SEGMENTS not in state:
        logger.warning("the checkpoint has no segment embeddings: start as zeros")
        state[prefix + _SEGMENTS] = torch.zeros_like(own[_SEGMENTS])
