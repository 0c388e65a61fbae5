"""Flags, architectures and YAML configurations, and the mistakes that are refused when the model is built."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models, options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

from deep_pyramidion.config import ARCHITECTURES, PyramidionConfig
from deep_pyramidion.model import PyramidionModel
from fairseq_efficient.errors import UserError
from tests.deep_pyramidion.helpers import build, config, dictionary, task
from tests.util import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore:\\s*'.*' is validated against ConfigStore", "ignore:Initializing zero-element"
)
CONFIGS = sorted((ROOT / "deep_pyramidion" / "configs").glob("*.yaml"))


def from_command_line(*args: str) -> Any:
    """The configuration that ``fairseq-train`` makes of its arguments."""
    parser = options.get_training_parser()
    parsed = options.parse_args_and_arch(parser, ["data", "--user-dir", str(ROOT / "deep_pyramidion"), *args])
    return convert_namespace_to_omegaconf(parsed)


def from_yaml(path: Path, *overrides: str) -> Any:
    """The configuration that ``fairseq-hydra-train --config-name`` makes of a file."""
    from hydra import compose, initialize_config_dir

    hydra_init(path.stem)
    with initialize_config_dir(str(path.parent), version_base="1.1"):
        found = compose(path.stem, overrides=["task.data=data", *overrides])
    OmegaConf.set_struct(found, False)
    found = OmegaConf.create(OmegaConf.to_container(found, resolve=True, enum_to_str=True))
    add_defaults(found)
    return found


def values_of(cfg: Any) -> dict[str, Any]:
    """Field -> value of a model's configuration, without its name."""
    names = {one.name for one in dataclasses.fields(PyramidionConfig)} - {"_name"}
    values = {name: getattr(cfg, name) for name in names}
    return {name: float(v) if isinstance(v, int | float) else str(v) for name, v in values.items()}


