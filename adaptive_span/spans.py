"""How far heads look: a learned share of the longest span for each head or for a layer, or one predicted for each
token (Sukhbaatar et al. 2019, section 2.2).

Shapes: B rows, M tokens, C width, H heads, S longest span in tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_efficient.compat.optim import NO_DECAY
from fairseq_efficient.ops.span_attention import span_width
from fairseq_efficient.ops.span_attention.published import published_columns

_SLACK = 64  # places that a trimmed cache has beyond what is seen now, for spans that grow


@dataclass(frozen=True)
class SpanOptions:
    """longest: S. ramp: tokens over which the mask falls. init: share of S that heads see at first. by_layer: one span
    for all heads. by_token: spans are predicted. trim_cache: remember no more than is seen."""

    longest: int
    ramp: int = 32
    init: float = 0.0
    by_layer: bool = False
    by_token: bool = False
    trim_cache: bool = False


class Spans(nn.Module):
    """The spans of one layer's heads; its parameters stay fp32 whatever precision the model is converted to."""

    def __init__(self, options: SpanOptions, heads: int, dim: int):
        super().__init__()
        o = self.options = options
        count = 1 if o.by_layer else heads
        if o.by_token:
            share = min(max(o.init, o.ramp / (o.longest + o.ramp)), 1 - 1e-3)
            self.weight = nn.Parameter(torch.zeros(count, dim))
            self.bias = nn.Parameter(torch.full((count,), math.log(share / (1 - share))))
        else:
            self.ratio = nn.Parameter(torch.full((count,), float(o.init)))
        self.heads = heads
        for parameter in self.parameters():
            parameter.param_group = NO_DECAY  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(x: Tensor) -> Tensor:
            new = fn(x)
            return x.to(new.device) if new.dtype in (torch.float16, torch.bfloat16) else new

        return super()._apply(keep_precision, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """Spans in tokens, in fp32 or better: (H,), (1,), or for the tokens of x (B, M, C) each, (B, H, M)."""
        o = self.options
        if not o.by_token:
            return self.shares() * o.longest
        with torch.autocast(x.device.type, enabled=False):
            shares = torch.sigmoid(nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias))
        return (shares * o.longest).transpose(1, 2).expand(-1, self.heads, -1)

    def shares(self) -> Tensor:
        """Learned shares of the longest span, between 0 and 1 whatever the parameter is; its gradient is as if it were
        there."""
        return self.ratio + (self.ratio.clamp(0, 1) - self.ratio).detach()

    def clamp_(self) -> None:
        """Bring the shares back to [0, 1]."""
        if not self.options.by_token:
            with torch.no_grad():
                self.ratio.clamp_(0, 1)

    def widths(self, known: list[float]) -> list[int]:
        """Keys that each head sees at most, for spans as numbers; (1,) counts for all heads."""
        o = self.options
        found = [span_width(span, o.ramp, o.longest) for span in known]
        return found * (self.heads if len(found) == 1 else 1)

    def cache_size(self, longest: float) -> int:
        """Places to remember for a layer whose longest span this is, in the published code."""
        o = self.options
        if not o.trim_cache or o.by_token:
            return o.longest
        return min(o.longest, published_columns(longest, o.ramp, o.longest) + _SLACK)
