"""The supernet: each block is attention, feed-forward and nothing at once, mixed by weights that are learned.

``m = softmax((alpha + g) / tau)`` with one draw of Gumbel noise g per block and forward, shared by batch and time;
``y = m_a A(x) + m_f F(x) + m_i x``. ``alpha`` are logits, 0 at first. Shapes: x (B, T, C), L blocks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_efficient.errors import UserError
from fairseq_efficient.ops.relaxed_onehot import gumbel_like, relaxed_onehot
from fairseq_efficient.precision import wide
from fairseq_efficient.schedules import geometric, linear
from fairseq_efficient.state import LayerCache
from par_search.blocks import AttentionBlock, BlockOptions, FeedForwardBlock, Reach
from par_search.decoder import BlockDecoder, Chain, DecoderOptions, layout_of
from par_search.layout import KINDS, parse_layout

ARCHITECTURE = "arch"  # ``param_group`` of what is not a weight: fairseq's optimizers copy this attribute


@dataclass(frozen=True)
class Temperature:
    """tau as a function of the update; nothing to save."""

    start: float = 5.0
    end: float = 0.1
    updates: int = 1
    kind: str = "exponential"

    def __call__(self, num_updates: int | None) -> float:
        """Exactly ``start`` at 0 and ``end`` from ``updates`` on; None (a model outside training) means the end."""
        schedule = geometric if self.kind == "exponential" else linear
        return schedule(self.start, self.end, self.updates, num_updates)


class SuperBlock(nn.Module):
    """Both kinds of a block, side by side."""

    def __init__(self, options: BlockOptions):
        super().__init__()
        self.attention = AttentionBlock(options)
        self.feed_forward = FeedForwardBlock(options)

    def forward(self, x: Tensor, memory: Tensor | None, reach: Reach, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture by weights (3,), and what attention remembers."""
        attended, kept = self.attention(x, memory, reach)
        return mix(weights, attended, self.feed_forward(x), x), kept


class MixedBlock:
    """A :class:`SuperBlock` with ``weights`` (3,) for one call; to be used like an attention block."""

    def __init__(self, block: Any, weights: Tensor):
        self.block, self.weights = block, weights

    def __call__(self, x: Tensor, memory: Tensor | None, reach: Reach) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.block(x, memory, reach, self.weights)
        return found

    def fill(self, x: Tensor, reach: Reach, cache: LayerCache) -> Tensor:
        return self._mix(self.block.attention.fill(x, reach, cache), x)

    def step(self, x: Tensor, cache: LayerCache) -> Tensor:
        return self._mix(self.block.attention.step(x, cache), x)

    def _mix(self, attended: Tensor, x: Tensor) -> Tensor:
        return mix(self.weights, attended, self.block.feed_forward(x), x)


