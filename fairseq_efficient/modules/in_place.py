"""Steps of fairseq's transformer layers done in place: a layer over 8,192 tokens otherwise writes some 100 MB anew.

Both act on outputs of linear layers or dropout, which autograd does not read again.
"""

from collections.abc import Callable

import torch
from fairseq import utils
from torch import Tensor


def in_place_activation(name: str) -> Callable[[Tensor], Tensor]:
    """``relu`` in place; other activations need their input for the backward and stay as they are."""
    return torch.relu_ if name == "relu" else utils.get_activation_fn(name)


def add_residual(x: Tensor, residual: Tensor) -> Tensor:
    """``residual + x`` into x, unless that would round the residual (x in bf16 under autocast)."""
    return x.add_(residual) if x.dtype == residual.dtype else residual + x
