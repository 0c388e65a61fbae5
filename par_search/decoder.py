"""Transformer-XL as a chain of single blocks: attention where the layout says so, with memory there only.

Shapes: B batch, T tokens, M remembered tokens, C width, V types. Masks: True = pad; pads stand at the right, where
causality hides them (rows that are left-padded are moved first).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.modules.adaptive_softmax import CleanAdaptiveInput, ExactAdaptiveSoftmax, reset_embedding
from fairseq_efficient.modules.relative_self_attention import sinusoids
from fairseq_efficient.modules.stream_language_model import left_aligned
from fairseq_efficient.precision import cpu_bf16_autocast
from fairseq_efficient.state import WindowCache
from par_search.blocks import AttentionBlock, BlockOptions, FeedForwardBlock, Reach

LEAST_POSITIONS = 1024  # in the table; more are computed when they are needed
Chain = list[tuple[int | None, Any]]  # blocks in order; attention with its place in the memory


@dataclass(frozen=True)
class DecoderOptions:
    """Plain values of the flags; see :mod:`par_search.config`."""

    block: BlockOptions
    mem_len: int = 0
    same_length: bool = False
    tokens: int = 0  # of a block in training, 0 if unknown
    cutoffs: tuple[int, ...] = ()
    softmax_factor: float = 4.0
    softmax_dropout: float = 0.0
    input_cutoffs: tuple[int, ...] = ()
    input_factor: float = 4.0
    tie_weights: bool = False
    tie_projections: bool = False
    checkpoint: bool = False
    cpu_bf16: bool = False


@dataclass
class DecodingState:
    """Keys and values of the attention blocks in order, one row per hypothesis, and how many tokens were read."""

    caches: list[WindowCache]
    seen: int = 0

    def reorder(self, new_order: Tensor) -> None:
        """Row i becomes what row ``new_order[i]`` was; rows may repeat, move or go."""
        for cache in self.caches:
            cache.reorder(new_order)

    def size_bytes(self) -> int:
        return sum(cache.size_bytes() for cache in self.caches)


class BlockDecoder(FairseqIncrementalDecoder):
    """What the language model and the supernet share: all but the blocks. See :class:`ParDecoder`.

    Args:
        ends: a net of the same sizes whose embedding and softmax are used.
    """

    def __init__(self, dictionary: Any, options: DecoderOptions, ends: "BlockDecoder | None" = None):
        super().__init__(dictionary)
        o = self.options = options
        self.pad: int = dictionary.pad()
        self.scale = o.block.dim**0.5
        self.embed_tokens: Any = None
        self.output_projection: Any = None
        self.adaptive_softmax: Any = None
        if ends is None:
            self._build_ends(len(dictionary), o)
        else:
            self.embed_tokens, self.output_projection = ends.embed_tokens, ends.output_projection
            self.adaptive_softmax = ends.adaptive_softmax
        self.layer_norm = nn.LayerNorm(o.block.dim) if o.block.normalize_before else None
        rows = max(o.mem_len + o.tokens, LEAST_POSITIONS)
        self.register_buffer("position_table", sinusoids(rows, o.block.dim), persistent=False)
        self.num_updates = 0
        self.decoding_memory: int | None = None  # tokens to remember in incremental decoding, instead of mem_len

    def _build_ends(self, types: int, o: DecoderOptions) -> None:
        dim, adaptive = o.block.dim, None
        if o.input_cutoffs:
            adaptive = CleanAdaptiveInput(types, self.pad, dim, o.input_factor, o.input_cutoffs)
        self.embed_tokens = adaptive or nn.Embedding(types, dim, self.pad)
        if adaptive is None:
            reset_embedding(self.embed_tokens)
        if o.cutoffs:
            self.adaptive_softmax = ExactAdaptiveSoftmax(
                types, dim, list(o.cutoffs), o.softmax_dropout, self.pad, factor=o.softmax_factor,
                adaptive_inputs=adaptive if o.tie_weights else None, tie_proj=o.tie_projections,
                cpu_bf16=o.cpu_bf16,
            )  # fmt: skip
            return
        self.output_projection = nn.Linear(dim, types, bias=False)
        nn.init.normal_(self.output_projection.weight, 0.0, dim**-0.5)
        if o.tie_weights:
            self.output_projection.weight = self.embed_tokens.weight

    # --- which blocks -------------------------------------------------------------------------------------------

    def chain(self, layout: str | None = None, noise: tuple[Tensor] | None = None) -> Chain:
        """The blocks that a token passes; ``layout`` and ``noise`` are for a supernet, see :meth:`forward`."""
        raise NotImplementedError

    def attention_count(self) -> int:
        """How many blocks attend outside training."""
        raise NotImplementedError

    def slots(self) -> list[AttentionBlock]:
        """The attention block of each place in the memory."""
        raise NotImplementedError

    def run(
        self, x: Tensor, memory: Sequence[Tensor] | None, reach: Reach, chain: Chain
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, C) through ``chain``; places of the memory that no block of it uses come back empty."""
        slots = self.slots()
        after: list[Tensor | None] = [None] * len(slots)
        for slot, block in chain:
            if slot is None:
                x = block(x)
            else:
                x, after[slot] = block(x, None if memory is None else memory[slot], reach)
        kept = [slots[i].no_memory(x.size(0)) if one is None else one for i, one in enumerate(after)]
        return x, kept

    # --- whole blocks of tokens ---------------------------------------------------------------------------------

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        memory: Sequence[Tensor] | None = None,
        memory_length: int | None = None,
        layout: str | None = None,
        noise: tuple[Tensor] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) for the token after each, and extras. With adaptive softmax: its input (B, T, C).

        Args:
            prev_output_tokens: (B, T). With ``incremental_state``: all tokens so far, of which the first call reads
                all, and later calls those that are new; rows of the result are of the tokens read.
            memory: what ``extras["memory"]`` was for the tokens before; see :mod:`par_search.blocks`.
            memory_length: tokens to remember, instead of ``--mem-len``.
            layout: of a supernet, what each block is, instead of what it learned.
            noise: of a supernet, the draw (L, 3) of a training step, instead of a new one; not one for each row.

        Returns:
            logits, and ``attn``, ``memory``.
        """
        with cpu_bf16_autocast(self.options.cpu_bf16, prev_output_tokens.device):
            if incremental_state is not None:
                return self.output_layer(self._incremental(prev_output_tokens, incremental_state)), {"attn": [None]}
            tokens, back = left_aligned(prev_output_tokens, self.pad, self.training)
            x, kept = self.extract(tokens, memory, memory_length, self.chain(layout, noise))
            if back is not None:
                x = x.gather(1, back.unsqueeze(-1).expand_as(x))
            return self.output_layer(x), {"attn": [None], "memory": kept}

    def extract(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor] | None = None,
        memory_length: int | None = None,
        chain: Chain | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """States (B, T, C) that :meth:`output_layer` reads, and the memory that they leave."""
        length = self.options.mem_len if memory_length is None else memory_length
        remembered = max((one.size(-2) for one in memory), default=0) if memory is not None else 0
        x = self._embed(tokens)
        window = length if self.options.same_length and length else None
        reach = Reach(self._positions(remembered + tokens.size(1), x), length, window)
        x, kept = self.run(x, memory, reach, self.chain() if chain is None else chain)
        return self._end(x), kept

    def _embed(self, tokens: Tensor) -> Tensor:
        return dropout(self.embed_tokens(tokens) * self.scale, self.options.block.dropout, self.training)

    def _positions(self, count: int, like: Tensor) -> Tensor:
        return dropout(self._table(count, like), self.options.block.dropout, self.training)

    def _table(self, count: int, like: Tensor) -> Tensor:
        table: Tensor = self.position_table
        if table.size(0) < count or like.dtype == torch.float64:
            table = sinusoids(
                count, self.options.block.dim, like.device, torch.promote_types(like.dtype, torch.float32)
            )
        return table[:count].to(like.dtype)

    def _end(self, x: Tensor) -> Tensor:
        return x if self.layer_norm is None else self.layer_norm(x)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """(B, T, C) -> logits (B, T, V); unchanged if an adaptive softmax reads them."""
        return features if self.adaptive_softmax is not None else self.output_projection(features)

    def nll(self, output: Tensor, target: Tensor, reduce: bool = True) -> Tensor:
        """Negative log-likelihood (nats, fp32 or better) of target (B, T) by what :meth:`forward` returned; pads count
        nothing. The sum; with ``reduce=False`` (B * T,)."""
        if self.adaptive_softmax is not None:
            loss: Tensor = self.adaptive_softmax.loss(output, target, reduce)
            return loss
        logits = output.flatten(0, 1) if output.dtype == torch.float64 else output.flatten(0, 1).float()
        how = "sum" if reduce else "none"
        return cross_entropy(logits, target.flatten(), ignore_index=self.pad, reduction=how)

    def prepare_positions(self, count: int) -> None:
        """Project the positions of ``count`` keys before evaluation; with more keys it is done as they come.

        For weights that do not change any more: fairseq's tools call it through ``prepare_for_inference_``.
        """
        with cpu_bf16_autocast(self.options.cpu_bf16, self.position_table.device), torch.no_grad():
            for block in self.slots():
                block.prepare_positions(self._table(count, block.content_bias))

    # --- incremental decoding -----------------------------------------------------------------------------------

    def _incremental(self, tokens: Tensor, incremental_state: Any) -> Tensor:
        state: DecodingState | None = self.get_incremental_state(incremental_state, "blocks")
        chain = self.chain()
        if state is None:
            state = DecodingState([WindowCache(window=self._window()) for slot, _ in chain if slot is not None])
            self.set_incremental_state(incremental_state, "blocks", state)
            if tokens.size(1) > 1:
                return self._prefill(tokens, state, chain)
        new = [self._step(tokens[:, place], state, chain) for place in range(state.seen, tokens.size(1))]
        return torch.stack(new, 1)

    def _window(self) -> int:
        """Keys that a token sees in decoding, itself among them: as many as the last one of a block in training.

        ``decoding_memory``: as in evaluation with blocks of one token.
        """
        o = self.options
        length = o.mem_len if self.decoding_memory is None else self.decoding_memory
        if o.same_length and length:
            return length
        return length + (o.tokens or 1 if self.decoding_memory is None else 1)

    def _prefill(self, tokens: Tensor, state: DecodingState, chain: Chain) -> Tensor:
        """Read tokens (R, n) without pads at once; each sees what it would see if they came one by one."""
        x = self._embed(tokens)
        reach = Reach(self._positions(tokens.size(1), x))
        caches = iter(state.caches)
        for slot, block in chain:
            x = block(x) if slot is None else block.fill(x, reach, next(caches))
        state.seen = tokens.size(1)
        return self._end(x)

    def _step(self, tokens: Tensor, state: DecodingState, chain: Chain) -> Tensor:
        """Read one token per row (R,); states (R, C)."""
        x = self._embed(tokens)
        caches = iter(state.caches)
        for slot, block in chain:
            x = block(x) if slot is None else block.step(x, next(caches))
        state.seen += 1
        return self._end(x)

    def reorder_incremental_state(self, incremental_state: Any, new_order: Tensor) -> None:
        state: DecodingState | None = self.get_incremental_state(incremental_state, "blocks")
        if state is not None:
            state.reorder(new_order)

    # --- what fairseq asks --------------------------------------------------------------------------------------

    def set_num_updates(self, num_updates: int) -> None:
        self.num_updates = num_updates

    def max_positions(self) -> int:
        """No limit: positions are relative."""
        return ANY_LENGTH


class ParDecoder(BlockDecoder):
    """Language model over tokens (B, T) whose blocks are what ``layout`` says; memory for attention blocks only."""

    def __init__(self, dictionary: Any, options: DecoderOptions, layout: str, ends: BlockDecoder | None = None):
        super().__init__(dictionary, options, ends)
        self.layout = layout
        kinds = {"a": AttentionBlock, "f": FeedForwardBlock}
        blocks = [kinds[kind](options.block) if kind in kinds else nn.Identity() for kind in layout]
        self.blocks = nn.ModuleList(checkpoint_wrapper(one) if options.checkpoint else one for one in blocks)

    def chain(self, layout: str | None = None, noise: tuple[Tensor] | None = None) -> Chain:
        if layout is not None:
            raise ValueError("the layout of a par_lm is fixed")
        slot = itertools.count()
        pairs = zip(self.blocks, self.layout, strict=True)
        return [(next(slot) if kind == "a" else None, block) for block, kind in pairs if kind != "i"]

    def slots(self) -> list[AttentionBlock]:
        return [block for block in self.blocks if isinstance(block, AttentionBlock)]

    def attention_count(self) -> int:
        return self.layout.count("a")

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """UserError for the weights of other blocks."""
        found = layout_of(state_dict, name)
        if found is None:
            raise UserError(
                "the checkpoint holds a par_supernet, not a par_lm: derive a layout first (scripts/derive_layout.py)"
            )
        if found.rstrip("i") != self.layout.rstrip("i"):
            raise UserError(
                f"the checkpoint holds the layout {found}, the model has {self.layout}: say --layout {found}"
            )
        return state_dict


def layout_of(state_dict: dict[str, Any], name: str = "decoder") -> str | None:
    """The layout of a par_lm's weights (identity blocks at its end leave no trace); None for a par_supernet."""
    kinds: dict[int, str] = {}
    prefix = f"{name}.blocks."
    for key in state_dict:
        if key.startswith(prefix):
            number, part = key.removeprefix(prefix).split(".")[:2]
            if part in ("attention", "feed_forward"):
                return None
            if part in ("self_attn", "fc1"):
                kinds[int(number)] = "a" if part == "self_attn" else "f"
    return "".join(kinds.get(number, "i") for number in range(max(kinds, default=-1) + 1))