def shapes_of(cfg: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = models.build_model(cfg, task(dictionary(60)))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def test_every_yaml_is_an_architecture():
    assert {f"pyramidion_{path.stem}" for path in CONFIGS} == set(ARCHITECTURES)


def flags_of(path: Path) -> list[str]:
    """The model section of a YAML file as a command line."""
    section = OmegaConf.to_container(OmegaConf.load(path).model)
    arch = section.pop("_name")
    flags = ["--arch", arch]
    for name, value in section.items():
        flag = f"--{name.replace('_', '-')}"
        if ARCHITECTURES[arch].get(name) is not True:
            flags += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return flags


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_arch_and_yaml_give_the_same_model(path: Path):
    """Same values of all flags, and parameters of the same names and shapes; also with an override on both."""
    flags = flags_of(path)
    assert flags[1] == f"pyramidion_{path.stem}"
    for more, overrides in (
        ([], []),
        (["--chunk-size", "33", "--sort-back", "0"], ["model.chunk_size=33", "model.sort_back=0"]),
    ):
        one, two = from_command_line(*flags, *more), from_yaml(path, *(f"++{override}" for override in overrides))
        assert values_of(one.model) == values_of(two.model)
        assert one.model.chunk_size == 33 or not more
        assert two.task.max_source_positions == one.task.max_source_positions == one.model.max_source_positions
    assert shapes_of(one.model) == shapes_of(two.model)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_architecture_is_its_sizes_on_both_routes(arch: str, tmp_path: Path):
    """Nothing but the name given: fairseq-train --arch and ``model: {_name: ...}``."""
    bare = OmegaConf.load(CONFIGS[0])
    bare.model = {"_name": arch}
    OmegaConf.save(bare, tmp_path / "bare.yaml")
    one, two = from_command_line("--arch", arch).model, from_yaml(tmp_path / "bare.yaml").model
    assert values_of(one) == values_of(two)
    for name, value in ARCHITECTURES[arch].items():
        assert str(getattr(one, name)) == str(value)


@pytest.mark.parametrize(
    "arch",
    [a for a, v in ARCHITECTURES.items()],
)
def test_a_switch_switches_on_whatever_the_architecture_says(arch: str):
    switches = [one.name for one in dataclasses.fields(PyramidionConfig) if isinstance(one.default, bool)]
    cfg = from_command_line("--arch", arch, *(f"--{name.replace('_', '-')}" for name in switches)).model
    assert [name for name in switches if not getattr(cfg, name)] == []


def test_the_model_name_alone_is_base():
    bare, base = from_command_line("--arch", "pyramidion"), from_command_line("--arch", "pyramidion_base")
    assert values_of(bare.model) == values_of(base.model) == values_of(PyramidionConfig())


def test_defaults_are_the_originals():
    cfg = from_command_line("--arch", "pyramidion_base").model
    expected = {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_embed_dim": 512, "decoder_embed_dim": 512,
        "encoder_ffn_embed_dim": 2048, "decoder_ffn_embed_dim": 2048, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_normalize_before": False, "activation_fn": "relu", "dropout": 0.1,
        "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "layernorm_embedding": False,
        "encoder_learned_pos": False, "encoder_pooling": "lambda", "enc_layers_and_token_width": "{0: 2048, 1: 512}",
        "chunk_size": 512, "use_sparse_attn": "pooler", "flip_right": 1, "sort_back": 0, "topk_softmax_base": 20,
        "encoder_pooling_arch": "linear", "global_positions": 0, "no_decoder_positional_embeddings": False,
    }  # fmt: skip
    assert {name: getattr(cfg, name) for name in expected} == expected


def test_flags_of_the_original_parse():
    cfg = from_command_line(
        "--arch", "pyramidion_base", "--encoder-pooling", "topk", "--enc-layers-and-token-width", "{0: 2048, 1: 512}",
        "--max-source-positions", "2048", "--chunk-size", "256", "--use-sparse-attn", "only_blockwise",
        "--flip-right", "0", "--sort-back", "1", "--topk-softmax-base", "7", "--encoder-pooling-arch", "ffn",
        "--global-positions", "1", "--no-decoder-positional-embeddings", "--truncate-source",
    )  # fmt: skip
    assert cfg.model.encoder_pooling == "topk" and cfg.model.max_source_positions == 2048
    assert cfg.model.flip_right == 0 and cfg.model.sort_back == 1 and cfg.model.topk_softmax_base == 7
    assert cfg.model.no_decoder_positional_embeddings and cfg.task.truncate_source


def test_every_flag_has_help_and_booleans_are_off():
    for one in dataclasses.fields(PyramidionConfig):
        if one.name == "_name":
            continue
        assert len(one.metadata.get("help", "")) > 3, one.name
        assert one.default is not True or one.name in ("share_decoder_input_output_embed",), one.name


P19 = [
    ({"enc_layers_and_token_width": "0:8,3:4"}, "--enc-layers-and-token-width: layer 3 does not exist"),
    ({"enc_layers_and_token_width": "0:8,1:16"}, "--enc-layers-and-token-width: layer 1 keeps 16 tokens but only 8"),
    ({"enc_layers_and_token_width": "0:0"}, "--enc-layers-and-token-width: layer 0 must keep at least 1 token"),
    ({"enc_layers_and_token_width": "eight"}, "--enc-layers-and-token-width: expected layer:width pairs"),
    ({"enc_layers_and_token_width": "__import__('os')"}, "--enc-layers-and-token-width: expected layer:width pairs"),
    ({"chunk_size": 0}, "--chunk-size 0: must be at least 1"),
    ({"chunk_overlap": 9}, "--chunk-overlap 9: must be between 0 and --chunk-size 8"),
    ({"chunk_overlap": -1}, "--chunk-overlap -1: must be between 0"),
    ({"topk_softmax_base": 1}, "--topk-softmax-base must be greater than 1"),
    ({"topk_softmax_base": float("nan")}, "--topk-softmax-base must be greater than 1"),
    ({"topk_softmax_base": float("inf")}, "--topk-softmax-base must be"),
    ({"topk_softmax_base_final": 0.5, "topk_softmax_base_updates": 5}, "--topk-softmax-base must be greater than 1"),
    ({"topk_softmax_base_final": 50}, "--topk-softmax-base-final and --topk-softmax-base-updates go together"),
    ({"topk_softmax_base_updates": 50}, "--topk-softmax-base-final and --topk-softmax-base-updates go together"),
    ({"topk_softmax_base_updates": -5}, "--topk-softmax-base-updates"),
    ({"flip_right": 2}, "--flip-right 2: must be 0 or 1"),
    ({"sort_back": -1}, "--sort-back -1: must be 0 or 1"),
    ({"global_positions": 5}, "--global-positions 5: must be 0 or 1"),
    ({"encoder_attention_heads": 3}, "--encoder-attention-heads 3 must divide --encoder-embed-dim 16"),
    ({"decoder_attention_heads": 0}, "--decoder-attention-heads 0 must divide --decoder-embed-dim 16"),
    ({"encoder_embed_dim": 0}, "--encoder-embed-dim"),
    ({"encoder_ffn_embed_dim": 0}, "--encoder-ffn-embed-dim"),
    ({"encoder_layers": 0}, "--encoder-layers 0: must be at least 1"),
    ({"decoder_layers": -2}, "--decoder-layers -2: must be at least 1"),
    ({"encoder_layerdrop": 1.0}, "--encoder-layerdrop 1.0: must be at least 0 and below 1"),
    ({"dropout": 1.5}, "--dropout 1.5: must be at least 0 and below 1"),
    ({"attention_dropout": -0.1}, "--attention-dropout -0.1: must be at least 0 and below 1"),
    ({"adaptive_softmax_factor": 0.0}, "--adaptive-softmax-factor 0.0: must be at least 1"),
    ({"adaptive_softmax_factor": float("nan")}, "--adaptive-softmax-factor nan: must be at least 1"),
    ({"adaptive_softmax_dropout": 1.0}, "--adaptive-softmax-dropout 1.0: must be at least 0 and below 1"),
    ({"quant_noise_pq": 1.5}, "--quant-noise-pq 1.5: must be at least 0 and below 1"),
    ({"quant_noise_pq_block_size": 0}, "--quant-noise-pq-block-size 0: must be at least 1"),
    ({"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 7}, "--quant-noise-pq-block-size 7: must divide --encoder-"),
    ({"decoder_output_dim": 0}, "--decoder-output-dim 0: must be at least 1"),
    ({"max_source_positions": 1}, "--max-source-positions 1: must be at least 2"),
    ({"max_target_positions": 0}, "--max-target-positions 0: must be at least 2"),
    ({"share_all_embeddings": True, "decoder_embed_dim": 12}, "--share-all-embeddings"),
]


@pytest.mark.parametrize(("flags", "message"), P19)
def test_p19_bad_flags_are_one_line(flags: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        build(**flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_p19_different_dictionaries_cannot_share_embeddings():
    two = task()
    two.target_dictionary = dictionary(7)
    with pytest.raises(UserError, match="--share-all-embeddings"):
        PyramidionModel.build_model(config(share_all_embeddings=True), two)


def test_a_choice_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]):
    for flag in ("--encoder-pooling", "--use-sparse-attn", "--encoder-pooling-arch"):
        with pytest.raises(SystemExit) as caught:
            from_command_line("--arch", "pyramidion_base", flag, "magic")
        assert caught.value.code == 2 and flag in capsys.readouterr().err


def test_a_config_of_any_kind_builds_the_same():
    """A dataclass, a Namespace that lacks fields, a DictConfig."""
    import argparse

    plain = config()
    lacking = argparse.Namespace(
        **{k: v for k, v in vars(plain).items() if k not in ("chunk_shift", "cpu_bf16", "_name")}
    )
    shapes = [
        {n: p.shape for n, p in PyramidionModel.build_model(one, task()).named_parameters()}
        for one in (plain, lacking, OmegaConf.structured(plain))
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_building_leaves_the_given_config_alone():
    plain = config()
    before = dataclasses.asdict(plain)
    PyramidionModel.build_model(plain, task())
    assert dataclasses.asdict(plain) == before and "deep_pyramidion.model" in sys.modules
