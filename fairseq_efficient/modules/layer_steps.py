"""Small steps of fairseq's transformer layers.

Those done in place act on outputs of linear layers or dropout, which autograd does not read again: a layer over 8,192
tokens otherwise writes some 100 MB anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq import utils
from torch import Tensor


def in_place_activation(name: str) -> Callable[[Tensor], Tensor]:
    """``relu`` in place; other activations need their input for the backward and stay as they are."""
    return torch.relu_ if name == "relu" else utils.get_activation_fn(name)


def add_residual(x: Tensor, residual: Tensor) -> Tensor:
    """``residual + x`` into x, unless that would round the residual (x in bf16 under autocast)."""
    return x.add_(residual) if x.dtype == residual.dtype else residual + x


def attention_dropout(attention: Any) -> float:
    """Dropout on the weights of a fairseq attention module now: in training, or with ``--retain-dropout``."""
    dropout = attention.dropout_module
    return float(dropout.p) if attention.training or dropout.apply_during_inference else 0.0
