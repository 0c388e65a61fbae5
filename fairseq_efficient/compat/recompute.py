"""How stock fairseq computes layers again in the backward: patched in by :mod:`fairseq_efficient.compat`, which calls
this."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fairseq_efficient.compat.patching import patch


def recompute_as_it_was_computed() -> None:
    """Stock's ``checkpoint_wrapper`` computes a layer again outside of autocast, so that with ``--amp`` (and our
    ``--cpu-bf16``) gradients are not those of the loss; and what a layer reaches otherwise than by its arguments gets
    no gradient: torch's own does both. Offloaded layers stay stock's, under the autocast of the forward.
    """
    from fairseq.modules import checkpoint_activations

    def make(stock: Any) -> Any:
        def _checkpointed_forward(forward: Any, offload_to_cpu: bool, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            if offload_to_cpu:
                return stock(_under_this_autocast(forward), True, *args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return _checkpointed_forward

    patch(checkpoint_activations, "_checkpointed_forward", make)


def _under_this_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, whenever it is called, under the autocast that there is now."""
    now = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in now:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield

    def call(*args: Any, **kwargs: Any) -> Any:
        with again():
            return forward(*args, **kwargs)

    return call
