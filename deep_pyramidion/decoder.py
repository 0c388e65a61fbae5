"""Decoder: fairseq's transformer decoder with attention caches that beam search does not copy per hypothesis."""

from typing import Any

from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor
from torch.nn.functional import embedding

from fairseq_efficient.modules.adaptive_softmax import ExactAdaptiveSoftmax
from fairseq_efficient.modules.cached_attention import CachedCrossAttention, CachedSelfAttention
from fairseq_efficient.modules.layer_steps import add_residual, in_place_activation, wrap_layer
from fairseq_efficient.precision import cpu_bf16_autocast


class PyramidionDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer with :class:`CachedSelfAttention` and :class:`CachedCrossAttention`."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.need_attn = False
        self.activation_fn = in_place_activation(cfg.activation_fn)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        return add_residual(x, residual)

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> Any:
        return CachedSelfAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            dropout=cfg.attention_dropout,
            self_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> Any:
        return CachedCrossAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )


class PyramidionDecoder(TransformerDecoderBase):
    """Decoder over pooled encoder states. Attention weights are computed only when asked for (``need_attn``)."""

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: Any):
        super().__init__(cfg, dictionary, embed_tokens)
        self.need_attn = False
        if cfg.no_decoder_positional_embeddings:
            self.embed_positions = None

    def build_output_projection(self, cfg: Any, dictionary: Any, embed_tokens: Any) -> None:
        """Adaptive softmax: one that every criterion can train; stock's cannot be trained by cross_entropy."""
        super().build_output_projection(cfg, dictionary, embed_tokens)
        stock: Any = getattr(self, "adaptive_softmax")  # noqa: B009 (mypy cannot tell its type)
        if stock is not None:
            self.adaptive_softmax = ExactAdaptiveSoftmax(
                len(dictionary),
                self.output_embed_dim,
                stock.cutoff[:-1],
                cfg.adaptive_softmax_dropout,
                dictionary.pad(),
                cfg.cpu_bf16,
                adaptive_inputs=embed_tokens if cfg.tie_adaptive_weights else None,
                factor=cfg.adaptive_softmax_factor,
                tie_proj=cfg.tie_adaptive_proj,
            )

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> Any:
        return wrap_layer(PyramidionDecoderLayer(cfg), cfg)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None = None,
        incremental_state: dict | None = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """(R, t) ids -> logits (R, t or 1, V); R may be a multiple of the encoder's sentences (beams together)."""
        with cpu_bf16_autocast(self.cfg.cpu_bf16, prev_output_tokens.device):
            return super().forward(prev_output_tokens, encoder_out, incremental_state, features_only, **kwargs)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None = None,
        incremental_state: dict | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Features (R, t or 1, C) and {"attn": [weights or None], "inner_states": [...]}, as fairseq's decoder."""
        if alignment_layer is None and self.need_attn:
            alignment_layer = self.num_layers - 1
        states, states_mask = _encoder_states(encoder_out)
        x, padding_mask = self._embed(prev_output_tokens, incremental_state, full_context_alignment)
        causal = x.new_empty(0) if incremental_state is None and not full_context_alignment else None
        attn: Tensor | None = None
        inner_states = [x]
        for number, layer in enumerate(self.layers):
            x, layer_attn, _ = layer(
                x,
                states,
                states_mask,
                incremental_state,
                self_attn_mask=causal,  # only says "causal": the attention needs no T x T tensor
                self_attn_padding_mask=padding_mask,
                need_attn=number == alignment_layer,
                need_head_weights=number == alignment_layer,
            )
            inner_states.append(x)
            if layer_attn is not None and number == alignment_layer:
                attn = _in_source_columns(layer_attn[:alignment_heads].mean(0).to(x), encoder_out)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        return x, {"attn": [attn], "inner_states": inner_states}

    def _embed(
        self, tokens: Tensor, incremental_state: dict | None, full_context: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(R, t) ids -> (t or 1, R, C) and the padding mask, None where causality hides all pads anyway."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens) if incremental_state is None else self._newest_positions(tokens)
        if incremental_state is not None:
            tokens = tokens[:, -1:]
        padding_mask: Tensor | None = tokens.eq(self.padding_idx)
        assert padding_mask is not None
        if incremental_state is None and not full_context:
            visible_pads = (padding_mask[:, :-1] & ~padding_mask[:, 1:]).any()
        else:
            visible_pads = padding_mask.any()
        if not visible_pads:
            padding_mask = None
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x).transpose(0, 1), padding_mask

    def _newest_positions(self, tokens: Tensor) -> Tensor:
        """Position embeddings (R, 1, C) of the last of the tokens (R, t). fairseq's own single step counts pads too."""
        positions: Any = self.embed_positions
        table = positions.weights if hasattr(positions, "weights") else positions.weight
        if tokens.size(1) + self.padding_idx >= table.size(0):  # fairseq grows a sinusoidal table
            return positions(tokens)[:, -1:]
        real = tokens.ne(self.padding_idx)
        return embedding(self.padding_idx + real.sum(1) * real[:, -1], table).unsqueeze(1)

    def reorder_incremental_state_scripting(self, incremental_state: dict, new_order: Tensor) -> None:
        for module in self.modules():
            if isinstance(module, CachedSelfAttention | CachedCrossAttention):
                module.reorder_cache(incremental_state, new_order)

    # called by code that does not use the sequence generator
    reorder_incremental_state = reorder_incremental_state_scripting

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        self.need_attn = need_attn


def _in_source_columns(attn: Tensor, encoder_out: dict[str, list[Any]] | None) -> Tensor:
    """Attention (R, t, T') over the encoder's left-aligned tokens -> (R, t, T) over the source as it was given."""
    columns, width = (encoder_out or {}).get("source_columns", [None, 0])
    if columns is None:
        return attn
    columns = columns.repeat_interleave(attn.size(0) // columns.size(0), 0).unsqueeze(1).expand_as(attn)
    return attn.new_zeros(*attn.shape[:2], width).scatter(2, columns, attn)


def _encoder_states(encoder_out: dict[str, list[Any]] | None) -> tuple[Tensor | None, Tensor | None]:
    """States (T', S, C) and their mask (S, T'), None if the encoder says that nothing is padded."""
    if not encoder_out or not encoder_out["encoder_out"]:
        return None, None
    masks = encoder_out["encoder_padding_mask"]
    padded = encoder_out.get("padded", [True])[0]
    return encoder_out["encoder_out"][0], masks[0] if masks and padded else None
