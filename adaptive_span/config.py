"""Flags of model, criterion and optimizer, and the sizes behind the architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from fairseq_efficient.plugin.flat_config import AdaptiveSoftmaxConfig


@dataclass
class SequentialConfig(AdaptiveSoftmaxConfig):
    """``sequential_lm`` is these defaults; see :data:`ARCHITECTURES` for the others."""

    decoder_layers: int = field(default=8, metadata={"help": "layers"})
    decoder_embed_dim: int = field(default=256, metadata={"help": "width of the model"})
    decoder_ffn_embed_dim: int = field(default=1024, metadata={"help": "feed-forward width (not with --pers-mem-size)"})
    decoder_attention_heads: int = field(default=4, metadata={"help": "attention heads"})
    attn_span: int = field(
        default=1024, metadata={"help": "tokens that a head sees at most, and that a layer remembers of earlier blocks"}
    )
    adapt_span: bool = field(default=False, metadata={"help": "learn how far each head looks, up to --attn-span"})
    adapt_span_layer: bool = field(default=False, metadata={"help": "one learned span for all heads of a layer"})
    dynamic_span: bool = field(
        default=False,
        metadata={"help": "with --adapt-span: spans are predicted from each token's state; caches are not trimmed"},
    )
    adapt_span_loss: float = field(
        default=0.0,
        metadata={"help": "weight of the mean span of each layer, in tokens, in the loss of a token (in nats)"},
    )
    adapt_span_ramp: int = field(default=32, metadata={"help": "tokens over which a span's mask falls from 1 to 0"})
    adapt_span_init: float = field(
        default=0.0,
        metadata={"help": "spans at first, as a share of --attn-span (with --dynamic-span at least the ramp's)"},
    )
    adapt_span_cache: bool = field(
        default=False, metadata={"help": "remember only what the longest span of a layer reaches (and 64 tokens more)"}
    )
    adapt_span_mask: ChoiceEnum(["exact", "orig"]) = field(  # type: ignore[valid-type]
        default="exact",
        metadata={"help": "exact: a span's mask is part of the softmax; orig: it comes after it, as in the original"},
    )
    empty_cache: ChoiceEnum(["masked", "zeros"]) = field(  # type: ignore[valid-type]
        default="masked",
        metadata={
            "help": "places before the stream. masked: are not seen; zeros: zeros that take attention, as in the "
            "original"
        },
    )
    pers_mem_size: int = field(
        default=0, metadata={"help": "persistent vectors of each head, instead of feed-forward layers (0: none)"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout on attention weights and inside the feed-forward"})
    attention_dropout: Optional[float] = field(
        default=None, metadata={"help": "dropout on attention weights alone (default: --dropout)"}
    )
    activation_dropout: Optional[float] = field(
        default=None, metadata={"help": "dropout inside the feed-forward alone (default: --dropout)"}
    )
    emb_dropout: float = field(default=0.0, metadata={"help": "dropout on embeddings and before the output layer"})
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="relu", metadata={"help": "activation of the feed-forward"}
    )
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute layers in the backward pass: less memory, a third more time"}
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={"help": "on CPU compute in bfloat16 (autocast; weights, spans and loss stay fp32)"},
    )
    tokens_per_sample: int = II("task.tokens_per_sample")


@dataclass
class SpanCriterionConfig(CrossEntropyCriterionConfig):
    """Flags of ``adaptive_span_loss``."""


@dataclass
class AdagradConfig(FairseqDataclass):
    """Flags of ``adagrad_with_grad_clip``."""

    adagrad_clip: float = field(
        default=0.0, metadata={"help": "a tensor's step is shortened where its gradient is longer than this (0: never)"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "L2 penalty, from which spans are free"})
    lr: List[float] = II("optimization.lr")  # noqa: RUF009


_SPAN: Dict[str, Any] = {"adapt_span": True, "adapt_span_cache": True, "adapt_span_ramp": 32}
_BASE: Dict[str, Any] = {
    **_SPAN,
    "decoder_layers": 12,
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 2048,
    "decoder_attention_heads": 8,
    "attn_span": 8192,
    "adapt_span_loss": 5e-7,
    "dropout": 0.3,
}
_LARGE: Dict[str, Any] = {
    **_BASE,
    "decoder_layers": 24,
    "decoder_embed_dim": 768,
    "decoder_ffn_embed_dim": 4096,
    "dropout": 0.4,
}
_SMALL: Dict[str, Any] = {**_SPAN, "adapt_span_loss": 2e-6}
_PERS: Dict[str, Any] = {
    **_BASE,
    "decoder_layers": 36,
    "adapt_span_loss": 1e-7,
    "pers_mem_size": 2048,
    "dropout": 0.4,
}
_WIKI103: Dict[str, Any] = {
    **_PERS,
    "attn_span": 2048,
    "adapt_span_loss": 5e-7,
    "dropout": 0.3,
    "emb_dropout": 0.1,
    "adaptive_softmax_cutoff": "20000,40000,200000",
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
_TINY: Dict[str, Any] = {
    **_SPAN,
    "decoder_layers": 3,
    "decoder_embed_dim": 64,
    "decoder_ffn_embed_dim": 128,
    "decoder_attention_heads": 4,
    "attn_span": 128,
    "adapt_span_ramp": 8,
    "adapt_span_loss": 2e-6,
}
# what each --arch changes in SequentialConfig; configs/*.yaml hold the same sizes for fairseq-hydra-train
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "sequential_lm_enwik8_small": _SMALL,
    "sequential_lm_enwik8": _BASE,
    "sequential_lm_enwik8_large": _LARGE,
    "sequential_lm_text8": _BASE,
    "sequential_lm_text8_large": _LARGE,
    "sequential_lm_enwik8_pers_small": {**_PERS, "decoder_layers": 18, "pers_mem_size": 1024, "dropout": 0.3},
    "sequential_lm_enwik8_pers": _PERS,
    "sequential_lm_wiki103_pers": _WIKI103,
    "sequential_lm_tiny": _TINY,
}
