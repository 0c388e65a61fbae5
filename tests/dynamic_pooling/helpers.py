"""Tiny hourglass models for the tests: every boundary type, both position encodings, all options."""

from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from dynamic_pooling.config import BOUNDARIES, DynamicPoolingConfig
from dynamic_pooling.decoder import HourglassDecoder
from dynamic_pooling.model import DynamicPoolingModel, hourglass_options

SIZES: dict[str, Any] = {
    "model_config": "[1, (2,), 1]", "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24,
    "decoder_attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "init_std": 0.3,
}  # fmt: skip
POOLED = tuple(kind for kind in BOUNDARIES if kind != "none")


def characters(count: int = 20) -> Dictionary:
    """A dictionary of the space and ``count - 1`` letters."""
    words = Dictionary()
    for symbol in ["\u2581", *(chr(ord("a") + n) for n in range(count - 1))]:
        words.add_symbol(symbol, n=100)
    return words


WORDS = characters()
SPACE = WORDS.index("\u2581")


def config(kind: str = "whitespaces", **flags: Any) -> DynamicPoolingConfig:
    layers = {"model_config": "[3, (0,), 0]"} if kind == "none" else {}
    return DynamicPoolingConfig(boundaries_type=kind, **{**SIZES, **layers, **flags})


def decoder(kind: str = "whitespaces", seed: int = 0, double: bool = True, **flags: Any) -> HourglassDecoder:
    """In evaluation mode, weights large enough that predicted boundaries fall here and there; float64 by default."""
    torch.manual_seed(seed)
    built = HourglassDecoder(WORDS, hourglass_options(config(kind, **flags), WORDS)).eval()
    return built.double() if double else built


def model(kind: str = "whitespaces", seed: int = 0, double: bool = True, **flags: Any) -> DynamicPoolingModel:
    return DynamicPoolingModel(decoder(kind, seed, double, **flags)).eval()


def text(*lengths: int, seed: int = 0) -> Tensor:
    """Right-padded rows (B, T) of random characters, a fifth of them spaces, each row starting with EOS."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.full((len(lengths), max(lengths)), WORDS.pad())
    for row, length in enumerate(lengths):
        letters = torch.randint(WORDS.nspecial, len(WORDS), (length,), generator=draw)
        spaces = torch.rand(length, generator=draw) < 0.2
        rows[row, :length] = torch.where(spaces, SPACE, letters)
        rows[row, 0] = WORDS.eos()
    return rows
