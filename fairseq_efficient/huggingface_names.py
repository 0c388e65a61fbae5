"""Weights of BERT and RoBERTa under the names of Hugging Face and of fairseq's RoBERTa.

Rows of the word embedding follow the dictionary (:mod:`fairseq_efficient.text.subwords`). fairseq counts positions
from row 2 and knows no token types, so the vector of type 0, which every token has, is added to the positions; the
other types become ``segment_embeddings``, as differences from type 0, or are left out.
"""

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.huggingface import Shape, Source

ENCODER = "encoder.sentence_encoder"
SEGMENTS = f"{ENCODER}.segment_embeddings.weight"
HEADS = "classification_heads"
ANSWERS = "question_answering_head"  # of task skim_squad
PADDING = 2  # rows of fairseq's position table before the first position
_SIDES = ("weight", "bias")
_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
_LM_HEAD = {  # Hugging Face's names in BERT, in RoBERTa, and fairseq's
    "dense": ("cls.predictions.transform.dense", "lm_head.dense"),
    "layer_norm": ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
}
_LM_BIAS = ("cls.predictions.bias", "lm_head.bias")
_LM_WEIGHT = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")
_IGNORED = (
    "embeddings.position_ids", "embeddings.token_type_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias",
    "cls.predictions.decoder.bias", "lm_head.decoder.bias", "pooler.dense.weight", "pooler.dense.bias",
)  # fmt: skip


def layer_names(layers: int) -> dict[str, str]:
    """Hugging Face's name -> fairseq's, of every weight that is the same tensor in both."""
    pairs = {"embeddings.LayerNorm": f"{ENCODER}.layernorm_embedding"}
    for layer in range(layers):
        pairs.update({f"encoder.layer.{layer}.{h}": f"{ENCODER}.layers.{layer}.{f}" for h, f in _LAYER.items()})
    return {f"{h}.{side}": f"{f}.{side}" for h, f in pairs.items() for side in _SIDES}


class _Reader:
    """Takes weights out of a source, checks their shapes, and knows what is left."""

    def __init__(self, source: Source) -> None:
        self.source, self.left = source, set(source.weights)

    def take(self, name: str, *shape: int) -> Tensor:
        found = self.source.weights.get(name)
        if found is None:
            raise UserError(f"{self.source.folder}: has no weight {name}, which its config.json promises")
        if tuple(found.shape) != shape:
            raise UserError(f"{self.source.folder}: {name} has shape {tuple(found.shape)}, config.json says {shape}")
        self.left.discard(name)
        return found

    def has(self, name: str) -> bool:
        return name in self.source.weights


def rows_of(source: Source) -> int:
    """Rows of the word embedding. UserError if there is none."""
    found = source.weights.get("embeddings.word_embeddings.weight")
    if found is None or found.dim() != 2:
        raise UserError(f"{source.folder}: has no weight embeddings.word_embeddings.weight")
    return len(found)


