"""Tiny models for the tests, and the sequential transformer written out from the formulas."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from adaptive_span.config import SequentialConfig
from adaptive_span.model import SequentialLanguageModel
from tests.stream_models import task

SIZES: dict[str, Any] = {
    "decoder_layers": 3, "decoder_embed_dim": 12, "decoder_ffn_embed_dim": 20, "decoder_attention_heads": 3,
    "attn_span": 14, "tokens_per_sample": 8,
}  # fmt: skip
ADAPTIVE = {"adaptive_softmax_cutoff": "9,20", "adaptive_softmax_factor": 2.0}
TIED = {
    **ADAPTIVE,
    "adaptive_input": True,
    "adaptive_input_factor": 2.0,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
SPANS = {"adapt_span": True, "adapt_span_ramp": 4, "adapt_span_loss": 1e-3}
VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "heads": SPANS,
    "trimmed": {**SPANS, "adapt_span_cache": True},
    "layer": {**SPANS, "adapt_span_layer": True},
    "tokens": {**SPANS, "dynamic_span": True},
    "persistent": {"pers_mem_size": 5},
    "persistent heads": {**SPANS, "pers_mem_size": 5},
    "zeros": {**SPANS, "empty_cache": "zeros"},
    "orig": {**SPANS, "adapt_span_mask": "orig", "empty_cache": "zeros"},
    "adaptive": {**SPANS, **ADAPTIVE},
    "tied": {"pers_mem_size": 5, **TIED},
}


def sequential_lm(seed: int = 0, double: bool = True, ragged: bool = True, **flags: Any) -> SequentialLanguageModel:
    """A model whose heads have spans of their own (``ragged``), not all the first."""
    torch.manual_seed(seed)
    model = SequentialLanguageModel.build_model(SequentialConfig(**{**SIZES, **flags}), task())
    if ragged:
        with torch.no_grad():
            for layer in model.decoder.layers:
                if layer.self_attn.spans is not None:
                    for name, parameter in layer.self_attn.spans.named_parameters():
                        if name == "ratio":
                            parameter.copy_(torch.rand_like(parameter))
                        else:
                            parameter.normal_()
    return model.double().eval() if double else model.eval()


def by_formula(decoder: Any, stream: Tensor) -> Tensor:
    """Logits (B, T, V) for a stream from its start, one pair of tokens at a time."""
    x = decoder.embed_tokens(stream)
    for layer in decoder.layers:
        norm = layer.self_attn_layer_norm
        x = layer_norm(x + _attention(decoder, layer.self_attn, x), (x.size(-1),), norm.weight, norm.bias)
        if not layer.options.attention.persistent:
            hidden = linear(x, layer.fc1.weight, layer.fc1.bias).clamp(min=0)
            y = linear(hidden, layer.fc2.weight, layer.fc2.bias)
            x = layer_norm(x + y, (x.size(-1),), layer.final_layer_norm.weight, layer.final_layer_norm.bias)
    return decoder.output_projection(x)


def _attention(decoder: Any, attention: Any, x: Tensor) -> Tensor:
    o, (rows, count, _) = attention.options, x.shape
    heads, dim = o.heads, attention.head_dim
    q, k, v = linear(x, attention.qkv_proj.weight).view(rows, count, 3, heads, dim).unbind(2)
    out = torch.zeros(rows, count, heads, dim, dtype=x.dtype)
    spans = None if attention.spans is None else attention.spans(x)
    if spans is not None and spans.dim() == 1:
        spans = spans.expand(heads)[None, :, None].expand(rows, heads, count)
    for row in range(rows):
        for head in range(heads):
            for i in range(count):
                weights, values = [], []
                for j in range(max(0, i - o.longest), i):
                    distance, mask = i - j, 1.0
                    if spans is not None:
                        ramp = attention.spans.options.ramp
                        mask = min(max((ramp + spans[row, head, i].item() - (distance - 1)) / ramp, 0.0), 1.0)
                    score = q[row, i, head] @ (k[row, j, head] + decoder.positions[distance - 1]) / math.sqrt(dim)
                    weights.append(mask * score.exp())
                    values.append(v[row, j, head])
                for n in range(o.persistent):
                    key = attention.persistent_key[head, n] * math.sqrt(dim)
                    weights.append((q[row, i, head] @ key / math.sqrt(dim)).exp())
                    values.append(attention.persistent_value[head, n] * math.sqrt(o.persistent))
                if weights:
                    total = sum(weights)
                    out[row, i, head] = sum(w / total * value for w, value in zip(weights, values, strict=True))
    return linear(out.flatten(2), attention.out_proj.weight)
