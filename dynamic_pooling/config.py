"""Flags of the ``dynamic_pooling_lm`` model, task and criterion, and the sizes behind its architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict

from fairseq import utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks.language_modeling import LanguageModelingConfig

BOUNDARIES = ("none", "fixed", "whitespaces", "unigram", "entropy", "gumbel")
PREDICTED = ("unigram", "entropy", "gumbel")  # boundaries that a predictor decides


@dataclass
class DynamicPoolingConfig(FairseqDataclass):
    """``dynamic_pooling_lm_base`` is these defaults; see :data:`ARCHITECTURES` for the others."""

    model_config: str = field(
        default="[2, (8,), 2]",
        metadata={
            "help": "layers over tokens, over pooled segments, over tokens again; '[12, (0,), 0]' is a vanilla LM"
        },
    )
    boundaries_type: ChoiceEnum(BOUNDARIES) = field(  # type: ignore[valid-type]
        default="gumbel",
        metadata={
            "help": "where segments end. fixed: every --fixed-sf tokens; whitespaces: after each space; unigram: a "
            "predictor taught by a unigram tokenizer's pieces; entropy: taught by spikes of the model's own entropy; "
            "gumbel: learned end to end; none: no pooling"
        },
    )
    fixed_sf: int = field(default=2, metadata={"help": "tokens in a segment of --boundaries-type fixed"})
    fixed_phase: ChoiceEnum(["paper", "orig"]) = field(  # type: ignore[valid-type]
        default="paper",
        metadata={"help": "paper: segments of --fixed-sf tokens from the start; orig: the first has one token"},
    )
    whitespace_symbols: str = field(
        default="\u2581",
        metadata={
            "help": "dictionary symbols, separated by blanks, that end a segment of --boundaries-type whitespaces"
        },
    )
    spikes_left: int = field(
        default=2,
        metadata={"help": "a segment of --boundaries-type entropy ends where entropy exceeds that of this many before"},
    )
    temp: float = field(default=0.5, metadata={"help": "temperature of the gumbel boundaries' relaxation"})
    prior: float = field(
        default=0.2, metadata={"help": "share of tokens that should end a segment (--boundaries-type gumbel)"}
    )
    rate_loss: ChoiceEnum(["binomial", "ratio"]) = field(  # type: ignore[valid-type]
        default="binomial",
        metadata={"help": "what pulls gumbel boundaries to --prior: binomial (the paper) or the ratio loss of H-Net"},
    )
    gumbel_eval: ChoiceEnum(["threshold", "sampled"]) = field(  # type: ignore[valid-type]
        default="threshold",
        metadata={"help": "gumbel boundaries outside training: threshold: where p > 0.5; sampled: drawn (orig)"},
    )
    boundary_loss_compat: ChoiceEnum(["none", "orig"]) = field(  # type: ignore[valid-type]
        default="none",
        metadata={"help": "orig: the sigmoid is applied twice in the predictor's loss, as the original did"},
    )
    straight_through: ChoiceEnum(["interior", "both"]) = field(  # type: ignore[valid-type]
        default="interior",
        metadata={
            "help": "tokens whose gumbel boundary learns from the LM loss. interior: those inside segments (the "
            "original); both: also those that end one"
        },
    )
    teacher_forcing_updates: int = field(
        default=0,
        metadata={"help": "updates in which --boundaries-type unigram pools by the tokenizer's own boundaries"},
    )
    pooling: ChoiceEnum(["mean", "last"]) = field(  # type: ignore[valid-type]
        default="mean", metadata={"help": "a segment is the mean of its tokens, or its last token"}
    )
    upsampling: ChoiceEnum(["copy", "smooth"]) = field(  # type: ignore[valid-type]
        default="copy",
        metadata={
            "help": "copy: a token gets the last segment that has ended; smooth: segments are averaged by the "
            "predictor's confidence, which so gets a gradient at every token"
        },
    )
    packed_shortened: bool = field(
        default=False, metadata={"help": "shortened layers skip the padding of rows with fewer segments"}
    )
    shortened_embed_dim: int = field(default=0, metadata={"help": "width of the shortened layers (0: as the others)"})
    shortened_ffn_embed_dim: int = field(
        default=0, metadata={"help": "feed-forward width of the shortened layers (0: as the others)"}
    )
    shortened_attention_heads: int = field(
        default=0, metadata={"help": "attention heads of the shortened layers (0: as the others)"}
    )
    position_encoding: ChoiceEnum(["relative", "rotary"]) = field(  # type: ignore[valid-type]
        default="relative", metadata={"help": "relative: as Transformer-XL (the paper); rotary: faster"}
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the model"})
    decoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "feed-forward width, also of the predictor"})
    decoder_attention_heads: int = field(default=8, metadata={"help": "attention heads"})
    decoder_head_dim: int = field(default=0, metadata={"help": "width of a head (0: --decoder-embed-dim / heads)"})
    dropout: float = field(default=0.1, metadata={"help": "dropout on embeddings, positions and layer outputs"})
    attention_dropout: float = field(
        default=0.1,
        metadata={
            "help": "dropout on attention weights; with rotary above 0 keeps SDPA from its fast path: 0 is fastest"
        },
    )
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout after the feed-forward activation"})
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="gelu", metadata={"help": "activation of feed-forward and predictor"}
    )
    decoder_normalize_before: bool = field(
        default=False, metadata={"help": "LayerNorm before each block (and at the end of each stack), not after it"}
    )
    init_std: float = field(default=0.02, metadata={"help": "standard deviation of initial weights"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute layers in the backward pass: less memory, a third more time"}
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={"help": "on CPU compute in bfloat16 (autocast; weights, boundaries and loss stay fp32)"},
    )


@dataclass
class DynamicPoolingTaskConfig(LanguageModelingConfig):
    """Flags of ``dynamic_pooling_lm``."""

    tokens_per_sample: int = field(default=2048, metadata={"help": "tokens in a window"})
    no_roll: bool = field(
        default=False,
        metadata={"help": "cut training windows at the same places in every epoch (--sample-break-mode none)"},
    )
    check_causality: ChoiceEnum(["new", "never"]) = field(  # type: ignore[valid-type]
        default="new",
        metadata={
            "help": "new: before the first update of a new run, make sure that no token sees a later one; never: do not"
        },
    )


@dataclass
class DynamicPoolingCriterionConfig(CrossEntropyCriterionConfig):
    """Flags of ``dynamic_pooling_cross_entropy``."""

    boundary_loss_weight: float = field(default=1.0, metadata={"help": "weight of the boundary loss"})
    no_sampled_eval: bool = field(
        default=False,
        metadata={
            "help": "do not also validate gumbel boundaries as they are sampled in training (saves half the time)"
        },
    )


_TYPES: Dict[str, Dict[str, Any]] = {
    "vanilla": {"boundaries_type": "none", "model_config": "[12, (0,), 0]"},
    "fixed": {"boundaries_type": "fixed"},
    "whitespaces": {"boundaries_type": "whitespaces"},
    "unigram": {"boundaries_type": "unigram"},
    "entropy": {"boundaries_type": "entropy"},
    "gumbel": {"boundaries_type": "gumbel"},
}
_FAST: Dict[str, Any] = {"position_encoding": "rotary", "attention_dropout": 0.0}

# what each --arch changes in DynamicPoolingConfig; configs/*.yaml hold the same sizes for fairseq-hydra-train
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "dynamic_pooling_lm_base": {},
    **{f"dynamic_pooling_lm_{name}": values for name, values in _TYPES.items()},
    **{f"dynamic_pooling_lm_{name}_fast": {**values, **_FAST} for name, values in _TYPES.items()},
    "dynamic_pooling_lm_tiny": {
        **_FAST,
        "model_config": "[1, (3,), 1]",
        "boundaries_type": "whitespaces",
        "decoder_embed_dim": 128,
        "decoder_ffn_embed_dim": 512,
        "decoder_attention_heads": 4,
        "dropout": 0.0,
        "activation_dropout": 0.0,
    },
}
