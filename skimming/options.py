"""Flags of skimming as checked plain values."""

import math
from dataclasses import dataclass
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import FARTHEST, check_blocks, check_least, check_scales, check_shares, flag

_POSITIVE = (
    "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "max_positions",
    "quant_noise_pq_block_size",
)  # fmt: skip
_PROBABILITIES = (
    "dropout", "attention_dropout", "activation_dropout", "pooler_dropout", "encoder_layerdrop", "quant_noise_pq",
    "skim_compact_threshold",
)  # fmt: skip


@dataclass(frozen=True)
class SkimOptions:
    """See :mod:`skimming.config`. ``layers``: numbers, from 0, of the layers that have a predictor before them."""

    layers: tuple[int, ...]
    predictor_dim: int
    init_bias: float = 5.0
    lr_scale: float = 1.0
    tau: float = 1.0
    noise: float = 1.0
    noise_updates: int = 0
    rule: str = "renorm"
    protect: str = "cls"
    inference: str = "auto"
    backend: str = "auto"
    threshold: float = 0.0
    compact_threshold: float = 0.0
    eval_sample: bool = False
    count_padding: bool = False
    layer_norm_eps: float = 1e-5
    num_segments: int = 0
    cpu_bf16: bool = False


def skim_options(cfg: Any) -> SkimOptions:
    """Options of a complete :class:`SkimRobertaConfig`. Raises UserError for flags that cannot work together."""
    check(cfg)
    return SkimOptions(
        parse_layers(cfg.skim_layers, cfg.encoder_layers),
        cfg.skim_predictor_dim or cfg.encoder_embed_dim,
        cfg.skim_init_bias,
        cfg.skim_lr_scale,
        cfg.skim_tau,
        cfg.skim_noise,
        cfg.skim_noise_updates,
        str(cfg.skim_attn),
        str(cfg.skim_protect),
        str(cfg.skim_inference),
        str(cfg.skim_backend),
        cfg.skim_threshold,
        cfg.skim_compact_threshold,
        cfg.skim_eval_sample,
        str(cfg.skim_norm) == "padded",
        cfg.layer_norm_eps,
        cfg.num_segments,
        cfg.cpu_bf16,
    )


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """``all``, ``none`` or numbers and ranges such as ``0,2,4-5`` -> numbers below ``count``; else UserError."""
    word = str(text).strip().lower()
    if word in ("all", "none"):
        return tuple(range(count)) if word == "all" else ()
    found: set[int] = set()
    for part in word.split(","):
        ends = part.strip().split("-")
        if not 1 <= len(ends) <= 2 or not all(end.strip().isdecimal() for end in ends):
            raise UserError(f"--skim-layers {text}: expected all, none, or numbers such as 0,2,4-5")
        first, last = int(ends[0]), int(ends[-1])
        if first > last or last >= count:
            raise UserError(f"--skim-layers {text}: layers are numbered 0 to {count - 1}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def check(cfg: Any) -> None:
    """Raises UserError for flags that are out of range or cannot work together."""
    check_least(cfg, 1, *_POSITIVE)
    check_shares(cfg, *_PROBABILITIES)
    check_scales(cfg, "skim_tau", "skim_lr_scale")
    if not 0 < cfg.layer_norm_eps < math.inf:
        raise UserError(f"{_flag(cfg, 'layer_norm_eps')}: must be greater than 0")
    check_least(cfg, 0, "skim_predictor_dim", "num_segments", "skim_noise", "skim_noise_updates")
    for name in ("skim_init_bias", "skim_noise"):
        if not abs(getattr(cfg, name)) <= FARTHEST:
            raise UserError(f"{_flag(cfg, name)}: must be between {-FARTHEST:g} and {FARTHEST:g}")
    if math.isnan(cfg.skim_threshold):
        raise UserError(f"{_flag(cfg, 'skim_threshold')}: must be a number")
    check_blocks(cfg, "encoder_embed_dim", "encoder_ffn_embed_dim")
    if cfg.encoder_embed_dim % cfg.encoder_attention_heads:
        raise UserError(
            f"{_flag(cfg, 'encoder_attention_heads')} must divide --encoder-embed-dim {cfg.encoder_embed_dim}"
        )
    if str(cfg.skim_inference) == "packed":
        if str(cfg.skim_attn) == "postmult":
            raise UserError("--skim-attn postmult is not removal of tokens: it cannot run --skim-inference packed")
        if str(cfg.skim_norm) == "padded":
            raise UserError("--skim-norm padded counts padding, which --skim-inference packed never sees")


def _flag(cfg: Any, name: str) -> str:
    return f"{flag(name)} {getattr(cfg, name)}"
