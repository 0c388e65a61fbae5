"""What stays fp32 under any precision flag; and bfloat16 on the CPU, behind our model flag ``--cpu-bf16``.

fairseq's ``--bf16`` and ``--fp16`` convert the whole model and need a GPU; ``torch.autocast`` keeps fp32 weights and
runs the matrix products in bf16, which current CPUs do several times faster.
"""

import contextlib

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or ``dtype`` if that is wider: of scores, gates and sums."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """x in fp32, or as it is if it is wider."""
    return x.to(wide_dtype(x.dtype))


def cpu_bf16_autocast(enabled: bool, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """``torch.autocast('cpu', bfloat16)`` when ``enabled`` and ``device`` is the CPU, else a context that does nothing.

    What must stay fp32 (scores, gates, counts) its owner computes under ``torch.autocast(device.type, enabled=False)``.
    """
    if enabled and device.type == "cpu":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def round_linear_weights_(module: torch.nn.Module, enabled: bool) -> None:
    """Store the weights of all linear layers in bf16, for inference under :func:`cpu_bf16_autocast`, when ``enabled``
    and the module is on the CPU.

    Autocast would round the same weights again at every decoding step, which takes longer than the products. A weight
    tied to an embedding becomes a copy; the embedding keeps fp32.
    """
    if not enabled or next(module.parameters()).device.type != "cpu":
        return
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            for name, value in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, torch.nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False))
