"""What the decoders of language models share: decoding with caches; and, over a stream, all but the layers.

Shapes: B batch, T tokens, R rows (hypotheses), C width, V types. Masks: True = pad; pads stand at the right, where
causality hides them (rows that are left-padded are moved first).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn
from torch.nn.functional import dropout

from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.modules.adaptive_softmax import (
    AdaptiveOptions,
    CleanAdaptiveInput,
    ExactAdaptiveSoftmax,
    reset_embedding,
)
from fairseq_efficient.precision import cpu_bf16_autocast

_STATE = "decoding"


@dataclass
class DecodingState:
    """What belongs to the hypotheses: caches of the layers in order, one row each, and how many tokens were read.

    plan: what the decoder settled at the first token for all that follow.
    """

    caches: list[Any]
    plan: Any = None
    seen: int = 0

    def reorder(self, new_order: Tensor) -> None:
        """Row i becomes what row ``new_order[i]`` was; rows may repeat, move or go."""
        for cache in self.caches:
            cache.reorder(new_order)

    def size_bytes(self) -> int:
        return sum(cache.size_bytes() for cache in self.caches)


class CausalDecoder(FairseqIncrementalDecoder):
    """Reads a prompt at once or token by token; the state in between is what :meth:`empty_state` returns, with ``seen``
    and ``reorder`` as :class:`DecodingState` has them."""

    def __init__(self, dictionary: Any):
        super().__init__(dictionary)
        self.pad: int = dictionary.pad()
        self.num_updates = 0

    def empty_state(self, rows: int) -> Any:
        raise NotImplementedError

    def fill(self, tokens: Tensor, state: Any) -> Tensor:
        """Read tokens (R, n) without pads at once into an empty state; states (R, n, C) for the output, of which each
        has seen what it would have seen if tokens came one by one."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Read one token per row (R,); states (R, C) for the output."""
        raise NotImplementedError

    def can_fill(self) -> bool:
        """Whether :meth:`fill` gives what steps would give."""
        return True

    def incremental(self, tokens: Tensor, incremental_state: Any) -> Tensor:
        """States (R, n, C) of those of ``tokens`` that were not read before; the first call reads all."""
        state = self.get_incremental_state(incremental_state, _STATE)
        if state is None:
            state = self.empty_state(tokens.size(0))
            self.set_incremental_state(incremental_state, _STATE, state)
            if tokens.size(1) > 1 and self.can_fill():
                state.seen = tokens.size(1)
                return self.fill(tokens, state)
        new = []
        for place in range(state.seen, tokens.size(1)):
            new.append(self.step(tokens[:, place], state))
            state.seen += 1
        return torch.stack(new, 1)

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> None:
        state = self.get_incremental_state(incremental_state, _STATE)
        if state is not None:
            state.reorder(new_order)

    def set_num_updates(self, num_updates: int) -> None:
        self.num_updates = num_updates

    def max_positions(self) -> int:
        """No limit: positions are relative."""
        return ANY_LENGTH


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Plain values of the flags that every decoder of a stream has."""

    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    emb_dropout: float = 0.0
    checkpoint: bool = False
    cpu_bf16: bool = False


class StreamDecoder(CausalDecoder):
    """The decoder of a :class:`StreamLanguageModel`. A subclass builds its layers between :meth:`build_input` and
    :meth:`build_output` (or after both), and runs them in :meth:`read`, ``fill`` and ``step`` on what :meth:`embed`
    returns.

    Attributes:
        scale: of embeddings. decoding_memory: tokens to remember in incremental decoding, if not the layers' choice.
    """

    softmax: Any = ExactAdaptiveSoftmax
    options: Any

    def __init__(self, dictionary: Any, options: StreamOptions, dim: int):
        super().__init__(dictionary)
        self.options, self.dim, self.scale = options, dim, dim**0.5
        self.embed_tokens: Any = None
        self.output_projection: Any = None
        self.adaptive_softmax: Any = None
        self.decoding_memory: int | None = None

    # --- both ends ------------------------------------------------------------------------------------------------

    def build_input(self) -> None:
        o, types = self.options.adaptive, len(self.dictionary)
        pad: Any = self.pad if self.pad < types else None  # an original's ids have none
        if o.input_cutoffs:
            self.embed_tokens = CleanAdaptiveInput(types, pad, self.dim, o.input_factor, o.input_cutoffs)
        else:
            self.embed_tokens = self.plain_input(types, pad)

    def build_output(self) -> None:
        o, types = self.options.adaptive, len(self.dictionary)
        if o.cutoffs:
            self.adaptive_softmax = self.softmax(
                types, self.dim, list(o.cutoffs), o.dropout, self.pad, factor=o.factor,
                adaptive_inputs=self.embed_tokens if o.tie_weights else None, tie_proj=o.tie_projections,
                cpu_bf16=self.options.cpu_bf16,
            )  # fmt: skip
            return
        self.output_projection = self.plain_output(types)
        if o.tie_weights:
            self.output_projection.weight = self.embed_tokens.weight

    def plain_input(self, types: int, pad: int | None) -> nn.Embedding:
        """The embedding where it is not adaptive."""
        embedding = nn.Embedding(types, self.dim, pad)
        reset_embedding(embedding)
        return embedding

    def plain_output(self, types: int) -> nn.Linear:
        """The projection where there is no adaptive softmax."""
        projection = nn.Linear(self.dim, types, bias=False)
        nn.init.normal_(projection.weight, 0.0, self.dim**-0.5)
        return projection

    def checkpointed(self, layers: Iterable[nn.Module]) -> Any:
        """The layers as a module, each with activation checkpointing if that is wanted."""
        return nn.ModuleList(checkpoint_wrapper(one) if self.options.checkpoint else one for one in layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (...) -> (..., C)"""
        x = self.embed_tokens(tokens)
        return dropout(x * self.scale if self.scale != 1 else x, self.options.emb_dropout, self.training)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """(B, T, C) -> logits (B, T, V); unchanged if an adaptive softmax reads them."""
        return features if self.adaptive_softmax is not None else self.output_projection(features)

    # --- whole blocks of tokens -------------------------------------------------------------------------------------

    def read(
        self, tokens: Tensor, memory: Sequence[Tensor] | None, memory_length: int | None, **flags: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Tokens (B, T), pads at the right -> states (B, T, C) for the output, and extras, ``memory`` among them."""
        raise NotImplementedError

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        memory: Sequence[Tensor] | None = None,
        memory_length: int | None = None,
        **flags: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) for the token after each, and extras. With adaptive softmax: its input (B, T, C).

        Args:
            prev_output_tokens: (B, T). With ``incremental_state``: all tokens so far, of which the first call reads
                all, and later calls those that are new; rows of the result are of the tokens read.
            memory: what ``extras["memory"]`` was for the tokens before.
            memory_length: tokens to remember at most, instead of the layers' choice.
            flags: for :meth:`read`.

        Returns:
            logits, and ``attn``, and the extras of :meth:`read`.
        """
        with cpu_bf16_autocast(self.options.cpu_bf16, prev_output_tokens.device):
            if incremental_state is not None:
                return self.output_layer(self.incremental(prev_output_tokens, incremental_state)), {"attn": [None]}
            order, back = alignment(prev_output_tokens, self.pad, self.training)
            x, extra = self.read(moved(prev_output_tokens, order), memory, memory_length, **flags)
            return self.output_layer(moved(x, back)), {"attn": [None], **extra}


def alignment(tokens: Tensor, pad: int, training: bool) -> tuple[Tensor | None, Tensor | None]:
    """Orders (B, T) for :func:`moved` that bring all pads of tokens (B, T) to the right, and back; None where no pad is
    at the left.

    The trainer's batches are never left-padded, so a GPU is not asked in training.
    """
    if (training and tokens.is_cuda) or not bool(tokens[:, :1].eq(pad).any()):
        return None, None
    order = tokens.eq(pad).to(torch.uint8).argsort(dim=1, stable=True)
    return order, order.argsort(1)


def moved(x: Any, order: Tensor | None) -> Any:
    """x (B, T) or (B, T, C) with the places of each row in ``order`` (B, T); as it is if one of both is None."""
    if x is None or order is None:
        return x
    return x.gather(1, order if x.dim() == 2 else order.unsqueeze(-1).expand_as(x))
