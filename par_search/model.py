"""The models ``par_lm`` and ``par_supernet``: flags to parts, with one line for each mistake."""

import logging
from dataclasses import replace
from typing import Any

from fairseq.models import register_model

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least, check_scales, check_shares
from fairseq_efficient.hub.loading import PretrainedLanguageModel
from fairseq_efficient.modules.adaptive_softmax import AdaptiveOptions, adaptive_options
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel, layers_reach
from fairseq_efficient.ops.relaxed_onehot import gumbel_like
from fairseq_efficient.plugin.flat_config import Architectures, complete_config, register_architectures
from fairseq_efficient.precision import round_linear_weights_
from par_search.blocks import BlockOptions
from par_search.config import ARCHITECTURES, ParConfig, ParLMConfig, SupernetConfig
from par_search.criterion import SearchCriterion
from par_search.decoder import BlockDecoder, DecoderOptions, ParDecoder
from par_search.layout import DEFAULT_BLOCKS, build_layout
from par_search.supernet import SupernetDecoder, Temperature

logger = logging.getLogger(__name__)


class BlockLanguageModel(Architectures, PretrainedLanguageModel, StreamLanguageModel):
    """A language model over a stream whose decoder is a chain of blocks."""

    arch = ""
    config: type = ParConfig

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "BlockLanguageModel":
        """Raises UserError for flags that are out of range or cannot work together."""
        cfg = complete_config(cfg, getattr(cls, "__dataclass"))
        return cls(cls.build_decoder(cfg, task.source_dictionary))

    @classmethod
    def build_decoder(cls, cfg: Any, dictionary: Any) -> BlockDecoder:
        raise NotImplementedError

    def memory_reach(self, tokens: int, memory_length: int | None = None) -> int:
        length = self.decoder.options.mem_len if memory_length is None else memory_length
        return layers_reach(self.decoder.attention_count(), length, tokens)

    def prepare_for_inference_(self, cfg: Any) -> None:
        super().prepare_for_inference_(cfg)
        round_linear_weights_(self, self.decoder.options.cpu_bf16)
        task, options = getattr(cfg, "task", None), self.decoder.options
        memory, tokens = (getattr(task, f"eval_{name}", None) for name in ("mem_len", "tokens_per_sample"))
        tokens = tokens or getattr(task, "tokens_per_sample", None) or options.tokens
        self.decoder.prepare_positions((options.mem_len if memory is None else memory) + tokens)


@register_model("par_lm", dataclass=ParLMConfig)
class ParLanguageModel(BlockLanguageModel):
    """Transformer-XL with attention where the layout has it (Mandava et al. 2020, arXiv 2009.04534)."""

    arch = "par_lm"
    config = ParLMConfig

    @classmethod
    def build_decoder(cls, cfg: Any, dictionary: Any) -> ParDecoder:
        rule = (str(cfg.layout_rule), cfg.decoder_blocks, cfg.par_ratio, cfg.sandwich_coefficient)
        layout = build_layout(cfg.layout or "", *rule)
        if "a" not in layout:
            logger.warning(f"the layout {layout} has no attention: each token is predicted from the last one alone")
        return ParDecoder(dictionary, decoder_options(cfg, dictionary), layout)

    def trained_by(self, criterion: Any) -> None:
        if isinstance(criterion, SearchCriterion):
            criterion.refuse_latency(self.arch)


@register_model("par_supernet", dataclass=SupernetConfig)
class SupernetLanguageModel(BlockLanguageModel):
    """All layouts at once, to find the best one (Mandava et al. 2020)."""

    arch = "par_supernet"
    config = SupernetConfig

    def draws(self) -> dict[str, Any]:
        return {"noise": (gumbel_like(self.decoder.alpha),)}

    @classmethod
    def build_decoder(cls, cfg: Any, dictionary: Any) -> SupernetDecoder:
        if cfg.decoder_blocks < 0:
            raise UserError(f"--decoder-blocks {cfg.decoder_blocks}: must not be negative")
        return SupernetDecoder(
            dictionary,
            decoder_options(cfg, dictionary),
            cfg.decoder_blocks or DEFAULT_BLOCKS,
            temperature(cfg),
            cfg.straight_through,
            str(cfg.supernet_eval) == "mixture",
        )


def temperature(cfg: Any) -> Temperature:
    """UserError for a temperature that is no such, or a schedule without end."""
    check_scales(cfg, "tau_start", "tau_end")
    check_least(cfg, 0, "tau_updates")
    updates = cfg.tau_updates
    if not updates:
        known = isinstance(cfg.max_update, int) and cfg.max_update > 0
        if not known and cfg.tau_start != cfg.tau_end:
            raise UserError("--tau-updates is needed where --max-update does not end training")
        updates = cfg.max_update if known else 1
    return Temperature(cfg.tau_start, cfg.tau_end, updates, str(cfg.tau_schedule))


def decoder_options(cfg: Any, dictionary: Any) -> DecoderOptions:
    """Checked plain values of a complete :class:`ParConfig`."""
    _check_ranges(cfg)
    dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
    if not cfg.decoder_head_dim and dim % heads:
        raise UserError(f"--decoder-attention-heads {heads} must divide --decoder-embed-dim {dim}")
    if dim % 2:
        raise UserError(f"--decoder-embed-dim {dim}: must be even (sines and cosines)")
    if cfg.same_length and not cfg.mem_len:
        raise UserError("--same-length needs --mem-len: without memory no token would see another")
    adaptive = _adaptive(cfg, dictionary)
    block = BlockOptions(
        dim,
        cfg.decoder_ffn_embed_dim,
        heads,
        cfg.decoder_head_dim or dim // heads,
        cfg.dropout,
        cfg.attention_dropout,
        cfg.activation_dropout,
        str(cfg.activation_fn),
        cfg.decoder_normalize_before,
        None if cfg.clamp_len < 0 else cfg.clamp_len,
        str(cfg.cache_memory) == "keys",
        cfg.init_std,
    )
    return DecoderOptions(
        block,
        cfg.mem_len,
        cfg.same_length,
        cfg.tokens_per_sample if isinstance(cfg.tokens_per_sample, int) else 0,
        emb_dropout=cfg.dropout,
        adaptive=adaptive,
        checkpoint=cfg.checkpoint_activations,
        cpu_bf16=cfg.cpu_bf16,
    )


def _check_ranges(cfg: Any) -> None:
    check_least(cfg, 1, "decoder_ffn_embed_dim", "decoder_attention_heads")
    for name, least in (("decoder_embed_dim", 2), ("decoder_head_dim", 0), ("mem_len", 0), ("clamp_len", -1)):
        check_least(cfg, least, name)
    check_shares(cfg, "dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout")
    check_scales(cfg, "init_std")


def _adaptive(cfg: Any, dictionary: Any) -> AdaptiveOptions:
    found = adaptive_options(cfg, dictionary)
    if not cfg.share_decoder_input_output_embed:
        return found
    if found.cutoffs or found.input_cutoffs:
        raise UserError("--share-decoder-input-output-embed is for a full softmax: say --tie-adaptive-weights")
    return replace(found, tie_weights=True)


for base, prefixes in ((SupernetLanguageModel, ("par_supernet",)), (ParLanguageModel, ("par_lm",))):
    register_architectures(base, {name: values for name, values in ARCHITECTURES.items() if name.startswith(prefixes)})
