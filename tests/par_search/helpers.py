"""Tiny models for the tests, and the layers of a language model written out from the formulas."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from par_search.config import ParLMConfig, SupernetConfig
from par_search.model import ParLanguageModel, SupernetLanguageModel
from tests.stream_models import task

SIZES: dict[str, Any] = {
    "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2, "mem_len": 6,
    "dropout": 0.0, "init_std": 0.3, "tokens_per_sample": 8,
}  # fmt: skip
ADAPTIVE = {"adaptive_softmax_cutoff": "9,20", "adaptive_softmax_factor": 2.0}
TIED = {**ADAPTIVE, "adaptive_input": True, "adaptive_input_factor": 2.0, "tie_adaptive_weights": True}


def par_lm(layout: str = "affaif", seed: int = 0, double: bool = True, **flags: Any) -> ParLanguageModel:
    torch.manual_seed(seed)
    model = ParLanguageModel.build_model(ParLMConfig(**{**SIZES, "layout": layout, **flags}), task())
    return model.double().eval() if double else model.eval()


def supernet(blocks: int = 4, seed: int = 0, double: bool = True, **flags: Any) -> SupernetLanguageModel:
    torch.manual_seed(seed)
    cfg = SupernetConfig(**{**SIZES, "decoder_blocks": blocks, "max_update": 100, **flags})
    model = SupernetLanguageModel.build_model(cfg, task())
    return model.double().eval() if double else model.eval()


def remembered_in_decoding(decoder: Any) -> int:
    """Tokens before it that a token of a block of one must remember, to see what it sees in decoding."""
    o = decoder.options
    return o.mem_len if o.same_length else o.mem_len + o.tokens - 1


def by_formula(decoder: Any, stream: Tensor, start: int = 0, memory_length: int | None = None) -> Tensor:
    """Logits (B, T, V) of a post-norm net for tokens from ``start`` on, each block reading exactly the tokens before
    ``start`` that it may remember, with loops."""
    states = decoder.embed_tokens(stream) * math.sqrt(decoder.options.block.dim)
    assert start == 0, "memory is compared by blockwise()"
    x = states
    for block, kind in zip(decoder.blocks, decoder.layout, strict=True):
        if kind == "a":
            x = layer_norm(x + _attention(block, x), (x.size(-1),), block.layer_norm.weight, block.layer_norm.bias)
        elif kind == "f":
            hidden = linear(x, block.fc1.weight, block.fc1.bias).clamp(min=0)
            y = linear(hidden, block.fc2.weight, block.fc2.bias)
            x = layer_norm(x + y, (x.size(-1),), block.layer_norm.weight, block.layer_norm.bias)
    return decoder.output_projection(x)


def _attention(block: Any, x: Tensor) -> Tensor:
    o, attn = block.options, block.self_attn
    rows, count, dim = x.shape
    q, k, v = linear(x, attn.qkv_proj.weight).view(rows, count, 3, o.heads, o.head_dim).unbind(2)
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    out = torch.zeros(rows, count, o.heads, o.head_dim, dtype=x.dtype)
    for i in range(count):
        scores = []
        for j in range(i + 1):
            angle = (i - j) * frequency
            r = linear(torch.cat([angle.sin(), angle.cos()]), attn.r_proj.weight).view(o.heads, o.head_dim)
            score = ((q[:, i] + block.content_bias) * k[:, j]).sum(-1) + ((q[:, i] + block.position_bias) * r).sum(-1)
            scores.append(score / math.sqrt(o.head_dim))
        weights = torch.stack(scores, -1).softmax(-1)  # (B, H, i + 1)
        out[:, i] = torch.einsum("bhj,bjhd->bhd", weights, v[:, : i + 1])
    return linear(out.flatten(2), attn.out_proj.weight)
