"""The sequential transformer: a language model over blocks of tokens with layer inputs remembered.

Shapes: B rows, T tokens, C width, V types. Masks: True = pad; pads stand at the right, where causality hides them (rows
that are left-padded are moved first).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn
from torch.nn.functional import dropout

from adaptive_span.attention import LayerState
from adaptive_span.layers import Layer, LayerOptions
from adaptive_span.state_dict import check_weights
from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.modules.adaptive_softmax import CleanAdaptiveInput, ProjectedAdaptiveSoftmax
from fairseq_efficient.modules.stream_language_model import left_aligned
from fairseq_efficient.precision import cpu_bf16_autocast
from fairseq_efficient.stream_memory import extend

Known = list[list[float] | None]  # the spans of each layer as numbers; None where they are fixed or those of tokens


@dataclass(frozen=True)
class AdaptiveOptions:
    """Adaptive input and softmax; empty cutoffs mean there is none."""

    cutoffs: tuple[int, ...] = ()
    factor: float = 4.0
    dropout: float = 0.0
    input_cutoffs: tuple[int, ...] = ()
    input_factor: float = 4.0
    tie_weights: bool = False
    tie_projections: bool = False


@dataclass(frozen=True)
class DecoderOptions:
    """Plain values of the flags; see :mod:`adaptive_span.config`."""

    layer: LayerOptions
    layers: int
    emb_dropout: float = 0.0
    span_loss: float = 0.0
    adaptive: AdaptiveOptions = AdaptiveOptions()
    checkpoint: bool = False
    cpu_bf16: bool = False


@dataclass
class DecodingState:
    """Caches of the layers in order, and how many tokens were read. ``known``: see :meth:`SequentialDecoder.known`."""

    layers: list[LayerState]
    known: Known
    seen: int = 0

    def reorder(self, new_order: Tensor) -> None:
        """Row i becomes what row ``new_order[i]`` was; rows may repeat, move or go."""
        for layer in self.layers:
            layer.reorder(new_order)

    def size_bytes(self) -> int:
        return sum(layer.size_bytes() for layer in self.layers)


class SequentialDecoder(FairseqIncrementalDecoder):
    """Layers that remember their inputs, one table of positions for all (section 2 of both papers)."""

    def __init__(self, dictionary: Any, options: DecoderOptions):
        super().__init__(dictionary)
        o = self.options = options
        attention, io = o.layer.attention, o.adaptive
        dim, types = attention.dim, len(dictionary)
        self.pad: int = dictionary.pad()
        pad: Any = self.pad if self.pad < types else None  # an original's ids have none
        adaptive = None
        if io.input_cutoffs:
            adaptive = CleanAdaptiveInput(types, pad, dim, io.input_factor, io.input_cutoffs)
        self.embed_tokens: Any = adaptive or nn.Embedding(types, dim, pad)
        self.scale = dim**0.5 if adaptive is not None else 1.0
        self.positions = nn.Parameter(torch.randn(attention.longest, dim // attention.heads))  # by ascending distance
        self.decoding_memory: int | None = None  # tokens to remember in incremental decoding, if fewer than spans need
        layers = [Layer(o.layer) for _ in range(o.layers)]
        self.layers: Any = nn.ModuleList(checkpoint_wrapper(one) if o.checkpoint else one for one in layers)
        self.output_projection: Any = None
        if io.cutoffs:
            self.adaptive_softmax: Any = ProjectedAdaptiveSoftmax(
                types, dim, list(io.cutoffs), io.dropout, self.pad, factor=io.factor,
                adaptive_inputs=adaptive if io.tie_weights else None, tie_proj=io.tie_projections,
                cpu_bf16=o.cpu_bf16,
            )  # fmt: skip
        else:
            self.output_projection = nn.Linear(dim, types)

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

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        memory: Sequence[Tensor] | None = None,
        memory_length: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) for the token after each, and extras. With adaptive softmax: its input (B, T, C).

        Args:
            prev_output_tokens: (B, T). With ``incremental_state``: all tokens so far, of which the first call reads
                all, and later calls those that are new; rows of the result are of the tokens read.
            memory: what ``extras["memory"]`` was for the tokens before: inputs (B, L, C) of each layer.
            memory_length: tokens to remember at most, if fewer than the spans need.

        Returns:
            logits, and ``attn``, ``memory``, ``aux`` (the span loss of a token), ``spans`` (of each layer's heads, in
            tokens; those of tokens on average).
        """
        with cpu_bf16_autocast(self.options.cpu_bf16, prev_output_tokens.device):
            if incremental_state is not None:
                return self.output_layer(self._incremental(prev_output_tokens, incremental_state)), {"attn": [None]}
            tokens, back = left_aligned(prev_output_tokens, self.pad, self.training)
            known = self.known()
            x, inputs = self.extract(tokens, memory, known, memory_length)
            extra: dict[str, Any] = {"attn": [None], "memory": self._remember(memory, inputs, known, memory_length)}
            extra.update(self._about_spans(inputs, known, tokens.eq(self.pad)))
            if back is not None:
                x = x.gather(1, back.unsqueeze(-1).expand_as(x))
            return self.output_layer(x), extra

    def extract(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor] | None = None,
        known: Known | None = None,
        memory_length: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """States (B, T, C) that :meth:`output_layer` reads, and the input of each layer."""
        x, inputs = self._embed(tokens), []
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

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        return dropout(x * self.scale if self.scale != 1 else x, self.options.emb_dropout, self.training)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """(B, T, C) -> logits (B, T, V); unchanged if an adaptive softmax reads them."""
        return features if self.adaptive_softmax is not None else self.output_projection(features)

    # --- incremental decoding -----------------------------------------------------------------------------------

    def _incremental(self, tokens: Tensor, incremental_state: Any) -> Tensor:
        state: DecodingState | None = self.get_incremental_state(incremental_state, "spans")
        if state is None:
            known, most = self.known(), self.decoding_memory
            pairs = zip(self.layers, known, strict=True)
            layers = [layer.self_attn.empty_state(tokens.size(0), one, most) for layer, one in pairs]
            state = DecodingState(layers, known)
            self.set_incremental_state(incremental_state, "spans", state)
            whole = most is None or most >= self.options.layer.attention.longest
            if tokens.size(1) > 1 and whole:  # else a block would see more than its tokens one by one
                return self._prefill(tokens, state)
        new = [self._step(tokens[:, place], state) for place in range(state.seen, tokens.size(1))]
        return torch.stack(new, 1)

    def _prefill(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read tokens (R, n) without pads at once; each sees what it would see if they came one by one."""
        x = self._embed(tokens)
        for layer, cache, known in zip(self.layers, state.layers, state.known, strict=True):
            x = layer.fill(x, self.positions, cache, known)
        state.seen = tokens.size(1)
        return x

    def _step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read one token per row (R,); states (R, C)."""
        x = self._embed(tokens)
        for layer, cache, known in zip(self.layers, state.layers, state.known, strict=True):
            x = layer.step(x, self.positions, cache, known)
        state.seen += 1
        return x

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> None:
        state: DecodingState | None = self.get_incremental_state(incremental_state, "spans")
        if state is not None:
            state.reorder(new_order)

    # --- what fairseq asks --------------------------------------------------------------------------------------

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """UserError for the weights of another shape."""
        prefix = f"{name}."
        mine = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        check_weights(self.options.layer, self.options.layers, mine)
        return state_dict

    def set_num_updates(self, num_updates: int) -> None:
        """Spans stay in range also where no task brings them back after a step."""
        self.clamp_spans_()

    def max_positions(self) -> int:
        """No limit: positions are relative, and what is beyond the span is forgotten."""
        return ANY_LENGTH
