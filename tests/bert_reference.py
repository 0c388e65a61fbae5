"""BERT and RoBERTa as they are published, written out in numpy over Hugging Face's names; and tiny random ones."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.special import erf

LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-()", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
WORDS = ["good", "bad", "film", "the", "and", "is", "was", "##ed", "##ing", "play", "not", "very", "\u65e5"]
VOCABULARY = ["[PAD]", "[unused0]", *WORDS[:4], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[4:], *LETTERS]


def _norm(x: np.ndarray, weights: Mapping[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]


def _linear(x: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def bert(weights: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: Sequence[int], types: Sequence[int]) -> Any:
    """Last states (T, C) of one row of ids, in float64. Base model's names, without ``bert.``."""
    weights = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    x = weights["embeddings.word_embeddings.weight"][list(ids)]
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(x)]
    x = x + weights["embeddings.token_type_embeddings.weight"][list(types)]
    x = _norm(x, weights, "embeddings", eps)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            _linear(x, weights, f"{name}.attention.self.{one}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for one in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        mixed = _linear(mixed, weights, f"{name}.attention.output.dense")
        x = _norm(x + mixed, weights, f"{name}.attention.output", eps)
        inner = _linear(x, weights, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
        x = _norm(x + _linear(inner, weights, f"{name}.output.dense"), weights, f"{name}.output", eps)
    return x


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a base model with a pooler, large enough that every part of it shows in the output."""
    draw = torch.Generator().manual_seed(seed)
    width, ffn = config["hidden_size"], config["intermediate_size"]

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    tables = {
        "word_embeddings": config["vocab_size"],
        "position_embeddings": config["max_position_embeddings"],
        "token_type_embeddings": config["type_vocab_size"],
    }
    found = {f"embeddings.{name}.weight": matrix(rows, width) for name, rows in tables.items()}
    linear = {"pooler.dense": (width, width)}
    norms = ["embeddings"]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        linear.update({f"{name}.attention.self.{one}": (width, width) for one in ("query", "key", "value")})
        linear[f"{name}.attention.output.dense"] = (width, width)
        linear[f"{name}.intermediate.dense"], linear[f"{name}.output.dense"] = (ffn, width), (width, ffn)
        norms += [f"{name}.attention.output", f"{name}.output"]
    for name, shape in linear.items():
        found[f"{name}.weight"], found[f"{name}.bias"] = matrix(*shape), matrix(shape[0])
    for name in norms:
        found[f"{name}.LayerNorm.weight"] = 1 + matrix(width)
        found[f"{name}.LayerNorm.bias"] = matrix(width)
    return found


def tiny_config(kind: str = "bert", **changes: Any) -> dict[str, Any]:
    size = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    special = {"bert": (0, 16, 2, 1e-12), "roberta": (1, 18, 1, 1e-5)}[kind]
    names = ("pad_token_id", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    return {
        "model_type": kind,
        "vocab_size": len(VOCABULARY),
        **size,
        **dict(zip(names, special, strict=True)),
        "hidden_act": "gelu",
        **changes,
    }


def write_bert(folder: Path, prefix: str = "", extra: Mapping[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A folder as Hugging Face has them, of a tiny random BERT with :data:`VOCABULARY` (uncased)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    weights = {prefix + name: value for name, value in random_weights(config).items()}
    save_file({**weights, **(extra or {})}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    return folder
