"""The model ``sequential_lm``: flags to parts, with one line for each mistake."""

import logging
from typing import Any

from fairseq.models import register_model

from adaptive_span.attention import AttentionOptions
from adaptive_span.config import ARCHITECTURES, SequentialConfig
from adaptive_span.criterion import SpanCriterion
from adaptive_span.decoder import DecoderOptions, SequentialDecoder
from adaptive_span.layers import LayerOptions
from adaptive_span.optimizer import copy_into_master_
from adaptive_span.spans import SpanOptions
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least, check_shares
from fairseq_efficient.hub.loading import PretrainedLanguageModel
from fairseq_efficient.modules.adaptive_softmax import adaptive_options
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel, layers_reach
from fairseq_efficient.plugin.flat_config import Architectures, complete_config, given, register_architectures
from fairseq_efficient.precision import round_linear_weights_

logger = logging.getLogger(__name__)
_OF_LEARNED_SPANS = ("adapt_span_layer", "dynamic_span", "adapt_span_loss", "adapt_span_init", "adapt_span_cache",
                     "adapt_span_ramp", "adapt_span_mask")  # fmt: skip


@register_model("sequential_lm", dataclass=SequentialConfig)
class SequentialLanguageModel(Architectures, PretrainedLanguageModel, StreamLanguageModel):
    """Transformer over a stream whose heads learn how far they look (Sukhbaatar et al. 2019, arXiv 1905.07799)."""

    arch = "sequential_lm"
    config = SequentialConfig

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SequentialLanguageModel":
        """Raises UserError for flags that are out of range or cannot work together."""
        cfg = complete_config(cfg, getattr(cls, "__dataclass"))
        return cls(SequentialDecoder(task.source_dictionary, decoder_options(cfg, task.source_dictionary)))

    def memory_reach(self, tokens: int, memory_length: int | None = None) -> int:
        """Each layer reaches back by the blocks that its longest span covers."""
        decoder = self.decoder
        pairs = zip(decoder.layers, decoder.known(), strict=True)
        found = [layer.self_attn.farthest(known) for layer, known in pairs]
        if memory_length is not None:
            found = [min(width, memory_length) for width in found]
        return sum(layers_reach(1, width, tokens) for width in found)

    def after_update(self, optimizer: Any) -> None:
        """Bring spans back into range, in the optimizer's own copies too; called after each step."""
        self.decoder.clamp_spans_()
        for layer in self.decoder.layers:
            if layer.self_attn.spans is not None:
                for parameter in layer.self_attn.spans.parameters():
                    copy_into_master_(optimizer, parameter)

    def trained_by(self, criterion: Any) -> None:
        weight = self.decoder.options.span_loss
        if weight and not isinstance(criterion, SpanCriterion):
            logger.warning(
                f"--adapt-span-loss {weight:g} has no effect: it is part of --criterion adaptive_span_loss only"
            )

    def prepare_for_inference_(self, cfg: Any) -> None:
        super().prepare_for_inference_(cfg)
        round_linear_weights_(self, self.decoder.options.cpu_bf16)


def decoder_options(cfg: Any, dictionary: Any) -> DecoderOptions:
    """Checked plain values of a complete :class:`SequentialConfig`."""
    _check_ranges(cfg)
    dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
    if dim % heads:
        raise UserError(f"--decoder-attention-heads {heads} must divide --decoder-embed-dim {dim}")
    for name in given(cfg, SequentialConfig, () if cfg.adapt_span else _OF_LEARNED_SPANS):
        raise UserError(f"--{name.replace('_', '-')} is of learned spans: say --adapt-span too")
    spans = None
    if cfg.adapt_span:
        spans = SpanOptions(
            cfg.attn_span,
            cfg.adapt_span_ramp,
            cfg.adapt_span_init,
            cfg.adapt_span_layer,
            cfg.dynamic_span,
            cfg.adapt_span_cache,
        )
    inside = [cfg.dropout if rate is None else rate for rate in (cfg.attention_dropout, cfg.activation_dropout)]
    attention = AttentionOptions(
        dim,
        heads,
        cfg.attn_span,
        inside[0],
        spans,
        cfg.pers_mem_size,
        str(cfg.adapt_span_mask) == "orig",
        str(cfg.empty_cache) == "zeros",
    )
    return DecoderOptions(
        LayerOptions(attention, cfg.decoder_ffn_embed_dim, inside[1], str(cfg.activation_fn)),
        cfg.decoder_layers,
        cfg.adapt_span_loss,
        emb_dropout=cfg.emb_dropout,
        adaptive=adaptive_options(cfg, dictionary),
        checkpoint=cfg.checkpoint_activations,
        cpu_bf16=cfg.cpu_bf16,
    )


def _check_ranges(cfg: Any) -> None:
    check_least(cfg, 1, "decoder_layers", "decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads",
                "attn_span", "adapt_span_ramp")  # fmt: skip
    check_least(cfg, 0, "adapt_span_loss", "pers_mem_size")
    if not 0 <= cfg.adapt_span_init <= 1:
        raise UserError(f"--adapt-span-init {cfg.adapt_span_init}: is a share of --attn-span, from 0 to 1")
    check_shares(cfg, "dropout", "attention_dropout", "activation_dropout", "emb_dropout", "adaptive_softmax_dropout")


register_architectures(SequentialLanguageModel, ARCHITECTURES)
