"""Pyramidion encoder: chunked self-attention, and a pool after chosen layers (Pietruszka et al. 2022, sections 3-4).

Shapes: B batch, T source tokens, T_l tokens after layer l, C model dim. Inside, states are [B, T_l, C];
at fairseq's borders [T_l, B, C]. Masks: True = pad.
"""

import logging
from typing import Any, NamedTuple

import torch
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor

from deep_pyramidion.pooler import TopkPooler
from deep_pyramidion.truncation import CutCounter, align_left, cut_keep_last
from fairseq_efficient.beam import reorder_sentences
from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.modules.chunked_self_attention import ChunkedSelfAttention
from fairseq_efficient.modules.layer_steps import add_residual, in_place_activation, wrap_layer
from fairseq_efficient.precision import cpu_bf16_autocast

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """What :meth:`PyramidionEncoder.encode` gives."""

    states: Tensor  # (B, T', C)
    padding_mask: Tensor  # (B, T')
    padded: bool  # whether the mask hides anything
    columns: Tensor | None  # without pooling: the source column behind each state (B, T'), None if its own


class PyramidionEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer, batch-first, with chunked attention."""

    def __init__(self, cfg: Any, layer: int):
        self.layer = layer
        super().__init__(cfg)
        self.activation_fn = in_place_activation(cfg.activation_fn)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        return add_residual(x, residual)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> ChunkedSelfAttention:
        chunk = cfg.chunk_size if cfg.chunked else None
        return ChunkedSelfAttention(
            embed_dim,
            cfg.encoder.attention_heads,
            chunk_size=chunk,
            chunk_overlap=cfg.chunk_overlap,
            chunk_shift=cfg.chunk_size // 2 if cfg.chunk_shift and self.layer % 2 else 0,
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )


class PyramidionEncoder(TransformerEncoderBase):
    """Transformer encoder over chunks with trainable pooling; see the flags in :mod:`deep_pyramidion.config`.

    ``cfg`` is a nested ``TransformerConfig`` with the pyramid's values added by ``PyramidionModel.build_model``:
    ``chunked``, ``chunk_size``, ``chunk_overlap``, ``chunk_shift``, ``chunk_positions``, ``cpu_bf16``.
    """

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: Any, pooler: TopkPooler | None):
        self._built = 0
        super().__init__(cfg, dictionary, embed_tokens)
        self.pooler = pooler
        self.cuts = CutCounter("source")

    def build_encoder_layer(self, cfg: Any) -> Any:
        layer = PyramidionEncoderLayer(cfg, self._built)
        self._built += 1
        return wrap_layer(layer, cfg)

    @property
    def source_limit(self) -> int:
        """Longest source this encoder was built for, in tokens with EOS."""
        if self.embed_positions is None:
            return self.max_source_positions
        return min(self.max_source_positions, self.embed_positions.max_positions)

    def max_positions(self) -> int:
        """No limit: a source beyond :attr:`source_limit` is cut to it (EOS kept, counted), never refused."""
        return ANY_LENGTH

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Any]]:
        """Encode (B, T) token ids, padded on either side.

        Returns fairseq's dict: ``encoder_out`` [(T', B, C)], ``encoder_padding_mask`` [(B, T')], both pooled;
        ``encoder_states`` of (T_l, B, C) (embedding first, then after each layer and its pool) if asked for;
        ``encoder_embedding`` is empty: nothing reads it, and beam search would copy it.
        """
        states: list[Tensor] | None = [] if return_all_hiddens else None
        x, mask, padded, columns = self.encode(src_tokens, token_embeddings, states)
        return {
            "encoder_out": [x.transpose(0, 1)],
            "encoder_padding_mask": [mask],
            "encoder_embedding": [],
            "encoder_states": [s.transpose(0, 1) for s in states or []],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [],
            "padded": [padded],
            "source_columns": [columns, src_tokens.size(1)],
        }

    def encode(
        self,
        src_tokens: Tensor,
        token_embeddings: Tensor | None = None,
        states: list[Tensor] | None = None,
        trace: list[tuple[int, Any]] | None = None,
    ) -> Encoded:
        """(B, T) ids -> pooled states (B, T', C), their mask (B, T').

        Args:
            states: receives the state after the embedding and after each layer.
            trace: receives (layer, :class:`~fairseq_efficient.ops.topk_halving.Pooled`) of each pool that ran.
        """
        src_tokens, columns, shortest = self._prepare(src_tokens)
        mask = src_tokens.eq(self.padding_idx)
        if token_embeddings is not None and columns is not None:
            token_embeddings = token_embeddings.gather(
                1, columns.unsqueeze(-1).expand(-1, -1, token_embeddings.size(2))
            )
        elif token_embeddings is not None:
            token_embeddings = token_embeddings[:, : src_tokens.size(1)]
        with cpu_bf16_autocast(self.cfg.cpu_bf16, src_tokens.device):
            x = self._embed(src_tokens, token_embeddings)
            if shortest < x.size(1):
                x = x.masked_fill(mask.unsqueeze(-1), 0.0)
            if states is not None:
                states.append(x)
            # as LayerDropModuleList draws it; a dropped layer keeps its place in the pyramid, so its pool still runs
            drops = self.training and self.encoder_layerdrop > 0
            keep = torch.empty(len(self.layers)).uniform_() > self.encoder_layerdrop if drops else None
            for number in range(len(self.layers)):
                if keep is None or keep[number]:
                    x = self.layers[number](x, encoder_padding_mask=mask if shortest < x.size(1) else None)
                x, mask = self._pool(x, mask, number, shortest, trace)
                if states is not None:
                    states.append(x)
            if self.layer_norm is not None:
                x = self.layer_norm(x)
        return Encoded(x, mask, shortest < x.size(1), None if self.pooler is not None else columns)

    def _prepare(self, src_tokens: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """Left-align, drop columns of pads, cut to the limit.

        Returns tokens (B, T'); the column of ``src_tokens`` each came from (B, T'), None if its own; the shortest row.
        """
        tokens, columns, shortest, longest = align_left(src_tokens, self.padding_idx)
        if longest > self.source_limit:
            cut = tokens.ne(self.padding_idx).sum(1) > self.source_limit
            self.cuts.add(int(cut.sum()), self.source_limit)
            tokens, kept = cut_keep_last(tokens, self.source_limit, self.padding_idx)
            columns = kept if columns is None else columns.gather(1, kept)
            shortest = min(shortest, self.source_limit)
        return tokens, columns if columns is None else columns[:, : tokens.size(1)], shortest

    def _embed(self, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
        if not self.cfg.chunk_positions or tokens.size(1) <= self.cfg.chunk_size:
            return self.forward_embedding(tokens, embeddings)[0]
        batch, length = tokens.shape
        chunk = self.cfg.chunk_size
        fill = -length % chunk
        tokens = torch.nn.functional.pad(tokens, (0, fill), value=self.padding_idx).view(-1, chunk)
        if embeddings is not None:
            embeddings = torch.nn.functional.pad(embeddings, (0, 0, 0, fill)).view(-1, chunk, embeddings.size(-1))
        return self.forward_embedding(tokens, embeddings)[0].view(batch, length + fill, -1)[:, :length]

    def _pool(
        self, x: Tensor, mask: Tensor, layer: int, shortest: int, trace: list[tuple[int, Any]] | None
    ) -> tuple[Tensor, Tensor]:
        if self.pooler is None:
            return x, mask
        pooled = self.pooler(x, layer, mask if shortest < x.size(1) else None)
        if pooled is None:
            zero = self.pooler.untouched(layer)
            return (x if zero is None else x + zero.to(x.dtype)), mask
        if trace is not None:
            trace.append((layer, pooled))
        if pooled.padding_mask is None:
            return pooled.values, mask.new_zeros(pooled.index.shape)
        return pooled.values, pooled.padding_mask

    def reorder_encoder_out(self, encoder_out: dict[str, list[Any]], new_order: Tensor) -> dict[str, list[Any]]:
        """Rows by ``new_order``, without touching the argument.

        Beams of one document share its states: while each document's rows stay together (as in beam search), the
        states stay (T', B, C) with B documents and nothing is copied; the decoder reads row r as document r // beam.
        """
        states, mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        beam = encoder_out.get("rows_per_sentence", [1])[0]
        documents, beam = reorder_sentences(new_order, states.size(1), beam)
        if documents is not None:
            states, mask = states.index_select(1, documents), mask.index_select(0, documents)
        hiddens = encoder_out["encoder_states"]
        columns, width = encoder_out.get("source_columns", [None, 0])
        if documents is not None and columns is not None:
            columns = columns.index_select(0, documents)
        if documents is not None:
            hiddens = [state.index_select(1, documents) for state in hiddens]
        return {
            "encoder_out": [states],
            "encoder_padding_mask": [mask],
            "encoder_embedding": [],
            "encoder_states": hiddens,
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [],
            "padded": encoder_out.get("padded", [True]),
            "source_columns": [columns, width],
            "rows_per_sentence": [beam],
        }