def _by_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows in another order; -1 (a mask that the source does not have) is their mean."""
    moved = table[rows.clamp(min=0)]
    moved[rows < 0] = table.mean(0)
    return moved


def _width_of(name: str, shape: Shape) -> tuple[int, ...]:
    wide = {"intermediate.dense.weight": (shape.ffn, shape.width), "intermediate.dense.bias": (shape.ffn,)}
    for end, size in wide.items():
        if name.endswith(end):
            return size
    if name.endswith(".output.dense.weight") and ".attention." not in name:
        return shape.width, shape.ffn
    return (shape.width,) if name.endswith("bias") or "LayerNorm" in name else (shape.width, shape.width)


def to_fairseq(source: Source, rows: Tensor, segments: bool) -> tuple[dict[str, Tensor], set[str]]:
    """Weights of fairseq's RoBERTa, and the names of the source that found no place (heads and the pooler).

    Args:
        rows: int64 (N,), the source's row of each row of the dictionary, -1 for one that it does not have.
        segments: keep token types, as ``segment_embeddings``.

    Raises:
        UserError: a weight is missing, has another shape than config.json says, or is none of this family's.
    """
    shape, reader = source.shape, _Reader(source)
    words = reader.take("embeddings.word_embeddings.weight", rows_of(source), shape.width)
    weights = {f"{ENCODER}.embed_tokens.weight": _by_rows(words, rows), f"{ENCODER}.version": torch.tensor([3.0])}
    places = reader.take("embeddings.position_embeddings.weight", shape.positions + shape.offset, shape.width)
    types = torch.zeros(1, shape.width)
    if shape.segments:
        types = reader.take("embeddings.token_type_embeddings.weight", shape.segments, shape.width)
    table = torch.zeros(PADDING + shape.positions, shape.width)
    table[PADDING:] = places[shape.offset :] + types[0]
    weights[f"{ENCODER}.embed_positions.weight"] = table
    if segments and shape.segments > 1:
        weights[SEGMENTS] = types - types[0]
    for theirs, ours in layer_names(shape.layers).items():
        weights[ours] = reader.take(theirs, *_width_of(theirs, shape))
    weights.update(_lm_head(reader, weights[f"{ENCODER}.embed_tokens.weight"], rows))
    left = {name for name in reader.left if name not in _IGNORED}
    strange = sorted(name for name in left if not name.startswith(("classifier.", "qa_outputs.")))
    if strange:
        raise UserError(f"{source.folder}: the weight {strange[0]} is none of a {source.kind} ({len(strange)} such)")
    return weights, left


def has_lm_head(source: Source) -> bool:
    """Whether a model of Hugging Face has the head of masked language models."""
    return any(f"{name}.weight" in source.weights for name in _LM_HEAD["dense"])


def _lm_head(reader: _Reader, words: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """The head of masked language modelling; random (seeded) if the source has none, as fairseq wants its keys."""
    width = reader.source.shape.width
    which = next((i for i in (0, 1) if reader.has(f"{_LM_HEAD['dense'][i]}.weight")), None)
    head = "encoder.lm_head"
    if which is None:
        drawn = torch.empty(width, width).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
        return {
            f"{head}.weight": words,
            f"{head}.bias": torch.zeros(len(rows)),
            f"{head}.dense.weight": drawn,
            f"{head}.dense.bias": torch.zeros(width),
            f"{head}.layer_norm.weight": torch.ones(width),
            f"{head}.layer_norm.bias": torch.zeros(width),
        }
    found = {}
    for part, names in _LM_HEAD.items():
        for side in _SIDES:
            shape = (width, width) if (part, side) == ("dense", "weight") else (width,)
            found[f"{head}.{part}.{side}"] = reader.take(f"{names[which]}.{side}", *shape)
    found[f"{head}.bias"] = _by_rows(reader.take(_LM_BIAS[which], rows_of(reader.source)), rows)
    found[f"{head}.weight"] = words
    if reader.has(_LM_WEIGHT[which]):
        found[f"{head}.weight"] = _by_rows(reader.take(_LM_WEIGHT[which], rows_of(reader.source), width), rows)
    return found


def head_of(source: Source, name: str, classes: int | None) -> dict[str, Tensor]:
    """A classification head: the source's own, or (``classes``) its pooler below an output drawn with a fixed seed.

    Raises:
        UserError: it has a head of another size, or no pooler to start from.
    """
    weights, prefix = source.weights, f"{HEADS}.{name}"
    if classes is None and "qa_outputs.weight" in weights:
        return {f"{HEADS}.{ANSWERS}.out_proj.{side}": weights[f"qa_outputs.{side}"] for side in _SIDES}
    found = None
    if "classifier.out_proj.weight" in weights:
        found = "classifier.dense", "classifier.out_proj"
    elif "classifier.weight" in weights and "pooler.dense.weight" in weights:
        found = "pooler.dense", "classifier"
    if found is not None:
        size = len(weights[f"{found[1]}.weight"])
        if classes not in (None, size):
            raise UserError(f"--head {classes}: {source.folder} has a classifier of {size} classes")
        parts = dict(zip(("dense", "out_proj"), found, strict=True))
        return {f"{prefix}.{o}.{side}": weights[f"{t}.{side}"] for o, t in parts.items() for side in _SIDES}
    if classes is None:
        return {}
    if "pooler.dense.weight" not in weights:
        raise UserError(f"--head {classes}: {source.folder} has no pooler to start from")
    width = source.shape.width
    drawn = torch.empty(classes, width).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(2))
    return {
        f"{prefix}.dense.weight": weights["pooler.dense.weight"],
        f"{prefix}.dense.bias": weights["pooler.dense.bias"],
        f"{prefix}.out_proj.weight": drawn,
        f"{prefix}.out_proj.bias": torch.zeros(classes),
    }


# --- back ----------------------------------------------------------------------------------------------------------


def to_huggingface(weights: dict[str, Tensor], kind: str, layers: int, rows: Tensor) -> dict[str, Tensor]:
    """Weights of a ``bert`` or ``roberta`` base model, fp32. ``rows``: fairseq's row of each row to write, int64.

    Raises:
        UserError: a weight of fairseq's RoBERTa is missing.
    """
    missing = [name for name in layer_names(layers).values() if name not in weights]
    if missing:
        raise UserError(f"the checkpoint has no {missing[0]}: not a RoBERTa of {layers} layers")
    table = weights[f"{ENCODER}.embed_positions.weight"].float()
    types = weights.get(SEGMENTS)
    if types is None:  # a tokenizer of BERT tells two types
        types = torch.zeros(2 if kind == "bert" else 1, table.size(1))
    found = {
        "embeddings.word_embeddings.weight": weights[f"{ENCODER}.embed_tokens.weight"].float()[rows],
        "embeddings.position_embeddings.weight": table[PADDING:] if kind == "bert" else table,
        "embeddings.token_type_embeddings.weight": types.float(),
    }
    found.update({theirs: weights[ours].float() for theirs, ours in layer_names(layers).items()})
    return found


def lm_head_back(weights: dict[str, Tensor], kind: str, rows: Tensor) -> dict[str, Tensor]:
    """The head of masked language modelling under Hugging Face's names."""
    which, head = (0 if kind == "bert" else 1), "encoder.lm_head"
    found = {}
    for part, names in _LM_HEAD.items():
        found.update({f"{names[which]}.{side}": weights[f"{head}.{part}.{side}"].float() for side in _SIDES})
    found[_LM_BIAS[which]] = weights[f"{head}.bias"].float()[rows]
    found[_LM_WEIGHT[which]] = weights[f"{head}.weight"].float()[rows]
    return found


def head_back(weights: dict[str, Tensor], kind: str, name: str) -> dict[str, Tensor]:
    """A classification head under Hugging Face's names: BERT's pooler and classifier, or RoBERTa's classifier."""
    prefix = f"{HEADS}.{name}"
    if f"{prefix}.dense.weight" not in weights:
        return {f"qa_outputs.{side}": weights[f"{prefix}.out_proj.{side}"].float() for side in _SIDES}
    parts = ("bert.pooler.dense", "classifier") if kind == "bert" else ("classifier.dense", "classifier.out_proj")
    return {
        f"{theirs}.{side}": weights[f"{prefix}.{ours}.{side}"].float()
        for ours, theirs in zip(("dense", "out_proj"), parts, strict=True)
        for side in _SIDES
    }
