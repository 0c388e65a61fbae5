"""One token at a time: what is kept between steps, and the steps themselves.

R rows (hypotheses), all with the same number of tokens but each with its own segments.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamic_pooling.smoothing import closing_probability, smooth_segments, smooth_step
from fairseq_efficient.ops.segment_pool import segment_layout, segment_pool, upsample
from fairseq_efficient.precision import wide_dtype
from fairseq_efficient.state import LayerCache

if TYPE_CHECKING:
    from dynamic_pooling.decoder import HourglassDecoder


@dataclass
class HourglassState:
    """Everything that belongs to a hypothesis, and nothing twice.

    pre, short, post: keys and values, one place per token or (short) per segment of each row. total, count: sum and
    number of the tokens (R, D), (R,) of the open segment. current: (R, D), what tokens read now (with smoothing the
    running mean of segments). seen: tokens read.
    """

    pre: list[LayerCache]
    short: list[LayerCache]
    post: list[LayerCache]
    total: Tensor
    count: Tensor
    current: Tensor
    seen: int = 0

    def reorder(self, new_order: Tensor) -> None:
        """Row i becomes what row ``new_order[i]`` was; rows may repeat, move or go."""
        for cache in (*self.pre, *self.short, *self.post):
            cache.reorder(new_order)
        for name in ("total", "count", "current"):
            setattr(self, name, getattr(self, name).index_select(0, new_order))


def empty_state(decoder: "HourglassDecoder", rows: int) -> HourglassState:
    """A state for R rows; the null segment is read already."""
    o = decoder.options
    like = decoder.embed_tokens.weight
    pre = [LayerCache() for _ in decoder.pre.layers]
    if decoder.boundary_rule is None:
        empty = like.new_zeros(rows, 0)
        return HourglassState(pre, [], [], empty, empty, empty)
    return HourglassState(
        pre,
        [LayerCache.ragged(rows, like.device) for _ in decoder.short.layers],
        [LayerCache() for _ in decoder.post.layers],
        torch.zeros(rows, o.layer.dim, dtype=wide_dtype(like.dtype), device=like.device),
        torch.zeros(rows, dtype=torch.long, device=like.device),
        like.new_zeros(rows, o.layer.dim),
    )


def fill(decoder: "HourglassDecoder", tokens: Tensor, state: HourglassState) -> Tensor:
    """Read tokens (R, n) without pads by one full forward into an empty state; states (R, n, D) for the projection."""
    o = decoder.options
    x = decoder._embed(tokens)
    positions = decoder.token_positions(tokens.size(1), x)
    h = decoder.pre.fill(x, positions, state.pre)
    if decoder.boundary_rule is None:
        return h
    found = decoder.boundary_rule(tokens, h)
    closed = found.values.bool()
    layout = segment_layout(closed)
    pooled = segment_pool(h, closed, kind=o.pooling, null=decoder.null_segment.to(h.dtype), layout=layout)
    s = decoder.widen(decoder.segment_layer_norm(pooled.values))
    z = decoder.short.fill(s, decoder.segment_positions(s.size(1), s), state.short, pooled.lengths)
    z = decoder.narrow(z)
    if o.smooth:
        assert found.probability is not None
        z = smooth_segments(z, closing_probability(found.probability, layout.ids, closed, z.size(1)))
    u = upsample(z, layout.ids)
    still_open = (layout.ids - closed.long() == layout.ids[:, -1:]).to(state.total.dtype)
    state.total = torch.bmm(still_open.unsqueeze(1), h.to(state.total.dtype)).squeeze(1)
    state.count = still_open.sum(1).long()
    state.current = u[:, -1].clone()
    return decoder.post.fill(u + h, positions, state.post)


def step(decoder: "HourglassDecoder", tokens: Tensor, state: HourglassState) -> Tensor:
    """Read a token per row (R,); states (R, D) for the projection. Those that end a segment run the shortened stack."""
    x = decoder._embed(tokens)
    h = decoder.pre.step(x, decoder.biases(), state.pre)
    if decoder.boundary_rule is None:
        return h
    if state.seen == 0:
        null = decoder.null_segment.to(h.dtype).expand(h.size(0), -1)
        _close(decoder, state, null, None, None)
    found = decoder.boundary_rule(tokens.unsqueeze(1), h.unsqueeze(1), first=state.seen)
    state.total = state.total + h
    state.count = state.count + 1
    rows = found.values[:, 0].bool().nonzero().squeeze(1)
    if rows.numel():
        every = rows.numel() == h.size(0)
        if decoder.options.pooling == "last":
            segment = h[rows]
        else:
            segment = (state.total[rows] / state.count[rows].unsqueeze(1)).to(h.dtype)
        probability = None if found.probability is None else found.probability[:, 0][rows]
        _close(decoder, state, segment, None if every else rows, probability)
        state.total.index_fill_(0, rows, 0)
        state.count.index_fill_(0, rows, 0)
    return decoder.post.step(state.current + h, decoder.biases(), state.post)


def _close(
    decoder: "HourglassDecoder", state: HourglassState, segment: Tensor, rows: Tensor | None, probability: Tensor | None
) -> None:
    """Run the shortened stack on one new segment (m, D) for ``rows`` (all if None); tokens read it from now on."""
    s = decoder.widen(decoder.segment_layer_norm(segment))
    z = decoder.narrow(decoder.short.step(s, decoder.biases(shortened=True), state.short, rows))
    every = torch.arange(state.current.size(0), device=s.device) if rows is None else rows
    if decoder.options.smooth and probability is not None:
        z = smooth_step(z, state.current[every], probability)
    state.current = state.current.to(z.dtype).index_copy(0, every, z)
