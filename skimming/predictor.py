"""The predictor before a layer, and what it decides (Guan et al. 2022, arXiv 2205.07324, section 3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from fairseq_efficient.compat.optim import learning_rate_times
from fairseq_efficient.ops.relaxed_onehot import gumbel_like, relaxed_onehot
from fairseq_efficient.precision import wide_dtype

SKIP, KEEP = 0, 1
INIT_STD = 0.02


class SkimPredictor(nn.Sequential):
    """``Linear(GELU(LayerNorm(Linear(LayerNorm(x)))))``: states (..., C) -> logits (..., 2), in fp32 or better.

    Index 0 skips a token, index 1 keeps it. Names of parameters are those of the published implementation.

    Args:
        dim: C. hidden: width of the hidden layer.
        init_bias: of the last layer, + to keep and - to skip, so that training starts from keeping all.
        lr_scale: the learning rate of its parameters is so many times the others'.
    """

    def __init__(self, dim: int, hidden: int, init_bias: float = 5.0, lr_scale: float = 1.0):
        super().__init__(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, 2)
        )
        self.init_bias = init_bias
        if lr_scale != 1:
            for parameter in self.parameters():
                parameter.param_group = learning_rate_times(lr_scale)  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Also called after fairseq has initialised every linear layer of the model like BERT's."""
        norm, hidden, norm_hidden, _, last = list[Any](self)
        norm.reset_parameters()
        norm_hidden.reset_parameters()
        hidden.weight.normal_(0.0, INIT_STD)
        hidden.bias.zero_()
        last.weight.normal_(0.0, INIT_STD)
        last.bias.normal_(0.0, INIT_STD)
        last.bias[KEEP] += self.init_bias
        last.bias[SKIP] -= self.init_bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> logits (..., 2) to skip and to keep, in fp32 or better under any precision."""
        kind = wide_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for layer in list[Any](self):
                if isinstance(layer, nn.GELU):
                    x = layer(x)
                    continue
                weight, bias = layer.weight.to(kind), layer.bias.to(kind)
                if isinstance(layer, nn.LayerNorm):
                    x = layer_norm(x.to(kind), layer.normalized_shape, weight, bias, layer.eps)
                else:
                    x = linear(x, weight, bias)
        return x


def decide(logits: Tensor, sample: bool, tau: float = 1.0, threshold: float = 0.0, noise: float = 1.0) -> Tensor:
    """Which tokens go on: logits (..., 2) -> (...) of 0 and 1, fp32 or better.

    Args:
        sample: drawn, with the straight-through gradient of the gumbel-softmax at temperature ``tau``; else
            deterministic: kept where ``logits[1] - logits[0] > threshold``, without gradient.
        noise: scale of the gumbel noise; 0: decided as without ``sample`` at threshold 0, with the gradient.
    """
    if sample:
        drawn = gumbel_like(logits) * noise if noise else None
        return relaxed_onehot(logits, tau, hard=True, noise=drawn)[..., KEEP]
    return keeps(logits, threshold).to(logits.dtype)


def keeps(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """The deterministic decision, (...) bool."""
    return logits[..., KEEP] - logits[..., SKIP] > threshold


def protected_tokens(tokens: Tensor, padding_mask: Tensor, eos: int, kind: str) -> Tensor:
    """Tokens (B, T) that are never skipped: the first of each sentence and, by ``kind``, every </s> (cls+sep) or all up
    to the first </s> (cls+question). True = protected; padding never is."""
    real = ~padding_mask
    first = real & (real.cumsum(1) == 1)
    if kind == "cls":
        return first
    ends = tokens == eos
    if kind == "cls+sep":
        return first | (ends & real)
    return first | (real & (ends.cumsum(1) - ends.long() == 0))


def segments(tokens: Tensor, eos: int, count: int) -> Tensor:
    """Segment of each token (B, T): the number of </s> before it, at most ``count - 1``."""
    ends = (tokens == eos).long()
    return (ends.cumsum(1) - ends).clamp(max=count - 1)
