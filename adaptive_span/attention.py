"""Self-attention over a span of earlier tokens (Sukhbaatar et al. 2019), beside which every token may see vectors of
the layer itself (persistent memory, Sukhbaatar et al. 2019, "Augmenting Self-attention with Persistent Memory").

Shapes: x (B, M, C); memory (B, L, C), what attention was given before x; positions (S, d), by ascending distance from
1. H heads of width d, N persistent vectors. In incremental decoding one new state per row, (R, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adaptive_span.spans import SpanOptions, Spans
from fairseq_efficient.modules.fused_self_attention import FusedSelfAttention
from fairseq_efficient.ops.span_attention import head_groups, span_attention, span_attention_step, span_width
from fairseq_efficient.ops.span_attention.published import masked_after_softmax, published_columns
from fairseq_efficient.state import WindowCache

Groups = list[tuple[list[int] | None, int]]  # heads computed together (None: all), and how far they see


@dataclass(frozen=True)
class AttentionOptions:
    """longest: S. spans: None if every head sees S tokens. persistent: N, 0 for none. published_mask: the mask comes
    after the softmax, as in the published code. zeros: places before the stream hold zeros that are attended to."""

    dim: int
    heads: int
    longest: int
    dropout: float = 0.0
    spans: SpanOptions | None = None
    persistent: int = 0
    published_mask: bool = False
    zeros: bool = False


@dataclass
class LayerState:
    """Keys and values of one layer's heads while tokens come one by one."""

    groups: Groups
    caches: list[WindowCache] = field(default_factory=list)  # one for each group

    def reorder(self, new_order: Tensor) -> None:
        for cache in self.caches:
            cache.reorder(new_order)

    def size_bytes(self) -> int:
        return sum(cache.size_bytes() for cache in self.caches)


