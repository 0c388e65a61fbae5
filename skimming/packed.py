"""Inference on a packed buffer: pads never enter it, skipped tokens leave it, only the head sees (B, T) again.

B sentences, T columns, C channels, L layers; N tokens enter the first layer, fewer are in the buffer later.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from fairseq_efficient.errors import UserError
from fairseq_efficient.modules.packed_encoder_layer import PackedRows
from fairseq_efficient.ops.token_pack import (
    BackendError,
    TokenLayout,
    compact_tokens,
    pack_tokens,
    places_where,
    repad_tokens,
)
from skimming.predictor import decide, keeps, protected_tokens, segments
from skimming.statistics import SkimCounts, Skimmed


class Buffer:
    """Live tokens of a batch between two layers.

    ``x`` (n, C): their states; ``layout``: where they come from; ``protected`` (n,) bool: never skipped, ``guarded`` of
    them. How many rows a mask has is always known here, so that compaction alone asks the device for a number.
    Skipped tokens may stay for a while (``--skim-compact-threshold``): then ``alive`` (n,) bool are the others,
    ``selection`` their rows and ``live`` their layout; else these are None, None and ``layout``.
    With ``store`` the last states of tokens that leave are kept: (N, C), at ``places`` (n,) (None: nothing has left).
    """

    def __init__(self, x: Tensor, layout: TokenLayout, protected: Tensor, store: bool):
        self.x, self.layout, self.protected = x, layout, protected
        self.guarded = int(protected.sum())
        self.alive: Tensor | None = None
        self.selection: Tensor | None = None
        self.live = layout
        self.places: Tensor | None = None
        self.final: Tensor | None = None
        self.store = store

    def skim(self, predictor: Any, options: Any) -> None:
        """Let the tokens go on that ``predictor`` keeps; it looks at live tokens without protection only."""
        asked = ~self.protected if self.alive is None else self.alive & ~self.protected
        rows = places_where(asked, self.live.index.numel() - self.guarded)
        logits = predictor(self.x.index_select(0, rows))
        if options.eval_sample:
            kept = decide(logits, True, options.tau) > 0
        else:
            kept = keeps(logits, options.threshold)
        self._keep(self.protected.index_copy(0, rows, kept), options.compact_threshold)

    def _keep(self, kept: Tensor, spare: float) -> None:
        if kept.device.type == "cpu" and bool(kept.all()):  # elsewhere a question of its own would be one sync more
            return
        live, selection = compact_tokens(self.layout, kept)
        skipped = kept.numel() - selection.numel()
        if not skipped:
            return
        if skipped <= spare * kept.numel():
            self.alive, self.selection, self.live = kept, selection, live
            return
        if self.store:
            self._put(places_where(~kept, skipped))
        self.x, self.protected = self.x.index_select(0, selection), self.protected[selection]
        self.places = selection if self.places is None else self.places[selection]
        self.layout = self.live = live
        self.alive = self.selection = None

    def _put(self, rows: Tensor | None) -> None:
        """Write the states of some rows, None: of all, to their places; each place is written once."""
        if self.final is None:
            self.final = self.x.new_zeros(self.x.size(0), self.x.size(1))
        states = self.x if rows is None else self.x.index_select(0, rows)
        places = self.places
        if rows is not None:
            places = rows if places is None else places[rows]
        assert places is not None
        self.final.index_copy_(0, places, states.to(self.final.dtype))

    def run(self, layer: Any, first_only: bool = False) -> None:
        """One layer; with ``first_only`` only the first token of each sentence, none of them empty, is left."""
        live = self.live
        rows = PackedRows(self.layout.cu_seqlens, self.layout.max_len)
        if first_only:
            first = self.layout.cu_seqlens
            numbers = torch.arange(first.numel(), dtype=torch.int32, device=first.device)
            rows = PackedRows(numbers, 1, live.cu_seqlens, live.max_len, first[:-1], self.selection)
        elif self.selection is not None:
            rows = PackedRows(*rows[:2], live.cu_seqlens, live.max_len, None, self.selection)
        new = layer(self.x, rows=rows)
        if self.alive is not None and not first_only:
            new = torch.where(self.alive.unsqueeze(1), new, self.x)
        self.x = new

    def finish(self) -> Tensor:
        """Last states of all N tokens."""
        if self.places is None:
            return self.x
        self._put(None)
        assert self.final is not None
        return self.final


def encode_packed(
    encoder: Any,
    src_tokens: Tensor,
    padding: Tensor,
    token_embeddings: Tensor | None = None,
    first_only: bool = False,
    return_masks: bool = False,
) -> tuple[Tensor, Skimmed]:
    """States (T, B, C), zeros at pads, and what was kept, with masks if they are asked for.

    Args:
        encoder: a ``SkimEncoder``. padding: (B, T), True = pad.
        first_only: states (1, B, C) of first tokens are enough: the last layer computes no others.

    Raises:
        UserError: ``--skim-backend`` cannot run here.
    """
    layout = pack_tokens(padding)
    marks = protected_tokens(src_tokens, padding, encoder.eos, encoder.options.protect)
    first_only = first_only and layout.min_len > 0
    x = _embed(encoder, src_tokens, padding, token_embeddings, layout.index)
    buffer = Buffer(x, layout, marks.flatten()[layout.index], store=not first_only)
    kept, masks = [], []
    for number in range(encoder.num_layers):
        if str(number) in encoder.skim_predictors:
            buffer.skim(encoder.skim_predictors[str(number)], encoder.options)
        kept.append(buffer.live.cu_seqlens)
        if return_masks:
            masks.append(_mask(buffer.live.index, padding))
        try:
            buffer.run(encoder.layers[number], first_only and number == encoder.num_layers - 1)
        except BackendError as err:
            raise UserError(f"--skim-backend {encoder.options.backend}: {err}") from None
    x = buffer.x if first_only else buffer.finish()
    if encoder.layer_norm is not None:
        x = encoder.layer_norm(x)
    x = x.unsqueeze(0) if first_only else repad_tokens(x, layout.index, *padding.shape).transpose(0, 1)
    counts = SkimCounts([ends.diff() for ends in kept], layout.cu_seqlens.diff(), marks.sum(1), padding.size(1))
    return x, Skimmed(counts, torch.stack(masks) if masks else None)


def _mask(index: Tensor, padding: Tensor) -> Tensor:
    flat = torch.zeros(padding.numel(), device=padding.device)
    return flat.index_fill_(0, index, 1.0).view(padding.shape)


def _embed(encoder: Any, src_tokens: Tensor, padding: Tensor, token_embeddings: Tensor | None, index: Tensor) -> Tensor:
    """What ``encoder.forward_embedding`` gives at the real tokens: (N, C)."""
    if token_embeddings is None:
        x = encoder.embed_tokens(src_tokens.flatten()[index])
    else:
        x = token_embeddings.flatten(0, 1)[index]
    if encoder.segment_embeddings is not None:
        found = segments(src_tokens, encoder.eos, encoder.options.num_segments)
        x = x.add_(encoder.segment_embeddings(found.flatten()[index]))
    positions = (~padding).cumsum(1).flatten()[index] + encoder.padding_idx
    x = x if encoder.embed_scale == 1.0 else x.mul_(encoder.embed_scale)
    x = x.add_(embedding(positions, encoder.embed_positions.weight))
    if encoder.layernorm_embedding is not None:
        x = encoder.layernorm_embedding(x)
    x = encoder.dropout_module(x)
    return x if encoder.quant_noise is None else encoder.quant_noise(x)
