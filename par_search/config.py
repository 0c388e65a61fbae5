"""Flags of models, task, optimizer and criterion, and the sizes behind the architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from fairseq_efficient.plugin.flat_config import AdaptiveSoftmaxConfig
from fairseq_efficient.plugin.segment_lm import SegmentLMConfig
from par_search.layout import RULES

WEIGHT_OPTIMIZERS = ("adam", "lamb", "adagrad")


@dataclass
class ParConfig(AdaptiveSoftmaxConfig):
    """What both models have."""

    decoder_blocks: int = field(
        default=0, metadata={"help": "blocks, each of one kind (0: as many as --layout has, or 32)"}
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the model"})
    decoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "feed-forward width"})
    decoder_attention_heads: int = field(default=8, metadata={"help": "attention heads"})
    decoder_head_dim: int = field(default=0, metadata={"help": "width of a head (0: --decoder-embed-dim / heads)"})
    mem_len: int = field(
        default=192,
        metadata={"help": "tokens that attention remembers from before a block (evaluation: --eval-mem-len)"},
    )
    same_length: bool = field(
        default=False, metadata={"help": "every token sees --mem-len tokens, itself among them, wherever it stands"}
    )
    clamp_len: int = field(default=-1, metadata={"help": "farther tokens count as this far (-1: no limit)"})
    cache_memory: ChoiceEnum(["hidden", "keys"]) = field(  # type: ignore[valid-type]
        default="hidden",
        metadata={
            "help": "what is remembered. hidden: inputs of attention, whose keys and values are made anew (published); "
            "keys: keys and values: the same numbers in evaluation, faster (in training those of earlier weights)"
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout on embeddings, positions and block outputs"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout on attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout after the feed-forward activation"})
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="relu", metadata={"help": "activation of feed-forward blocks"}
    )
    decoder_normalize_before: bool = field(
        default=False, metadata={"help": "LayerNorm before each block and at the end, not after each block"}
    )
    init_std: float = field(default=0.02, metadata={"help": "standard deviation of initial weights of blocks"})
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "softmax and input share their embeddings (without adaptive ones)"}
    )
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute blocks in the backward pass: less memory, a third more time"}
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={"help": "on CPU compute in bfloat16 (autocast; weights, choices and loss stay fp32)"},
    )
    tokens_per_sample: int = II("task.tokens_per_sample")


@dataclass
class ParLMConfig(ParConfig):
    """``par_lm`` is these defaults, a plain Transformer-XL; see :data:`ARCHITECTURES` for the others."""

    layout: str = field(
        default="",
        metadata={"help": "what each block is: a (attention), f (feed-forward), i (nothing); e.g. affaff"},
    )
    layout_rule: ChoiceEnum(RULES) = field(  # type: ignore[valid-type]
        default="interleaved",
        metadata={
            "help": "without --layout. interleaved: afaf..., a plain Transformer-XL; par: one block in --par-ratio is "
            "attention, in the first two thirds; sandwich: a^k (af)^(n-k) f^k"
        },
    )
    par_ratio: float = field(default=5.0, metadata={"help": "--layout-rule par: one block in this many is attention"})
    sandwich_coefficient: int = field(default=0, metadata={"help": "k of --layout-rule sandwich"})


@dataclass
class SupernetConfig(ParConfig):
    """``par_supernet``: the kind of each block is learned."""

    straight_through: bool = field(
        default=False, metadata={"help": "a block's output in training is that of one kind, its gradient the mixture's"}
    )
    tau_start: float = field(default=5.0, metadata={"help": "temperature of the mixture before the first update"})
    tau_end: float = field(default=0.1, metadata={"help": "temperature after --tau-updates updates"})
    tau_schedule: ChoiceEnum(["exponential", "linear"]) = field(  # type: ignore[valid-type]
        default="exponential", metadata={"help": "how the temperature goes from --tau-start to --tau-end"}
    )
    tau_updates: int = field(default=0, metadata={"help": "updates from --tau-start to --tau-end (0: --max-update)"})
    supernet_eval: ChoiceEnum(["argmax", "mixture"]) = field(  # type: ignore[valid-type]
        default="argmax",
        metadata={
            "help": "outside training. argmax: each block is what it most probably is, and nothing else is computed; "
            "mixture: the mean of the kinds by their probabilities"
        },
    )
    max_update: int = II("optimization.max_update")


@dataclass
class SearchTaskConfig(SegmentLMConfig):
    """Flags of ``--task par_search``."""

    arch_warmup_updates: int = field(
        default=1000, metadata={"help": "updates in which only weights are trained and the architecture stays even"}
    )
    arch_update_share: float = field(
        default=0.2, metadata={"help": "share of the updates after that which train the architecture, and no weights"}
    )
    arch_data_share: float = field(
        default=0.2, metadata={"help": "share of the training stream, its end, that only those updates read"}
    )
    arch_stable_updates: int = field(
        default=0,
        metadata={
            "help": "training ends when so many updates of the architecture have not changed the most probable kind "
            "of any block (0: only --max-update ends it)"
        },
    )


@dataclass
class SearchOptimizerConfig(FairseqDataclass):
    """Flags of ``--optimizer par_search``."""

    weight_optimizer: ChoiceEnum(WEIGHT_OPTIMIZERS) = field(  # type: ignore[valid-type]
        default="adam", metadata={"help": "optimizer of the weights, with --lr: adam (AdamW), lamb or adagrad"}
    )
    weight_beta1: float = field(default=0.9, metadata={"help": "first beta of --weight-optimizer adam and lamb"})
    weight_beta2: float = field(default=0.999, metadata={"help": "second beta of --weight-optimizer adam and lamb"})
    weight_eps: float = field(default=1e-8, metadata={"help": "epsilon of --weight-optimizer adam and lamb"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of the weights (adagrad: L2 penalty)"})
    arch_lr: float = field(default=1e-2, metadata={"help": "learning rate of the architecture, constant (Adam)"})
    arch_weight_decay: float = field(
        default=5e-4, metadata={"help": "L2 penalty of the architecture; it pulls to even choices"}
    )
    lr: List[float] = II("optimization.lr")  # noqa: RUF009


@dataclass
class SearchCriterionConfig(CrossEntropyCriterionConfig):
    """Flags of ``--criterion par_search``."""

    latency_weight: float = field(
        default=0.0, metadata={"help": "weight of what the architecture is expected to cost (0: not trained, logged)"}
    )
    latency_table: Optional[str] = field(
        default=None, metadata={"help": "measured by scripts/measure_latency.py (default: GFLOP by a formula)"}
    )
    latency_loss: ChoiceEnum(["hinge", "product"]) = field(  # type: ignore[valid-type]
        default="hinge",
        metadata={
            "help": "hinge: weight * max(0, cost / target - 1) is added to the loss of a token (PLANER); product: the "
            "loss is multiplied by weight * log(1 + cost) ^ power (FBNet), cost in microseconds or MFLOP"
        },
    )
    latency_target: float = field(
        default=0.0, metadata={"help": "cost of all blocks that is good enough for hinge, in ms or GFLOP (0: none)"}
    )
    latency_power: float = field(default=0.6, metadata={"help": "power of --latency-loss product"})
    latency_tokens: int = field(
        default=0, metadata={"help": "tokens of the forward whose cost is expected (0: --tokens-per-sample)"}
    )
    latency_memory: int = field(
        default=-1, metadata={"help": "remembered tokens of the forward whose cost is expected (-1: --mem-len)"}
    )


_WT103 = "20000,40000,200000"
_BASE: Dict[str, Any] = {  # Transformer-XL base of NVIDIA, on which the paper builds
    "decoder_blocks": 32,
    "adaptive_softmax_cutoff": _WT103,
    "adaptive_softmax_factor": 1.0,
    "adaptive_input": True,
    "adaptive_input_factor": 1.0,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
_LARGE: Dict[str, Any] = {
    "decoder_blocks": 36,
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 16,
    "mem_len": 384,
    "dropout": 0.2,
    "attention_dropout": 0.2,
    "adaptive_softmax_cutoff": _WT103,
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
_CHARACTERS: Dict[str, Any] = {"decoder_blocks": 24, "mem_len": 512}
_SMALL: Dict[str, Any] = {  # the published code's benchmark on WikiText-2, as its text has it (its script: ffn 512)
    "decoder_blocks": 6,
    "decoder_embed_dim": 128,
    "decoder_ffn_embed_dim": 1024,
    "decoder_attention_heads": 4,
    "mem_len": 16,
    "adaptive_softmax_cutoff": "250,2500",
}
_TINY: Dict[str, Any] = {
    "decoder_blocks": 6,
    "decoder_embed_dim": 64,
    "decoder_ffn_embed_dim": 256,
    "decoder_attention_heads": 4,
    "mem_len": 32,
    "dropout": 0.0,
}
_SIZES: Dict[str, Dict[str, Any]] = {
    "wt103_base": _BASE,
    "wt103_large": _LARGE,
    "enwik8": _CHARACTERS,
    "text8": _CHARACTERS,
    "small": _SMALL,
    "tiny": _TINY,
}

# what each --arch changes in ParLMConfig or SupernetConfig; configs/*.yaml hold the same sizes for fairseq-hydra-train
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    **{f"par_lm_{size}": {**values, "layout_rule": "par"} for size, values in _SIZES.items()},
    **{f"par_lm_txl_{size}": values for size, values in _SIZES.items()},
    **{f"par_supernet_{size}": values for size, values in _SIZES.items()},
}
ARCHITECTURES["par_lm_tiny"]["par_ratio"] = ARCHITECTURES["par_lm_small"]["par_ratio"] = 3.0
