"""The original's models: built from their recorded or stored arguments and weights."""

import re
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from dynamic_pooling.config import DynamicPoolingConfig
from dynamic_pooling.decoder import HourglassDecoder
from dynamic_pooling.model import hourglass_options
from fairseq_efficient.checkpoint_rules import building
from fairseq_efficient.errors import UserError
from fairseq_efficient.originals import BareTypes, bare_names, load_weights

_RENAMED = {  # the original's argument -> our flag
    "model_config": "model_config", "boundaries_type": "boundaries_type", "fixed_sf": "fixed_sf",
    "spikes_left": "spikes_left", "temp": "temp", "prior": "prior", "n_head": "decoder_attention_heads",
    "d_head": "decoder_head_dim", "d_model": "decoder_embed_dim", "d_inner": "decoder_ffn_embed_dim",
    "dropout": "dropout", "dropatt": "attention_dropout", "activation_function": "activation_fn",
    "init_std": "init_std",
}  # fmt: skip
_KEYS = (  # pattern of the original's name -> ours
    (r"word_emb(?:\.emb_layers\.0)?\.weight", "embed_tokens.weight"),
    (r"r_w_bias", "content_bias"),
    (r"r_r_bias", "position_bias"),
    (r"null_group", "null_segment"),
    (r"down_ln\.(weight|bias)", r"segment_layer_norm.\1"),
    (r"boundary_predictor\.boundary_predictor\.0\.(weight|bias)", r"boundary_rule.predictor.fc1.\1"),
    (r"boundary_predictor\.boundary_predictor\.2\.(weight|bias)", r"boundary_rule.predictor.fc2.\1"),
    (r"final_cast\.(weight|bias)", r"output_projection.\1"),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.dec_attn\.qkv_net\.(weight|bias)", r"{\1}.layers.\2.self_attn.qkv_proj.\3"),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.dec_attn\.r_net\.(weight|bias)", r"{\1}.layers.\2.self_attn.r_proj.\3"),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.dec_attn\.o_net\.(weight|bias)", r"{\1}.layers.\2.self_attn.out_proj.\3"),
    (
        r"layers\.(\d+)(?:\.layers)?\.(\d+)\.dec_attn\.layer_norm\.(weight|bias)",
        r"{\1}.layers.\2.self_attn_layer_norm.\3",
    ),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.pos_ff\.CoreNet\.0\.(weight|bias)", r"{\1}.layers.\2.fc1.\3"),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.pos_ff\.CoreNet\.3\.(weight|bias)", r"{\1}.layers.\2.fc2.\3"),
    (r"layers\.(\d+)(?:\.layers)?\.(\d+)\.pos_ff\.layer_norm\.(weight|bias)", r"{\1}.layers.\2.final_layer_norm.\3"),
)
_STACKS = ("pre", "short", "post")


def config_from_original(args: dict[str, Any]) -> DynamicPoolingConfig:
    """Our flags from the original's arguments, its behaviour switched on; ones we do not know are left out."""
    cfg = DynamicPoolingConfig(fixed_phase="orig", boundary_loss_compat="orig", gumbel_eval="sampled")
    for theirs, ours in _RENAMED.items():
        if args.get(theirs) is not None:
            value = args[theirs]
            setattr(cfg, ours, str(value) if ours == "model_config" else value)
    cfg.activation_dropout = cfg.dropout
    return cfg


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our decoder's names; UserError for a name that the original does not have."""
    found = {}
    for name, value in bare_names(state).items():
        if name.rpartition(".")[2] in ("inv_freq",):  # a table, not a weight
            continue
        for pattern, ours in _KEYS:
            if match := re.fullmatch(pattern, name):
                key = re.sub(r"\{(\d)\}", lambda number: _STACKS[int(number[1])], match.expand(ours))
                found[key] = value.reshape(-1) if key == "null_segment" else value
                break
        else:
            raise UserError(f"weights hold {name}, which no dynamic-pooling model has")
    return found


def decoder_from_original(args: dict[str, Any], state: dict[str, Tensor], space: int | None = None) -> HourglassDecoder:
    """An evaluation-mode decoder over the original's own ids, without special symbols."""
    weights = rename(state)
    types = BareTypes(len(weights["embed_tokens.weight"]), space)
    with building(args, weights, "of the original"):
        decoder = HourglassDecoder(types, hourglass_options(config_from_original(args), types))
    load_weights(decoder, weights)
    return decoder.eval()


def weights_for_dictionary(weights: dict[str, Tensor], dictionary: Dictionary) -> dict[str, Tensor]:
    """Renamed weights for a fairseq dictionary whose types after the specials are the original's, in its order.

    Special symbols get the mean embedding and so low an output bias that they are never predicted: probabilities of
    the others stay exactly those of the original.
    """
    specials, types = dictionary.nspecial, len(dictionary)
    needed = ("embed_tokens.weight", "output_projection.weight", "output_projection.bias")
    missing = [key for key in needed if key not in weights]
    if missing:
        raise UserError(f"the checkpoint has no weights for {missing[0]}")
    embed, out, bias = (weights[key] for key in needed)
    if types - specials != len(embed):
        raise UserError(f"the dictionary has {types - specials} symbols, the checkpoint {len(embed)}")
    low = torch.full((specials,), -1e4, dtype=bias.dtype)
    return {
        **weights,
        "embed_tokens.weight": torch.cat([embed.mean(0, keepdim=True).expand(specials, -1), embed]),
        "output_projection.weight": torch.cat([torch.zeros_like(out[:1]).expand(specials, -1), out]),
        "output_projection.bias": torch.cat([low, bias]),
    }


def model_from_original(
    args: dict[str, Any], state: dict[str, Tensor], dictionary: Dictionary, path: str = "of the original"
) -> HourglassDecoder:
    """An evaluation-mode decoder over a fairseq dictionary; see :func:`weights_for_dictionary`."""
    weights = weights_for_dictionary(rename(state), dictionary)
    with building(args, weights, path):
        decoder = HourglassDecoder(dictionary, hourglass_options(config_from_original(args), dictionary))
    load_weights(decoder, weights)
    return decoder.eval()
