"""The sequential transformer: a language model over blocks of tokens with layer inputs remembered.

Shapes: B rows, T tokens, C width, V types. Masks: True = pad; pads stand at the right, where causality hides them (rows
that are left-padded are moved first).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from adaptive_span.layers import Layer, LayerOptions
from adaptive_span.state_dict import check_weights
from fairseq_efficient.modules.adaptive_softmax import ProjectedAdaptiveSoftmax
from fairseq_efficient.modules.stream_decoder import DecodingState, StreamDecoder, StreamOptions
from fairseq_efficient.stream_memory import extend

Known = list[list[float] | None]  # the spans of each layer as numbers; None where they are fixed or those of tokens


@dataclass(frozen=True)
class DecoderOptions(StreamOptions):
    """Plain values of the flags; see :mod:`adaptive_span.config`."""

    layer: LayerOptions
    layers: int
    span_loss: float = 0.0


class SequentialDecoder(StreamDecoder):
    """Layers that remember their inputs, one table of positions for all (section 2 of both papers)."""

    softmax = ProjectedAdaptiveSoftmax
    options: DecoderOptions

    def __init__(self, dictionary: Any, options: DecoderOptions):
        attention = options.layer.attention
        super().__init__(dictionary, options, attention.dim)
        self.build_input()
        if not options.adaptive.input_cutoffs:
            self.scale = 1.0
        width = attention.dim // attention.heads
        self.positions = nn.Parameter(torch.randn(attention.longest, width))  # by ascending distance
        self.layers = self.checkpointed(Layer(options.layer) for _ in range(options.layers))
        self.build_output()

    def plain_input(self, types: int, pad: int | None) -> nn.Embedding:
        """As torch initialises it, here and below."""
        return nn.Embedding(types, self.dim, pad)

    def plain_output(self, types: int) -> nn.Linear:
        return nn.Linear(self.dim, types)

    # --- spans ----------------------------------------------------------------------------------------------------

    def known(self) -> Known:
        """Spans in tokens as numbers; the device is asked once for all layers."""
        spans = [layer.self_attn.spans for layer in self.layers]
        learned = [one for one in spans if one is not None and not one.options.by_token]
        found = [one.shares().detach() * one.options.longest for one in learned]
        if not found:
            return [None] * len(spans)
        numbers = torch.stack(found).tolist()
        return list(numbers)

    def span_widths(self) -> list[list[int]]:
        """Keys that each head of each layer sees at most, ramp included."""
        return [layer.self_attn.reach(known) for layer, known in zip(self.layers, self.known(), strict=True)]

    def clamp_spans_(self) -> None:
        for layer in self.layers:
            if layer.self_attn.spans is not None:
                layer.self_attn.spans.clamp_()

    def _about_spans(self, inputs: Sequence[Tensor], known: Known, padding_mask: Tensor) -> dict[str, Any]:
        """``aux``: the span loss ``lambda * S * mean of the shares``, summed over layers (1905.07799, 2.2); ``spans``.

        Spans of tokens count as their mean over all tokens but pads.
        """
        o = self.options.layer.attention.spans
        if o is None:
            return {}
        spans = [layer.self_attn.spans(x) for layer, x in zip(self.layers, inputs, strict=True)]
        found: Any = known
        if o.by_token:
            share = (~padding_mask).unsqueeze(1) / (~padding_mask).sum().clamp(min=1)  # (B, 1, M)
            spans = [(one * share).sum((0, 2)) for one in spans]
            found = torch.stack(spans).tolist()
        if not self.options.span_loss:
            return {"spans": found}
        return {"spans": found, "aux": {"span": self.options.span_loss * sum(one.mean() for one in spans)}}

    # --- whole blocks of tokens ---------------------------------------------------------------------------------

    def read(
        self, tokens: Tensor, memory: Sequence[Tensor] | None, memory_length: int | None, **_: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :meth:`StreamDecoder.read`; ``memory`` is inputs (B, L, C) of each layer.

        Args:
            memory_length: tokens to remember at most, if fewer than the spans need.

        Returns:
            states, and ``memory``, ``aux`` (the span loss of a token), ``spans`` (of each layer's heads, in tokens;
            those of tokens on average).
        """
        known = self.known()
        x, inputs = self.extract(tokens, memory, known, memory_length)
        kept = self._remember(memory, inputs, known, memory_length)
        return x, {"memory": kept, **self._about_spans(inputs, known, tokens.eq(self.pad))}

    def extract(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor] | None = None,
        known: Known | None = None,
        memory_length: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """States (B, T, C) that :meth:`output_layer` reads, and the input of each layer."""
        x, inputs = self.embed(tokens), []
        known = self.known() if known is None else known
        for number, (layer, spans) in enumerate(zip(self.layers, known, strict=True)):
            inputs.append(x)
            x = layer(x, self.positions, None if memory is None else memory[number], spans, memory_length)
        return dropout(x, self.options.emb_dropout, self.training), inputs

    def _remember(
        self, memory: Sequence[Tensor] | None, inputs: Sequence[Tensor], known: Known, most: int | None
    ) -> list[Tensor]:
        """The inputs of each layer that the next block may see."""
        pairs = zip(self.layers, known, strict=True)
        sizes = [layer.self_attn.cache_size(spans) for layer, spans in pairs]
        sizes = sizes if most is None else [min(size, most) for size in sizes]
        before = [None] * len(inputs) if memory is None else memory
        return [extend(*one) for one in zip(before, inputs, sizes, strict=True)]

    # --- incremental decoding -----------------------------------------------------------------------------------

    def empty_state(self, rows: int) -> DecodingState:
        """``plan``: :meth:`known`."""
        known, most = self.known(), self.decoding_memory
        pairs = zip(self.layers, known, strict=True)
        return DecodingState([layer.self_attn.empty_state(rows, one, most) for layer, one in pairs], known)

    def can_fill(self) -> bool:
        """With less memory a block would see more than its tokens one by one."""
        return self.decoding_memory is None or self.decoding_memory >= self.options.layer.attention.longest

    def fill(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x = self.embed(tokens)
        for layer, cache, known in zip(self.layers, state.caches, state.plan, strict=True):
            x = layer.fill(x, self.positions, cache, known)
        return x

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x = self.embed(tokens)
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x = layer.step(x, self.positions, cache)
        return x

    # --- what fairseq asks --------------------------------------------------------------------------------------

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """UserError for the weights of another shape."""
        prefix = f"{name}."
        mine = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        check_weights(self.options.layer, self.options.layers, mine)
        return state_dict

    def set_num_updates(self, num_updates: int) -> None:
        """Spans stay in range also where no task brings them back after a step."""
        super().set_num_updates(num_updates)
        self.clamp_spans_()
