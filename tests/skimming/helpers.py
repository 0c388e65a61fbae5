"""Tiny models that skip tokens here and there, fairseq's own with the same weights, and ragged batches for them."""

from argparse import Namespace
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models.roberta.model import RobertaModel, base_architecture
from torch import Tensor

from skimming.config import SkimRobertaConfig
from skimming.model import SkimRobertaModel

BOS, PAD, EOS, FIRST_WORD = 0, 1, 2, 4
HEAD = "sentence_classification_head"
TINY: dict[str, Any] = {
    "encoder_layers": 3, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2,
    "dropout": 0.0, "attention_dropout": 0.0, "max_positions": 40, "skim_predictor_dim": 6,
}  # fmt: skip
# flags that change what the encoder computes; equality of the inference modes is tested under each
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pre_norm": {"encoder_normalize_before": True, "no_layernorm_embedding": True},
    "bert": {"layer_norm_eps": 1e-12, "num_segments": 2, "skim_predictor_dim": 0},
    "protect_sep": {"skim_protect": "cls+sep"},
    "protect_question": {"skim_protect": "cls+question", "num_segments": 3},
    "some_layers": {"skim_layers": "1"},
    "first_and_last": {"skim_layers": "0,2"},
    "late_compaction": {"skim_compact_threshold": 0.5},
    "no_compaction": {"skim_compact_threshold": 0.99},
    "threshold": {"skim_threshold": 0.3},
    "quant_noise": {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
}  # fmt: skip
RAGGED = [[9, 5, 12], [7], [1], [1, 2, 1], [12, 12], [3, 40, 17, 1, 26], [6, 6, 6, 6]]


def dictionary(words: int = 20) -> Dictionary:
    found = Dictionary()
    for index in range(words):
        found.add_symbol(f"w{index}")
    return found


def task(words: int = 20) -> Any:
    return SimpleNamespace(source_dictionary=dictionary(words))


def config(**flags: Any) -> SkimRobertaConfig:
    cfg = SkimRobertaConfig()
    for name, value in {**TINY, **flags}.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return cfg


def build(seed: int = 0, skim: bool = True, words: int = 20, **flags: Any) -> SkimRobertaModel:
    """In evaluation mode, with a head of 3 classes; weights are larger than fairseq's, and with ``skim`` predictors
    skip about a quarter of the tokens in each layer."""
    torch.manual_seed(seed)
    model = SkimRobertaModel.build_model(config(**flags), task(words))
    model.register_classification_head(HEAD, num_classes=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "skim_predictors" in name:
                continue
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            parameter.add_(0.05 * torch.randn_like(parameter))
        if skim:
            teach_to_skip(model.eval())
    return model.eval()


@torch.no_grad()
def teach_to_skip(model: SkimRobertaModel, share: float = 0.25) -> None:
    """Predictors that skip about this share of random tokens."""
    predictors = model.encoder.sentence_encoder.skim_predictors
    states = model(pad(sentences([30] * 4, seed=9)), features_only=True, return_all_hiddens=True)[1]["inner_states"]
    for layer, predictor in predictors.items():
        predictor[1].weight.normal_(0.0, 0.5)
        predictor[4].weight.normal_(0.0, 1.0)
        predictor[4].bias.zero_()
        logits = predictor(states[int(layer)])
        middle = (logits[..., 1] - logits[..., 0]).quantile(share) / 2
        predictor[4].bias.copy_(torch.stack([middle, -middle]))


def stock_twin(model: SkimRobertaModel) -> RobertaModel:
    """fairseq's RoBERTa with ``model``'s weights."""
    names = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "dropout",
             "attention_dropout", "max_positions", "encoder_normalize_before", "layernorm_embedding")  # fmt: skip
    args = Namespace(**{name: getattr(model.args, name) for name in names})
    base_architecture(args)
    stock = RobertaModel.build_model(args, SimpleNamespace(source_dictionary=model.encoder.dictionary))
    stock.register_classification_head(HEAD, num_classes=3)
    state = {key: value for key, value in model.state_dict().items() if ".skim_predictors." not in key}
    stock.load_state_dict(state, strict=True)
    return stock.eval()


def set_options(model: SkimRobertaModel, **values: Any) -> SkimRobertaModel:
    """Change options of a built model, as ``--model-overrides`` does when it is loaded."""
    import dataclasses

    encoder = model.encoder.sentence_encoder
    encoder.options = dataclasses.replace(encoder.options, **values)
    for number in range(len(encoder.layers)):  # iterating over fairseq's LayerDrop list draws random numbers
        layer = encoder.layers[number]
        layer.self_attn.backend, layer.self_attn.rule = encoder.options.backend, encoder.options.rule
    return model


def sentences(lengths: Sequence[int], seed: int = 0, words: int = 20) -> list[Tensor]:
    """Random ids of the given lengths: <s> ... </s> ... </s>; a sentence of one token is <s>."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randint(FIRST_WORD, FIRST_WORD + words, (length,), generator=draw) for length in lengths]
    for one in made:
        one[len(one) // 2] = EOS
        one[-1:] = EOS
        one[:1] = BOS
    return made


def pad(rows: Sequence[Tensor], width: int = 0) -> Tensor:
    """(B, T) right-padded, T at least ``width``."""
    width = max(width, *(row.numel() for row in rows)) if rows else width
    out = torch.full((len(rows), width), PAD)
    for target, row in zip(out, rows, strict=True):
        target[: row.numel()] = row
    return out


def features(model: SkimRobertaModel, tokens: Tensor, mode: str, backend: str = "auto") -> tuple[Tensor, Any]:
    """Features (B, T, C) and extra of one inference mode, with masks."""
    set_options(model, inference=mode, backend=backend)
    return model(tokens, features_only=True, return_skim_masks=True)
