"""Every flag of fairseq's transformer, written flat, and back to the nested config that its modules read."""

import argparse
import dataclasses
from dataclasses import fields
from typing import Any

import pytest
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.transformer.transformer_config import TransformerConfig
from omegaconf import OmegaConf

from fairseq_efficient.plugin.flat_config import (
    _LEFT_OUT,
    _PARTS,
    _SAME_AS_EMBED_DIM,
    FlatTransformerConfig,
    nested_transformer_config,
)

NAMES = [one.name for one in fields(FlatTransformerConfig) if one.name != "_name"]


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """{flat name: value} of a nested config; its own idea of the names."""
    found = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if prefix == "" and one.name in ("encoder", "decoder", "quant_noise"):
            found.update(leaves(value, f"{one.name}_"))
        else:
            found[prefix + one.name] = value
    return found


def stock_defaults() -> dict[str, Any]:
    nested = TransformerConfig()
    nested.encoder, nested.decoder, nested.quant_noise = (kind() for kind in _PARTS.values())
    return leaves(nested)


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return {int: 7, float: 0.625, type(None): 9}.get(type(value), "gelu")


def test_defaults_are_fairseqs():
    ours, stock = leaves(nested_transformer_config(FlatTransformerConfig())), stock_defaults()
    for name in _SAME_AS_EMBED_DIM:  # an interpolation in stock
        assert ours.pop(name) == stock["decoder_embed_dim"] and stock.pop(name) is not None
    assert ours == stock


def test_every_flag_of_stock_is_there_or_left_out_on_purpose():
    stock = set(stock_defaults()) - {"_name", "encoder__name", "decoder__name", "quant_noise__name"}
    missing = {name for name in stock if name not in NAMES}
    assert len(NAMES) == len(set(NAMES)) and set(NAMES) <= stock
    assert all(any(name in (out, f"encoder_{out}", f"decoder_{out}") for out in _LEFT_OUT) for name in missing)
    assert all(any(name in (out, f"encoder_{out}", f"decoder_{out}") for name in stock) for out in _LEFT_OUT)


@pytest.mark.parametrize("name", NAMES)
def test_each_flag_reaches_its_one_place(name: str):
    plain, other = FlatTransformerConfig(), FlatTransformerConfig()
    setattr(other, name, changed(getattr(plain, name)))
    one, two = leaves(nested_transformer_config(plain)), leaves(nested_transformer_config(other))
    differ = {key for key in one if one[key] != two[key]}
    assert differ == ({name, *_SAME_AS_EMBED_DIM} if name == "decoder_embed_dim" else {name})
    assert two[name] == getattr(other, name)


def test_flags_parse_and_have_help():
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, FlatTransformerConfig())
    actions = {action.dest: action for action in parser._actions}
    assert all(actions[name].help for name in NAMES)
    line = (
        "--encoder-embed-dim 24 --decoder-layers 5 --dropout 0.25 --encoder-normalize-before --activation-fn gelu "
        "--decoder-output-dim 12 --quant-noise-pq 0.5 --adaptive-softmax-cutoff 10,20"
    )
    args = parser.parse_args(line.split())
    nested = nested_transformer_config(args)
    assert nested.encoder.embed_dim == 24 and nested.encoder.normalize_before and nested.decoder.layers == 5
    assert nested.dropout == 0.25 and str(nested.activation_fn) == "gelu" and nested.quant_noise.pq == 0.5
    assert nested.decoder.output_dim == 12 and nested.decoder.input_dim == nested.decoder.embed_dim


def test_omegaconf_can_hold_merge_and_store_it():
    """fairseq keeps configs as plain containers in checkpoints and merges overrides into them."""
    stored = OmegaConf.to_container(OmegaConf.structured(FlatTransformerConfig), resolve=False)
    assert not any(isinstance(value, str) and "${" in value for value in stored.values())
    merged = OmegaConf.merge(OmegaConf.structured(FlatTransformerConfig), {"encoder_layers": 9})
    nested = nested_transformer_config(merged)
    assert nested.encoder.layers == 9 and not dataclasses.is_dataclass(stored)