class SupernetDecoder(BlockDecoder):
    """Language model over tokens (B, T) with ``blocks`` blocks of all kinds. Memory is kept for every block.

    Outside training a block is what it most probably is, and only that is computed, unless ``mixture``.
    """

    def __init__(
        self,
        dictionary: Any,
        options: DecoderOptions,
        blocks: int,
        temperature: Temperature,
        straight_through: bool = False,
        mixture: bool = False,
    ):
        super().__init__(dictionary, options)
        self.temperature, self.straight_through, self.mixture = temperature, straight_through, mixture
        self.blocks = self.checkpointed(SuperBlock(options.block) for _ in range(blocks))
        self.alpha = nn.Parameter(torch.zeros(blocks, len(KINDS)))
        self.alpha.param_group = ARCHITECTURE  # type: ignore[attr-defined]

    # --- the architecture -------------------------------------------------------------------------------------------

    @property
    def tau(self) -> float:
        return self.temperature(self.num_updates)

    def probabilities(self) -> Tensor:
        """(L, 3) of attention, feed-forward and identity, in fp32 or better, with gradient."""
        return torch.softmax(wide(self.alpha), -1)

    def entropies(self) -> Tensor:
        """(L,) of each block's choice, in nats."""
        return torch.special.entr(self.probabilities()).sum(-1)

    def layout(self) -> str:
        """What each block most probably is, identity blocks included; the first of equals."""
        return "".join(KINDS[choice] for choice in self.alpha.argmax(-1).tolist())

    # --- blocks ---------------------------------------------------------------------------------------------------

    def chain(self, layout: str | None = None, noise: tuple[Tensor] | None = None) -> Chain:
        """layout: what each block is, instead of what was learned or drawn; noise: instead of a new draw."""
        if layout is None and (self.training or self.mixture):
            pairs = zip(self.blocks, self.mixing_weights(*(noise or ())), strict=True)
            return [(number, MixedBlock(*pair)) for number, pair in enumerate(pairs)]
        layout = self.layout() if layout is None else parse_layout(layout, len(self.blocks))
        found: Chain = []
        for number, (block, kind) in enumerate(zip(self.blocks, layout, strict=True)):
            if kind != "i":
                found.append((number, block.attention) if kind == "a" else (None, block.feed_forward))
        return found

    def slots(self) -> list[AttentionBlock]:
        return [block.attention for block in self.blocks]

    def attention_count(self) -> int:
        return len(self.blocks) if self.mixture else self.layout().count("a")

    def mixing_weights(self, noise: Tensor | None = None) -> Tensor:
        """(L, 3), drawn in training, or by ``noise`` (L, 3); the probabilities outside."""
        if not self.training:
            return self.probabilities()
        noise = gumbel_like(self.alpha) if noise is None else noise
        return relaxed_onehot(self.alpha, self.tau, self.straight_through, noise)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """UserError for the weights of other blocks."""
        found = layout_of(state_dict, name)
        if found is not None:
            raise UserError(f"the checkpoint holds a par_lm of the layout {found}, not a par_supernet")
        alpha = state_dict.get(f"{name}.alpha")
        if alpha is not None and len(alpha) != len(self.blocks):
            raise UserError(
                f"the checkpoint holds a par_supernet of {len(alpha)} blocks, the model has {len(self.blocks)}: say "
                f"--decoder-blocks {len(alpha)}"
            )
        return state_dict


def inherited(state_dict: dict[str, Any], layout: str, name: str = "decoder") -> dict[str, Any]:
    """A par_lm's weights of ``layout`` (identity blocks keep their places) out of a par_supernet's."""
    kept = {"a": "attention.", "f": "feed_forward.", "i": None}
    prefix, found = f"{name}.blocks.", {}
    for key, value in state_dict.items():
        if key == f"{name}.alpha":
            continue
        if key.startswith(prefix):
            number, _, rest = key.removeprefix(prefix).partition(".")
            part = kept[layout[int(number)]]
            if part is None or not rest.startswith(part):
                continue
            key = f"{prefix}{number}.{rest.removeprefix(part)}"
        found[key] = value
    return found


def mix(weights: Tensor, *branches: Tensor) -> Tensor:
    """``sum_k weights[k] * branches[k]`` in the precision of the last branch; weights (K,), in fp32 or better.

    In few passes, with the gradient of the weights as inner products.
    """
    return _Mix.apply(weights, *branches)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *branches: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *branches)
        kind = branches[-1].dtype
        parts = weights.to(kind).unbind()
        out = branches[0].to(kind) * parts[0]
        for part, branch in zip(parts[1:], branches[1:], strict=True):
            out.addcmul_(branch.to(kind), part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *branches = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_weights = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.stack([_inner(grad, branch, weights.dtype) for branch in branches])
        parts = weights.to(grad.dtype).unbind()
        wanted = zip(parts, branches, ctx.needs_input_grad[1:], strict=True)
        return of_weights, *((grad * part).to(branch.dtype) if needs else None for part, branch, needs in wanted)


def _inner(one: Tensor, other: Tensor, kind: torch.dtype) -> Tensor:
    """Sum of products, added up in ``kind``."""
    if one.dtype == other.dtype == kind:
        return torch.dot(one.flatten(), other.flatten())
    return (one * other).sum(dtype=kind)
