"""Small steps of fairseq's transformer layers.

Those done in place act on outputs of linear layers or dropout, which autograd does not read again: a layer over 8,192
tokens otherwise writes some 100 MB anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq import utils
from fairseq.distributed import fsdp_wrap
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
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


def wrap_layer(layer: torch.nn.Module, cfg: Any) -> Any:
    """Activation checkpointing and FSDP, as fairseq wraps its own layers (cfg: a nested ``TransformerConfig``)."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)
