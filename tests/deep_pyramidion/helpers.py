"""Tiny models of ours and of fairseq with the same weights, and ragged batches for them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from deep_pyramidion.config import PyramidionConfig
from deep_pyramidion.model import PyramidionModel
from fairseq_efficient.plugin.flat_config import nested_transformer_config

PAD, EOS, FIRST_WORD = 1, 2, 4
TINY = {
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2, "encoder_layers": 3,
    "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2, "decoder_layers": 2,
    "dropout": 0.0, "attention_dropout": 0.0, "max_source_positions": 64, "max_target_positions": 32,
    "encoder_pooling": "topk", "enc_layers_and_token_width": "0:24,2:10", "chunk_size": 8, "sort_back": 1,
}  # fmt: skip
NO_POOLING = {"encoder_pooling": "lambda"}
# flags that change what the encoder computes: padding, step by step and reordering are tested under each
VARIANTS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "by_score": {"sort_back": 0, "flip_right": 0},
    "odd_widths": {"enc_layers_and_token_width": "0:37,1:11,2:3", "chunk_size": 7},
    "hard": {"hard_topk_inference": True, "sort_back": 0},
    "ffn_scorer": {"encoder_pooling_arch": "ffn", "topk_softmax_base": 3},
    "overlap_shift": {"chunk_overlap": 3, "chunk_shift": True, "chunk_size": 6},
    "chunk_positions": {"chunk_positions": True},
    "pooled_full_attention": {"use_sparse_attn": "pooler_no_block"},
    "blockwise": {**NO_POOLING, "use_sparse_attn": "only_blockwise"},
    "plain": NO_POOLING,
    "pre_norm_learned": {
        "encoder_normalize_before": True, "decoder_normalize_before": True, "encoder_learned_pos": True,
        "decoder_learned_pos": True, "layernorm_embedding": True, "activation_fn": "gelu", "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
    },
    "no_positions": {"no_token_positional_embeddings": True},
    "no_decoder_positions": {"no_decoder_positional_embeddings": True},
}  # fmt: skip


def dictionary(words: int = 26) -> Dictionary:
    found = Dictionary()
    for index in range(words):
        found.add_symbol(f"w{index}")
    return found


def task(words: Dictionary | None = None) -> Any:
    words = words or dictionary()
    return SimpleNamespace(source_dictionary=words, target_dictionary=words)


def config(**flags: Any) -> PyramidionConfig:
    cfg = PyramidionConfig()
    for name, value in {**TINY, **flags}.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return cfg


def build(words: Dictionary | None = None, **flags: Any) -> PyramidionModel:
    """A tiny model in evaluation mode; weights are a little larger than fairseq's, so that all parts matter."""
    torch.manual_seed(0)
    model = PyramidionModel.build_model(config(**flags), task(words))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name and "layernorm" not in name:
                parameter.mul_(1.5)
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def stock_twin(model: PyramidionModel, **flags: Any) -> TransformerModelBase:
    """fairseq's transformer with ``model``'s weights (built with the same ``flags``)."""
    cfg = config(**flags)
    stock = TransformerModelBase.build_model(nested_transformer_config(cfg), task(model.encoder.dictionary))
    state = {key: value for key, value in model.state_dict().items() if ".pooler." not in key}
    stock.load_state_dict(state, strict=True)
    return stock.eval()


def documents(lengths: Sequence[int], seed: int = 0, words: int = 26) -> list[Tensor]:
    """Random token ids of the given lengths, each ending in EOS."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randint(FIRST_WORD, FIRST_WORD + words, (length,), generator=draw) for length in lengths]
    for one in made:
        one[-1] = EOS
    return made


def pad(rows: Sequence[Tensor], side: str = "right", width: int = 0) -> Tensor:
    """(B, T) with pads on one side, T at least ``width``."""
    width = max(width, *(row.numel() for row in rows)) if rows else width
    out = torch.full((len(rows), width), PAD)
    for target, row in zip(out, rows, strict=True):
        if side == "right":
            target[: row.numel()] = row
        else:
            target[width - row.numel() :] = row
    return out


def prefixes(rows: Sequence[Tensor]) -> list[Tensor]:
    """Decoder inputs: EOS, then all but the last token."""
    return [torch.cat([row[-1:], row[:-1]]) for row in rows]


def tensor_attributes(model: torch.nn.Module) -> set[tuple[str, str]]:
    """(module, attribute) of every tensor that hangs on a module, in lists and dicts too."""

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            value = list(value.values())
        return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(holds(v) for v in value))

    return {(name, key) for name, part in model.named_modules() for key, value in vars(part).items() if holds(value)}
