"""The ``pyramidion`` model: builds its parts from flags, and reads checkpoints of its relatives."""

import logging
import os
from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from deep_pyramidion.config import ARCHITECTURES, PyramidionConfig
from deep_pyramidion.decoder import PyramidionDecoder
from deep_pyramidion.encoder import PyramidionEncoder
from deep_pyramidion.pooler import TopkPooler
from deep_pyramidion.pyramid import check_widths, parse_widths, pooling_layers
from deep_pyramidion.state_dict import upgrade_state_dict
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_blocks, check_least, check_shares, flag, parse_cutoffs
from fairseq_efficient.hub.loading import Pretrained
from fairseq_efficient.plugin.flat_config import (
    Architectures,
    complete_config,
    nested_transformer_config,
    register_architectures,
)
from fairseq_efficient.precision import round_linear_weights_

logger = logging.getLogger(__name__)


@register_model("pyramidion", dataclass=PyramidionConfig)
class PyramidionModel(Architectures, Pretrained, TransformerModelBase):
    """Encoder-decoder for long documents (Pietruszka et al. 2022, arXiv 2009.05169)."""

    arch = "pyramidion"
    config = PyramidionConfig
    hub_example = 'print(model.summarize(open("document.txt").read()))'

    def __init__(self, cfg: Any, encoder: Any, decoder: Any):
        super().__init__(cfg, encoder, decoder)
        self.untrained_scorers: set[int] = set()  # layers whose scorer the loaded checkpoint did not have

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "PyramidionModel":
        """Raises UserError for flags that cannot work together."""
        cfg = complete_config(cfg, getattr(cls, "__dataclass"))
        _check(cfg)
        if cfg.share_all_embeddings and task.source_dictionary != task.target_dictionary:
            raise UserError("--share-all-embeddings needs one dictionary for both sides (dict.*.txt differ)")
        words = task.target_dictionary
        parse_cutoffs("adaptive-softmax-cutoff", cfg.adaptive_softmax_cutoff, len(words), words.pad())
        nested = nested_transformer_config(cfg)
        nested.pooling_widths = _widths(cfg)
        nested.chunked = cfg.use_sparse_attn == "only_blockwise" or (
            cfg.use_sparse_attn == "pooler" and cfg.encoder_pooling == "topk"
        )
        for name in ("chunk_size", "chunk_overlap", "chunk_shift", "chunk_positions", "cpu_bf16"):
            setattr(nested, name, getattr(cfg, name))
        nested.no_decoder_positional_embeddings = cfg.no_decoder_positional_embeddings
        nested.pooler = {
            "arch": str(cfg.encoder_pooling_arch),
            "base": cfg.topk_softmax_base,
            "base_final": cfg.topk_softmax_base_final,
            "base_updates": cfg.topk_softmax_base_updates,
            "flip_right": bool(cfg.flip_right),
            "sort_back": bool(cfg.sort_back),
            "hard_inference": cfg.hard_topk_inference,
        }
        return super().build_model(nested, task)

    @classmethod
    def hub_interface(cls) -> Any:
        from fairseq_efficient.hub.summarizers import SummarizerInterface

        return SummarizerInterface

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: Any) -> PyramidionEncoder:
        pooler = None
        if cfg.pooling_widths:
            pooler = TopkPooler(cfg.encoder.embed_dim, cfg.pooling_widths, **cfg.pooler)
            logger.info("pooling: %s tokens after encoder layers", cfg.pooling_widths)
        return PyramidionEncoder(cfg, src_dict, embed_tokens, pooler)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: Any) -> PyramidionDecoder:
        return PyramidionDecoder(cfg, tgt_dict, embed_tokens)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """src_tokens (B, T), prev_output_tokens (B, t) -> logits (B, t, V) and extras; pads on either side."""
        return super().forward(
            src_tokens, src_lengths, prev_output_tokens, return_all_hiddens=return_all_hiddens, **kwargs
        )

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Raises UserError for flags that need attention over source tokens while the source is pooled, and for
        pooling by scorers that were never trained (an overridden pyramid or ``max_source_positions``)."""
        if self.untrained_scorers:
            layers = ", ".join(map(str, sorted(self.untrained_scorers)))
            raise UserError(
                f"the checkpoint has no scorer for encoder layer {layers}: it was trained with another "
                "--max-source-positions or --enc-layers-and-token-width than it is given now"
            )
        for name in ("replace_unk", "print_alignment"):
            if getattr(cfg.generation, name, None) is None:
                continue
            if self.encoder.pooler is not None:
                raise UserError(
                    f"{flag(name)} needs attention over source tokens, but this model pools them "
                    "(--encoder-pooling topk)"
                )
            self.decoder.need_attn = True
        wants_attention = self.decoder.need_attn
        super().prepare_for_inference_(cfg)
        self.decoder.need_attn = wants_attention
        round_linear_weights_(self.decoder, self.cfg.cpu_bf16)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        super().upgrade_state_dict_named(state_dict, name)
        upgrade_state_dict(self, state_dict, f"{name}." if name else "")


def _check(cfg: Any) -> None:
    check_least(cfg, 1, "encoder_layers", "decoder_layers", "encoder_embed_dim", "decoder_embed_dim",
                "encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "chunk_size", "quant_noise_pq_block_size",
                "decoder_output_dim", "decoder_input_dim")  # fmt: skip
    check_least(cfg, 2, "max_source_positions", "max_target_positions")
    check_shares(cfg, "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop",
                 "adaptive_softmax_dropout", "quant_noise_pq")  # fmt: skip
    check_least(cfg, 1, "adaptive_softmax_factor")
    for side in ("encoder", "decoder"):
        dim, heads = getattr(cfg, f"{side}_embed_dim"), getattr(cfg, f"{side}_attention_heads")
        if heads < 1 or dim % heads:
            raise UserError(f"--{side}-attention-heads {heads} must divide --{side}-embed-dim {dim}")
        path = getattr(cfg, f"{side}_embed_path")
        if path and not os.path.isfile(path):
            raise UserError(f"--{side}-embed-path {path}: no such file")
    check_blocks(cfg, "encoder_embed_dim", "decoder_embed_dim", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim")
    if cfg.share_all_embeddings and cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise UserError("--share-all-embeddings needs equal --encoder-embed-dim and --decoder-embed-dim")
    if not 0 <= cfg.chunk_overlap <= cfg.chunk_size:
        raise UserError(f"--chunk-overlap {cfg.chunk_overlap}: must be between 0 and --chunk-size {cfg.chunk_size}")
    for name in ("flip_right", "sort_back", "global_positions"):
        if getattr(cfg, name) not in (0, 1):
            raise UserError(f"{flag(name)} {getattr(cfg, name)}: must be 0 or 1")


def _widths(cfg: Any) -> dict[int, int]:
    """{layer: tokens kept after it} for the layers that pool; empty without pooling."""
    if cfg.encoder_pooling != "topk":
        return {}
    widths = parse_widths(cfg.enc_layers_and_token_width)
    check_widths(widths, cfg.encoder_layers)
    return pooling_layers(widths, cfg.max_source_positions)


register_architectures(PyramidionModel, ARCHITECTURES)
