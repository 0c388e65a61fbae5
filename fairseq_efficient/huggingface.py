"""Models in Hugging Face's layout: config.json, model.safetensors and a tokenizer, read and written.

Weights are read from safetensors alone. A pickle (pytorch_model.bin) can run code and is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.prepared import read_object
from fairseq_efficient.text.subwords import Subwords

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
# exact GELU has one name in both; the approximation by tanh has several
ACTIVATIONS = {
    "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_accurate", "gelu_pytorch_tanh": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
}  # fmt: skip
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True)
class Shape:
    """Sizes and constants of an encoder of this family."""

    layers: int
    width: int
    ffn: int
    heads: int
    positions: int  # tokens a row may have
    eps: float  # of every LayerNorm
    activation: str  # in fairseq's words
    segments: int  # kinds of token types; 1: none
    dropout: float
    attention_dropout: float
    offset: int  # rows of the position table before the first position


@dataclass(frozen=True)
class Source:
    """A folder that was read. ``weights`` have the names of their base model, without ``bert.`` or ``roberta.``."""

    folder: Path
    kind: str
    shape: Shape
    weights: dict[str, Tensor]
    config: dict[str, Any]


def _number(config: dict[str, Any], name: str, path: Path, least: float = 1) -> Any:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise UserError(f"{path}: {name} is {value!r}, not a number of at least {least}")
    return value


def kind_of(config: dict[str, Any]) -> Any:
    """The model's type; old files of BERT name only the class."""
    classes = " ".join(map(str, config.get("architectures") or ()))
    return config.get("model_type") or ("bert" if classes.startswith("Bert") else None)


def read_shape(config: dict[str, Any], path: Path) -> Shape:
    """Sizes of a config.json. UserError for a model that fairseq's RoBERTa cannot be."""
    kind = kind_of(config)
    if kind not in MODEL_TYPES:
        raise UserError(f"{path}: model_type {kind!r} is not one that is converted ({', '.join(MODEL_TYPES)})")
    for name, only in (("is_decoder", False), ("add_cross_attention", False), ("position_embedding_type", "absolute")):
        if config.get(name, only) not in (only, None):
            raise UserError(f"{path}: {name} {config[name]!r}: fairseq's RoBERTa has none of it")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act {activation!r} is not known ({', '.join(ACTIVATIONS)})")
    offset = 0 if kind == "bert" else int(config.get("pad_token_id", 1)) + 1
    return Shape(
        layers=int(_number(config, "num_hidden_layers", path)),
        width=int(_number(config, "hidden_size", path)),
        ffn=int(_number(config, "intermediate_size", path)),
        heads=int(_number(config, "num_attention_heads", path)),
        positions=int(_number(config, "max_position_embeddings", path, offset + 1)) - offset,
        eps=float(_number({"layer_norm_eps": 1e-12, **config}, "layer_norm_eps", path, 0)),
        activation=ACTIVATIONS[activation],
        segments=int(config.get("type_vocab_size", 2)),
        dropout=float(config.get("hidden_dropout_prob", 0.1)),
        attention_dropout=float(config.get("attention_probs_dropout_prob", 0.1)),
        offset=offset,
    )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        parts = read_object(folder / INDEX, "not a JSON object").get("weight_map")
        names = sorted(set(parts.values())) if isinstance(parts, dict) else []
        if not names or any(Path(str(name)).name != name for name in names):
            raise UserError(f"{folder / INDEX}: does not name the files of the weights")
        return [folder / name for name in names]
    pickled = next((name for name in _PICKLES if (folder / name).exists()), None)
    if pickled is not None:
        raise UserError(f"{folder / pickled}: not read (it may run code); save the model as {WEIGHTS}")
    raise UserError(f"{folder}: no {WEIGHTS}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in fp32, under the names of the base model. UserError for what is damaged or missing."""
    found: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            found.update(load_file(path))
        except (SafetensorError, OSError) as err:
            why = getattr(err, "strerror", None) or " ".join(str(err).split())[:200]
            raise UserError(f"{path}: not a safetensors file ({why})") from None
    return {_plain_name(name): value.float() for name, value in found.items()}


def _plain_name(name: str) -> str:
    """Without the base model's prefix, and with today's names of LayerNorm's weights."""
    for prefix in ("bert.", "roberta.", "model."):
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_model(folder: Path) -> Source:
    """Configuration and weights of a folder; UserError if it is not one, or not of this family."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG}")
    config = read_object(folder / CONFIG, "not a JSON object")
    return Source(folder, str(kind_of(config)), read_shape(config, folder / CONFIG), read_weights(folder), config)


# --- writing -------------------------------------------------------------------------------------------------------


def config_json(
    kind: str, shape: Shape, vocabulary: int, architecture: str, labels: int | None, pad: int | None
) -> dict[str, Any]:
    """A config.json for :class:`Shape`; ``vocabulary`` in rows, ``labels`` of a classifier, ``pad`` padding's id."""
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == shape.activation)
    special = {"pad_token_id": pad} | ({} if kind == "bert" else {"bos_token_id": 0, "eos_token_id": 2})
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": vocabulary,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.positions + shape.offset,
        "type_vocab_size": shape.segments,
        "layer_norm_eps": shape.eps,
        "hidden_act": activation,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.attention_dropout,
        "initializer_range": 0.02,
        "position_embedding_type": "absolute",
        **special,
    }
    if labels is not None:
        config["id2label"] = {str(number): f"LABEL_{number}" for number in range(labels)}
        config["label2id"] = {f"LABEL_{number}": number for number in range(labels)}
    return config


def tokenizer_files(kind: str, subwords: Subwords, order: list[int]) -> dict[str, str]:
    """Tokenizer files by name. ``order`` holds, row by row of the written embedding, the tokenizer's id or, below 0,
    ``-1 - role`` of fairseq's special symbols."""
    if kind == "bert":
        lines = (token or f"[unused-{number}]" for number, token in enumerate(subwords.tokens))
        lower = bool((subwords.document.get("normalizer") or {}).get("lowercase", False))
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        return {"vocab.txt": "".join(f"{line}\n" for line in lines), "tokenizer_config.json": _text(settings)}
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokens = [names[-1 - one] if one < 0 else subwords.tokens[one] or subwords.symbols[one] for one in order]
    merges = subwords.document["model"].get("merges", [])
    pairs = [one if isinstance(one, str) else " ".join(one) for one in merges]
    return {
        "vocab.json": _text({token: number for number, token in enumerate(tokens)}, None),
        "merges.txt": "#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs),
        "tokenizer_config.json": _text({"tokenizer_class": "RobertaTokenizer"}),
    }


def _text(value: Any, indent: int | None = 2) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def write_model(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any], files: dict[str, str]) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into an existing folder."""
    (folder / WEIGHTS).write_bytes(save({k: v.contiguous() for k, v in weights.items()}, metadata={"format": "pt"}))
    for name, text in {CONFIG: _text(config), **files}.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
