"""The original Pyramidion's models: built from their recorded or stored arguments and weights."""

import dataclasses
from types import SimpleNamespace
from typing import Any

from fairseq.data import Dictionary
from torch import Tensor

from deep_pyramidion.config import PyramidionConfig
from deep_pyramidion.model import PyramidionModel
from fairseq_efficient.checkpoint_rules import building
from fairseq_efficient.originals import load_weights

# the original always used base 20, whatever --topk-softmax-base said, and restarted nothing per chunk
_FIXED = {"topk_softmax_base": 20.0, "chunk_positions": False}


def config_from_original(args: dict[str, Any]) -> PyramidionConfig:
    """Our flat config from the original's arguments (unknown and None-valued ones keep our defaults)."""
    cfg = PyramidionConfig()
    names = {field.name for field in dataclasses.fields(cfg)}
    for name, value in {**args, **_FIXED}.items():
        if name in names and name != "_name" and value is not None:
            setattr(cfg, name, value)
    if cfg.no_decoder_positional_embeddings:
        cfg.no_decoder_positional_embeddings = False  # a flag that the original ignored
    if cfg.encoder_pooling == "lambda":
        cfg.use_sparse_attn = "pooler_no_block"  # its lambda path was always full attention
    return cfg


def build_from_original(
    args: dict[str, Any], symbols: list[str], state: dict[str, Tensor], path: str = "of the original"
) -> PyramidionModel:
    """An evaluation-mode model with the original's weights.

    Args:
        symbols: the dictionary in order, with ``<s> <pad> </s> <unk>`` first. path: where they are from, for messages.

    Raises:
        UserError: weights do not fit the arguments; these hold code, or ask for a much larger model.
    """
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    with building(args, state, path):
        model = PyramidionModel.build_model(config_from_original(args), task)
    load_weights(model, dict(state))
    return model.eval()