class SpanSelfAttention(FusedSelfAttention):
    """Causal; a token does not see itself. Projections have no bias; parameters keep torch's initialisation."""

    def __init__(self, options: AttentionOptions):
        o = options
        super().__init__(o.dim, o.heads, o.dim // o.heads, o.dropout, bias=False)
        self.options = options
        self.spans = None if o.spans is None else Spans(o.spans, o.heads, o.dim)
        if o.persistent:
            shape = (o.heads, o.persistent, self.head_dim)
            self.persistent_key = nn.Parameter(torch.randn(shape) * self.head_dim**-0.5)
            self.persistent_value = nn.Parameter(torch.randn(shape) * o.persistent**-0.5)

    def persistent(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values (H, N, d) that every query sees: parameters times sqrt(d) and sqrt(N) (1907.01470)."""
        if not self.options.persistent:
            return None
        return self.persistent_key * self.head_dim**0.5, self.persistent_value * self.options.persistent**0.5

    def reach(self, known: Sequence[float] | None) -> list[int]:
        """Keys that each head sees at most, for its spans as numbers (None: the longest)."""
        if self.spans is None or known is None:
            return [self.options.longest] * self.heads
        return self.spans.widths(list(known))

    def cache_size(self, known: Sequence[float] | None) -> int:
        """Places to remember."""
        if self.spans is None or known is None:
            return self.options.longest
        return self.spans.cache_size(max(known))

    def farthest(self, known: Sequence[float] | None) -> int:
        """How many places before a token take part in its attention."""
        return self.columns(known) if self.options.published_mask else max(self.reach(known))

    def columns(self, known: Sequence[float] | None) -> int:
        """How many distances the published code computes."""
        if self.spans is None or known is None:
            return self.options.longest
        return published_columns(max(known), self.spans.options.ramp, self.options.longest)

    # --- whole blocks -------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor | None = None,
        known: Sequence[float] | None = None,
        memory_length: int | None = None,
    ) -> Tensor:
        """Attend over memory and x.

        Args:
            known: the spans in tokens as numbers, (H,) or one for all; None: fixed spans, or those of tokens.
            memory_length: places before x at most, if fewer than spans need: zeros before the stream count, too.

        Returns:
            (B, M, C).
        """
        return self.attend(x, positions, memory, known, memory_length)[0]

    def fill(self, x: Tensor, positions: Tensor, state: LayerState, known: Sequence[float] | None) -> Tensor:
        """:meth:`forward` without memory, leaving empty caches as if the tokens had come one by one."""
        out, k, v = self.attend(x, positions, None, known)
        for (heads, _), cache in zip(state.groups, state.caches, strict=True):
            cache.append(_heads(k, heads), _heads(v, heads))
        return out

    def attend(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor | None,
        known: Sequence[float] | None,
        memory_length: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`forward`, and the keys and values (B, H, M, d) of x."""
        q, k, v = self.split(x)
        spans = None if self.spans is None else self.spans(x)
        if spans is not None and spans.dim() > 1:
            known = spans.detach().amax((0, 2)).tolist()
        memory = self._padded(x, memory, known, memory_length)
        if self.options.published_mask and spans is not None:
            old = [] if memory is None else self._project(memory[:, -self.columns(known) :], None)
            keys, values = (torch.cat([*one, new], 2) for one, new in zip(_pairs(old), (k, v), strict=True))
            out = self._published(q, keys, values, positions, spans, known)
        else:
            groups = self.groups(known, x.size(0))
            outs = [self._group(q, k, v, positions, spans, memory, known, *group) for group in groups]
            out = outs[0] if len(outs) == 1 else _in_order(outs, groups)
        return self.merge(out), k, v

    def groups(self, known: Sequence[float] | None, rows: int) -> Groups:
        """Heads that are computed together, with the distances that they need."""
        found = head_groups(self.reach(known), rows)
        return [(None if len(heads) == self.heads else heads, width) for heads, width in found]

    def _group(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        spans: Tensor | None,
        memory: Tensor | None,
        known: Sequence[float] | None,
        heads: list[int] | None,
        width: int,
    ) -> Tensor:
        """(B, G, M, d) of some heads; only what they see of memory is projected, for them alone."""
        q, k, v = (_heads(x, heads) for x in (q, k, v))
        if memory is not None and memory.size(1):
            old = self._project(memory[:, max(0, memory.size(1) - width) :], heads)
            k, v = torch.cat([old[0].to(k.dtype), k], 2), torch.cat([old[1].to(v.dtype), v], 2)
        ramp, constant = 1, self.persistent()
        if heads is not None:
            constant = None if constant is None else (constant[0][heads], constant[1][heads])
            known = known if known is None or len(known) == 1 else [known[head] for head in heads]
            if spans is not None and spans.numel() > 1:
                spans = spans[:, heads] if spans.dim() > 1 else spans[heads]
        if self.spans is not None:
            ramp = self.spans.options.ramp
        rate = self.dropout_now()
        more = {"known_spans": known, "constant": constant, "dropout_p": rate}
        return span_attention(q, k, v, positions, spans, ramp, **more)  # type: ignore[arg-type]

    def _project(self, memory: Tensor, heads: list[int] | None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, L, d) of remembered places."""
        if heads is None:
            return self.split_memory(memory)
        weight = self.qkv_proj.weight.unflatten(0, (3, self.heads, self.head_dim))[1:, heads]
        both = linear(memory, weight.flatten(0, 2)).unflatten(-1, (2, len(heads), self.head_dim))
        k, v = both.permute(2, 0, 3, 1, 4)
        return k, v

    def _published(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        spans: Tensor,
        known: Sequence[float] | None,
    ) -> Tensor:
        assert self.spans is not None
        table = positions[: self.columns(known)]
        more = {"constant": self.persistent(), "dropout_p": self.dropout_now()}
        return masked_after_softmax(q, k, v, table, spans, self.spans.options.ramp, **more)  # type: ignore[arg-type]

    # --- before the stream --------------------------------------------------------------------------------------

    def _zeros(self, known: Sequence[float] | None) -> int:
        """Places before the stream that are attended to."""
        return self.farthest(known) if self.options.zeros else 0

    def _padded(
        self, x: Tensor, memory: Tensor | None, known: Sequence[float] | None, most: int | None
    ) -> Tensor | None:
        """Memory with zeros in front, if places that nothing stands at are attended to (``--empty-cache zeros``)."""
        wanted = self._zeros(known) if most is None else min(self._zeros(known), most)
        missing = wanted - (0 if memory is None else memory.size(1))
        if memory is not None:
            memory = memory.to(x.dtype)
        if missing <= 0:
            return memory
        zeros = x.new_zeros(x.size(0), missing, x.size(2))
        return zeros if memory is None else torch.cat([zeros, memory], 1)

    # --- token by token -----------------------------------------------------------------------------------------

    def empty_state(self, rows: int, known: Sequence[float] | None, most: int | None = None) -> LayerState:
        """Caches that hold nothing (or zeros, see :meth:`_padded`) for decoding ``rows`` rows.

        most: places to remember, if fewer than spans need.
        """
        groups: Groups = [(None, self.columns(known))] if self.options.published_mask else self.groups(known, rows)
        groups = [(heads, width if most is None else min(width, most)) for heads, width in groups]
        state = LayerState(groups, [WindowCache(window=max(1, width)) for _, width in groups])
        zeros = self._zeros(known)
        if zeros:
            for (heads, width), cache in zip(groups, state.caches, strict=True):
                size = (rows, self.heads if heads is None else len(heads), min(zeros, width), self.head_dim)
                cache.append(*(self.qkv_proj.weight.new_zeros(size) for _ in range(2)))
        return state

    def step(self, x: Tensor, positions: Tensor, state: LayerState) -> Tensor:
        """x (R, C): a new state for each row of the caches, which then hold its keys."""
        x = x.unsqueeze(1)
        q, k, v = self.split(x)
        spans, constant = None if self.spans is None else self.spans(x), self.persistent()
        outs = []
        for (heads, width), cache in zip(state.groups, state.caches, strict=True):
            here = spans
            if heads is not None and spans is not None and spans.numel() > 1:
                here = spans[:, heads] if spans.dim() > 1 else spans[heads]
            more = constant if constant is None or heads is None else (constant[0][heads], constant[1][heads])
            outs.append(self._step(_heads(q, heads), cache if width else None, positions, here, more))
            cache.append(_heads(k, heads), _heads(v, heads))
        out = outs[0] if len(outs) == 1 else _in_order(outs, state.groups)
        return self.merge(out).squeeze(1)

    def _step(
        self,
        q: Tensor,
        cache: WindowCache | None,
        positions: Tensor,
        spans: Tensor | None,
        constant: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if cache is not None and cache.longest:
            keys, values, _ = cache.select_rows()
        else:
            keys = values = q[:, :, :0]
        if spans is None or self.spans is None:
            return span_attention_step(q, keys, values, positions, constant=constant)
        ramp = self.spans.options.ramp
        if self.options.published_mask:
            keys, values = (torch.cat([one.to(q.dtype), torch.zeros_like(q)], 2) for one in (keys, values))
            table = positions[: keys.size(2)]
            return masked_after_softmax(q, keys, values, table, spans, ramp, constant=constant)
        if spans.dim() > 1:
            seen = span_width(float(spans.max()), ramp, self.options.longest)
            keys, values = (one[:, :, max(0, one.size(2) - seen) :] for one in (keys, values))
        return span_attention_step(q, keys, values, positions, spans, ramp, constant=constant)


def _heads(x: Tensor, heads: list[int] | None) -> Tensor:
    """(B, H, ...) -> (B, G, ...)"""
    if heads is None:
        return x
    if heads == list(range(heads[0], heads[-1] + 1)):
        return x[:, heads[0] : heads[-1] + 1]
    return x[:, heads]


def _in_order(outs: list[Tensor], groups: Groups) -> Tensor:
    """Outputs (B, G, M, d) of each group -> (B, H, M, d), which heads merge from by a view."""
    order = [head for heads, _ in groups for head in heads or ()]
    places = sorted(range(len(order)), key=lambda place: order[place])
    return torch.cat([out.transpose(1, 2) for out in outs], 2)[:, :, places].transpose(1, 2)


def _pairs(both: Sequence[Tensor]) -> list[list[Tensor]]:
    return [[one] for one in both] if both else [[], []]
