"""Transformer-XL as a chain of single blocks: attention where the layout says so, with memory there only.

Shapes: B batch, T tokens, M remembered tokens, C width, V types. Masks: True = pad; pads stand at the right, where
causality hides them (rows that are left-padded are moved first).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from fairseq_efficient.errors import UserError
from fairseq_efficient.modules.relative_self_attention import sinusoids
from fairseq_efficient.modules.stream_decoder import DecodingState, StreamDecoder, StreamOptions
from fairseq_efficient.precision import cpu_bf16_autocast, wide, wide_dtype
from fairseq_efficient.state import WindowCache
from par_search.blocks import AttentionBlock, BlockOptions, FeedForwardBlock, Reach

LEAST_POSITIONS = 1024  # in the table; more are computed when they are needed
Chain = list[tuple[int | None, Any]]  # blocks in order; attention with its place in the memory


@dataclass(frozen=True)
class DecoderOptions(StreamOptions):
    """Plain values of the flags; see :mod:`par_search.config`."""

    block: BlockOptions
    mem_len: int = 0
    same_length: bool = False
    tokens: int = 0  # of a block in training, 0 if unknown


class BlockDecoder(StreamDecoder):
    """What the language model and the supernet share: all but the blocks. See :class:`ParDecoder`.

    Args:
        ends: a net of the same sizes whose embedding and softmax are used.
    """

    options: DecoderOptions

    def __init__(self, dictionary: Any, options: DecoderOptions, ends: "BlockDecoder | None" = None):
        dim = options.block.dim
        super().__init__(dictionary, options, dim)
        if ends is None:
            self.build_input()
            self.build_output()
        else:
            self.embed_tokens, self.output_projection = ends.embed_tokens, ends.output_projection
            self.adaptive_softmax = ends.adaptive_softmax
        self.layer_norm = nn.LayerNorm(dim) if options.block.normalize_before else None
        rows = max(options.mem_len + options.tokens, LEAST_POSITIONS)
        self.register_buffer("position_table", sinusoids(rows, dim), persistent=False)

    # --- which blocks -------------------------------------------------------------------------------------------

    def chain(self, layout: str | None = None, noise: tuple[Tensor] | None = None) -> Chain:
        """The blocks that a token passes; ``layout`` and ``noise`` are for a supernet, see :meth:`read`."""
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

    def read(
        self,
        tokens: Tensor,
        memory: Sequence[Tensor] | None,
        memory_length: int | None,
        layout: str | None = None,
        noise: tuple[Tensor] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :meth:`StreamDecoder.read`; what blocks remember: :mod:`par_search.blocks`.

        Args:
            memory_length: tokens to remember, instead of ``--mem-len``.
            layout: of a supernet, what each block is, instead of what it learned.
            noise: of a supernet, the draw (L, 3) of a training step, instead of a new one; not one for each row.
        """
        chain = self.chain(layout, noise)
        length = self.options.mem_len if memory_length is None else memory_length
        remembered = max((one.size(-2) for one in memory), default=0) if memory is not None else 0
        x = self.embed(tokens)
        window = length if self.options.same_length and length else None
        reach = Reach(self._positions(remembered + tokens.size(1), x), length, window)
        x, kept = self.run(x, memory, reach, chain)
        return self._end(x), {"memory": kept}

    def _positions(self, count: int, like: Tensor) -> Tensor:
        return dropout(self._table(count, like), self.options.block.dropout, self.training)

    def _table(self, count: int, like: Tensor) -> Tensor:
        table: Tensor = self.position_table
        if table.size(0) < count or like.dtype == torch.float64:
            table = sinusoids(count, self.dim, like.device, wide_dtype(like.dtype))
        return table[:count].to(like.dtype)

    def _end(self, x: Tensor) -> Tensor:
        return x if self.layer_norm is None else self.layer_norm(x)

    def nll(self, output: Tensor, target: Tensor, reduce: bool = True) -> Tensor:
        """Negative log-likelihood (nats, fp32 or better) of target (B, T) by what :meth:`forward` returned; pads count
        nothing. The sum; with ``reduce=False`` (B * T,)."""
        if self.adaptive_softmax is not None:
            loss: Tensor = self.adaptive_softmax.loss(output, target, reduce)
            return loss
        logits = wide(output.flatten(0, 1))
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

    def empty_state(self, rows: int) -> DecodingState:
        """``plan``: the chain; a cache for each of its attention blocks."""
        chain = self.chain()
        return DecodingState([WindowCache(window=self._window()) for slot, _ in chain if slot is not None], chain)

    def _window(self) -> int:
        """Keys that a token sees in decoding, itself among them: as many as the last one of a block in training.

        ``decoding_memory``: as in evaluation with blocks of one token.
        """
        o = self.options
        length = o.mem_len if self.decoding_memory is None else self.decoding_memory
        if o.same_length and length:
            return length
        return length + (o.tokens or 1 if self.decoding_memory is None else 1)

    def fill(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x, caches = self.embed(tokens), iter(state.caches)
        reach = Reach(self._positions(tokens.size(1), x))
        for slot, block in state.plan:
            x = block(x) if slot is None else block.fill(x, reach, next(caches))
        return self._end(x)

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x, caches = self.embed(tokens), iter(state.caches)
        for slot, block in state.plan:
            x = block(x) if slot is None else block.step(x, next(caches))
        return self._end(x)


class ParDecoder(BlockDecoder):
    """Language model over tokens (B, T) whose blocks are what ``layout`` says; memory for attention blocks only."""

    def __init__(self, dictionary: Any, options: DecoderOptions, layout: str, ends: BlockDecoder | None = None):
        super().__init__(dictionary, options, ends)
        self.layout = layout
        kinds = {"a": AttentionBlock, "f": FeedForwardBlock}
        blocks = [kinds[kind](options.block) if kind in kinds else nn.Identity() for kind in layout]
        self.blocks = self.checkpointed(blocks)

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
