"""The ``dynamic_pooling_lm`` model: flags to parts, with one line for each mistake."""

from typing import Any

from fairseq.models import FairseqLanguageModel, register_model

from dynamic_pooling.boundaries import BoundaryOptions
from dynamic_pooling.config import ARCHITECTURES, PREDICTED, DynamicPoolingConfig
from dynamic_pooling.decoder import HourglassDecoder, HourglassOptions
from dynamic_pooling.layout import Layout, parse_layout
from dynamic_pooling.stack import LayerOptions
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least, check_scales, check_shares
from fairseq_efficient.hub.loading import PretrainedLanguageModel
from fairseq_efficient.plugin.flat_config import Architectures, complete_config, register_architectures
from fairseq_efficient.precision import round_linear_weights_


@register_model("dynamic_pooling_lm", dataclass=DynamicPoolingConfig)
class DynamicPoolingModel(Architectures, PretrainedLanguageModel, FairseqLanguageModel):
    """Hourglass language model with learned token boundaries (Nawrot et al. 2023, arXiv 2211.09761)."""

    arch = "dynamic_pooling_lm"
    config = DynamicPoolingConfig
    hub_example = PretrainedLanguageModel.hub_example + '\nprint(model.segment("the state of the union"))'

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "DynamicPoolingModel":
        """Raises UserError for flags that are out of range or cannot work together."""
        cfg = complete_config(cfg, getattr(cls, "__dataclass"))
        return cls(HourglassDecoder(task.source_dictionary, hourglass_options(cfg, task.source_dictionary)))

    @classmethod
    def hub_interface(cls) -> Any:
        from dynamic_pooling.hub import DynamicPoolingInterface

        return DynamicPoolingInterface

    @property
    def needs_boundaries(self) -> bool:
        """Whether training needs a tokenizer's boundaries beside the data."""
        return bool(self.decoder.boundary_rule and self.decoder.options.boundaries.type == "unigram")

    def prepare_for_inference_(self, cfg: Any) -> None:
        super().prepare_for_inference_(cfg)
        round_linear_weights_(self, self.decoder.options.cpu_bf16)


def hourglass_options(cfg: Any, dictionary: Any) -> HourglassOptions:
    """Checked plain values of a complete :class:`DynamicPoolingConfig`."""
    layout = parse_layout(cfg.model_config)
    kind = str(cfg.boundaries_type)
    _check(cfg, layout, kind)
    heads = cfg.decoder_attention_heads
    layer = _layer(cfg, cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim, heads, cfg.decoder_head_dim)
    width = cfg.shortened_embed_dim or cfg.decoder_embed_dim
    same = not cfg.shortened_embed_dim and not cfg.shortened_attention_heads
    shortened = _layer(
        cfg,
        width,
        cfg.shortened_ffn_embed_dim or cfg.decoder_ffn_embed_dim,
        cfg.shortened_attention_heads or heads,
        cfg.decoder_head_dim if same else 0,
        "shortened",
    )
    return HourglassOptions(
        layout,
        layer,
        shortened,
        BoundaryOptions(
            kind,
            cfg.fixed_sf,
            str(cfg.fixed_phase),
            closing_symbols(cfg.whitespace_symbols, dictionary, kind == "whitespaces"),
            cfg.temp,
            str(cfg.gumbel_eval) == "sampled",
        ),
        spikes_left=cfg.spikes_left,
        prior=cfg.prior,
        rate_loss=str(cfg.rate_loss),
        loss_twice=str(cfg.boundary_loss_compat) == "orig",
        estimator=str(cfg.straight_through),
        pooling=str(cfg.pooling),
        smooth=str(cfg.upsampling) == "smooth",
        packed=cfg.packed_shortened,
        teacher_forcing_updates=cfg.teacher_forcing_updates,
        init_std=cfg.init_std,
        cpu_bf16=cfg.cpu_bf16,
    )


def _layer(cfg: Any, dim: int, ffn: int, heads: int, head_dim: int, which: str = "decoder") -> LayerOptions:
    if heads < 1 or (not head_dim and dim % heads):
        raise UserError(f"--{which}-attention-heads {heads} must divide the width {dim}")
    head_dim = head_dim or dim // heads
    rotary = str(cfg.position_encoding) == "rotary"
    if rotary and head_dim % 2:
        raise UserError(f"--position-encoding rotary needs heads of even width, not {head_dim}")
    if not rotary and dim % 2:
        raise UserError(f"--position-encoding relative needs an even width, not {dim}")
    return LayerOptions(
        dim,
        ffn,
        heads,
        head_dim,
        cfg.dropout,
        cfg.attention_dropout,
        cfg.activation_dropout,
        str(cfg.activation_fn),
        cfg.decoder_normalize_before,
        rotary,
        cfg.checkpoint_activations,
    )


def closing_symbols(text: str, dictionary: Any, needed: bool) -> tuple[int, ...]:
    """Ids of the symbols in ``text`` and of EOS; UserError if ``needed`` and none of them is in the dictionary."""
    symbols = text.split()
    found = [dictionary.index(symbol) for symbol in symbols]
    found = [index for index in found if index != dictionary.unk()]
    if needed and not found:
        raise UserError(
            f"--whitespace-symbols {text!r}: not in the dictionary, so that no segment would ever end "
            "(fairseq's characters data has \u2581 for the space)"
        )
    return tuple(sorted({*found, dictionary.eos()}))


def _check(cfg: Any, layout: Layout, kind: str) -> None:
    if (kind == "none") != (layout.shortened == 0):
        raise UserError(
            f"--boundaries-type {kind} with --model-config {cfg.model_config}: "
            + ("without boundaries there are no shortened layers" if kind == "none" else "has no shortened layers")
        )
    check_least(cfg, 1, "fixed_sf", "spikes_left", "decoder_ffn_embed_dim")
    check_least(cfg, 2, "decoder_embed_dim")
    check_least(cfg, 0, "decoder_head_dim", "shortened_embed_dim", "shortened_ffn_embed_dim",
                "shortened_attention_heads", "teacher_forcing_updates")  # fmt: skip
    check_shares(cfg, "dropout", "attention_dropout", "activation_dropout")
    if not 1e-6 <= cfg.prior <= 1 - 1e-6:  # nearer to the ends the rate losses leave fp32's range
        raise UserError(f"--prior {cfg.prior}: must be between 0 and 1")
    check_scales(cfg, "temp", "init_std")
    if str(cfg.upsampling) == "smooth" and kind not in PREDICTED:
        raise UserError(f"--upsampling smooth needs a predictor, but --boundaries-type {kind} has none")
    if str(cfg.pooling) == "last" and kind == "gumbel" and str(cfg.upsampling) == "copy":
        raise UserError(
            "--pooling last passes no gradient to gumbel boundaries: add --upsampling smooth, or pool by mean"
        )
    if cfg.teacher_forcing_updates and kind != "unigram":
        raise UserError(f"--teacher-forcing-updates is for --boundaries-type unigram, not {kind}")


register_architectures(DynamicPoolingModel, ARCHITECTURES)
