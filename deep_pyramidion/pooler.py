"""Trainable top-k pooling between encoder layers (Pietruszka et al. 2022, section 3).

Shapes: B batch, T tokens, C model dim, k tokens kept.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fairseq_efficient.errors import UserError
from fairseq_efficient.ops.topk_halving import Pooled, topk_halving
from fairseq_efficient.precision import wide
from fairseq_efficient.schedules import geometric

LARGEST_BASE = 1e6  # powers of scores up to 1 stay far from fp32's limit


class FeedForwardScorer(nn.Sequential):
    """Linear, ReLU, linear, with a quarter of the width: states (B, T, C) -> scores (B, T, 1)."""

    def __init__(self, embed_dim: int):
        hidden = max(1, embed_dim // 4)
        super().__init__(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class TopkPooler(nn.Module):
    """One scorer for each layer that pools; state-dict names ``scorer.<layer>.*`` as in the original."""

    def __init__(
        self,
        embed_dim: int,
        widths: dict[int, int],
        arch: str = "linear",
        base: float = 20.0,
        base_final: float = 0.0,
        base_updates: int = 0,
        flip_right: bool = True,
        sort_back: bool = False,
        hard_inference: bool = False,
    ):
        """
        Args:
            widths: {encoder layer: tokens kept after it}.
            arch: ``linear`` or ``ffn``.
            base, base_final, base_updates: softmax base, and where it moves (geometrically) over that many updates.

        Raises:
            UserError: a base of 1 or less, or a final base without updates.
        """
        super().__init__()
        if base_updates < 0:
            raise UserError(f"--topk-softmax-base-updates must be at least 0, got {base_updates}")
        if not 1 < base <= LARGEST_BASE or (base_final and not 1 < base_final <= LARGEST_BASE):
            given = f"{base}" + (f" and {base_final}" if base_final else "")
            raise UserError(f"--topk-softmax-base must be greater than 1 and at most {LARGEST_BASE:g}, got {given}")
        if bool(base_final) != (base_updates > 0):
            raise UserError("--topk-softmax-base-final and --topk-softmax-base-updates go together")
        self.widths = dict(widths)
        self.base, self.base_final, self.base_updates = float(base), float(base_final or base), base_updates
        self.flip_right, self.sort_back, self.hard_inference = flip_right, sort_back, hard_inference
        make = FeedForwardScorer if arch == "ffn" else (lambda dim: nn.Linear(dim, 1))
        self.scorer = nn.ModuleDict({str(layer): make(embed_dim) for layer in sorted(widths)})
        self.num_updates: int | None = None  # None until training sets it: the schedule's end

    def set_num_updates(self, num_updates: int) -> None:
        self.num_updates = num_updates

    def scores(self, x: Tensor, layer: int) -> Tensor:
        """(B, T, C) -> (B, T) in (1e-5, 1 + 1e-5], fp32 whatever the precision of x (ties would decide otherwise)."""
        scorer = self.scorer[str(layer)]
        with torch.autocast(x.device.type, enabled=False):
            x = wide(x)
            for module in scorer if isinstance(scorer, nn.Sequential) else [scorer]:
                x = linear(x, module.weight.to(x), module.bias.to(x)) if isinstance(module, nn.Linear) else module(x)
            return x.squeeze(-1).sigmoid() + 1e-5

    def forward(self, x: Tensor, layer: int, padding_mask: Tensor | None) -> Pooled | None:
        """Pool (B, T, C) after ``layer``; None if that layer keeps everything. padding_mask (B, T), True = pad."""
        k = self.widths.get(layer)
        if k is None or x.size(1) <= k:
            return None
        base = geometric(self.base, self.base_final, self.base_updates, self.num_updates)
        return topk_halving(
            x,
            self.scores(x, layer),
            k,
            padding_mask,
            base=base,
            flip_right=self.flip_right,
            sort_back=self.sort_back,
            hard=self.hard_inference and not self.training,
        )

    def untouched(self, layer: int) -> Tensor | None:
        """A zero that depends on the layer's scorer: added where a batch is too short to pool, so that every parameter
        has a gradient in every step (DistributedDataParallel requires it)."""
        if str(layer) not in self.scorer or not (self.training and torch.is_grad_enabled()):
            return None
        return torch.stack([p.sum() for p in self.scorer[str(layer)].parameters()]).sum() * 0.0
