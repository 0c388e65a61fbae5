"""Where segments end: rules for each ``--boundaries-type``, and the predictor behind three of them.

A boundary at token t means: t is the last token of its segment. Everything here decides from tokens up to t.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dynamic_pooling.config import PREDICTED
from fairseq_efficient.precision import wide_dtype


class Boundaries(NamedTuple):
    """Decisions for tokens (B, T). ``values``: bool, or 0.0/1.0 with the straight-through gradient of gumbel."""

    values: Tensor
    logits: Tensor | None = None  # of the predictor, fp32
    probability: Tensor | None = None


class _StraightThrough(torch.autograd.Function):
    """Hard values forward, the gradient goes to the soft ones."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.to(soft.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class BoundaryPredictor(nn.Module):
    """Two-layer perceptron over token states (Nawrot et al. 2023): (..., D) -> logits (...), in fp32 or better."""

    def __init__(self, dim: int, hidden: int, activation: Any):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            kind = wide_dtype(x.dtype)
            hidden = self.activation(linear(x.to(kind), self.fc1.weight.to(kind), self.fc1.bias.to(kind)))
            return linear(hidden, self.fc2.weight.to(kind), self.fc2.bias.to(kind)).squeeze(-1)


@dataclass(frozen=True)
class BoundaryOptions:
    """Plain values of the flags that decide boundaries; see :mod:`dynamic_pooling.config`.

    ``closing``: ids of the symbols that end a segment of type whitespaces, EOS among them.
    """

    type: str
    fixed_sf: int = 2
    fixed_phase: str = "paper"
    closing: tuple[int, ...] = field(default=())
    temp: float = 0.5
    sampled_eval: bool = False


class BoundaryRule(nn.Module):
    """Decides boundaries; owns the predictor, if the type has one."""

    def __init__(self, options: BoundaryOptions, dim: int, hidden: int, activation: Any):
        super().__init__()
        self.options = options
        self.predictor = BoundaryPredictor(dim, hidden, activation) if options.type in PREDICTED else None
        self.closing: Tensor
        self.register_buffer("closing", torch.tensor(options.closing, dtype=torch.long), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        states: Tensor,
        padding_mask: Tensor | None = None,
        first: int = 0,
        sample: bool | None = None,
        forced: Tensor | None = None,
    ) -> Boundaries:
        """Boundaries of tokens (B, T) with states (B, T, D).

        Args:
            padding_mask: (B, T), True = pad: never a boundary.
            first: position of the first column (in incremental decoding).
            sample: draw gumbel boundaries; None: in training, and in evaluation if the options say so.
            forced: (B, T) bool; values to use instead of the predictor's (teacher forcing).
        """
        logits = probability = None
        if self.predictor is not None:
            logits = self.predictor(states)
            probability = logits.sigmoid()
            values = forced if forced is not None else self._decide(logits, sample)
        else:
            values = forced if forced is not None else self._rule(tokens, first)
        if padding_mask is not None:
            values = values.masked_fill(padding_mask, 0)
        return Boundaries(values, logits, probability)

    def _rule(self, tokens: Tensor, first: int) -> Tensor:
        if self.options.type == "whitespaces":
            return torch.isin(tokens, self.closing)
        every = self.options.fixed_sf
        position = torch.arange(first, first + tokens.size(1), device=tokens.device)
        closes = position % every == (every - 1 if self.options.fixed_phase == "paper" else 0)
        return closes.expand(tokens.shape)

    def _decide(self, logits: Tensor, sample: bool | None) -> Tensor:
        if sample is None:
            sample = self.training or self.options.sampled_eval
        if self.options.type != "gumbel" or not sample:
            return logits > 0
        uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
        noise = uniform.log() - torch.log1p(-uniform)
        soft = torch.sigmoid((logits + noise) / self.options.temp)
        hard = logits + noise > 0
        return _StraightThrough.apply(hard, soft) if soft.requires_grad else hard
