"""How much a checkpoint may let us build: a model of about its own size.

The options in a crafted file can ask for a table of 10^12 rows or for a million layers. What is built from a file is
counted while it is built, before it is allocated.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_efficient.checkpoint_pickles import MOST_OPTIONS, leaves
from fairseq_efficient.errors import UserError

TIMES = 8  # so many times a file's numbers may be made: weights, their first values, tables of positions
MORE_BYTES = 256 * 2**20  # that need not be in the file
CALLS, MORE_CALLS = 20, 1000  # tensors that may be made, for each tensor of the file and beside them
LAYERS = 1000  # that a model may have, if its file holds fewer tensors

_TO_COPY = torch.ops.aten._to_copy.default  # its argument bounds it
_active: list["Bounded"] = []


class Bounded(TorchDispatchMode):
    """Around the loading of checkpoints: from :func:`expect` to :func:`expect_nothing`, what is made is counted.

    Raises:
        UserError: before what is too much is allocated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path, self.bytes, self.calls, self.counts = "", 0.0, 0, False

    def __enter__(self) -> Any:
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _active.remove(self)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.counts and func is not _TO_COPY and any(one.name == "device" for one in func._schema.arguments):
            self.calls -= 1
            self.bytes -= _bytes(func, args, kwargs)
            if self.calls < 0 or self.bytes < 0:
                raise _too_large(self.path)
        return func(*args, **kwargs)


def _bytes(func: Any, args: Any, kwargs: Any) -> float:
    try:
        made = func(*args, **{**kwargs, "device": "meta"})
    except RuntimeError as err:
        if "overflow" not in str(err):  # of the product of its sizes
            raise
        return math.inf
    return float(made.numel() * made.element_size())


def _too_large(path: str) -> UserError:
    what = "its configuration asks for a model that is much larger than the weights in it"
    return UserError(f"checkpoint {path} refused: {what}")


def expect(state: Mapping[str, Any], path: str) -> None:
    """What is made from now on is the model of this training state, read from ``path``.

    Raises:
        UserError: the state names more layers than it can hold.
    """
    weights = state.get("model")
    tensors = [one for one in weights.values() if isinstance(one, Tensor)] if isinstance(weights, Mapping) else []
    # by storage: one that many names share is in the file once; 4 bytes for each number, as it is computed with
    stored = {one.untyped_storage().data_ptr(): 4.0 * one.untyped_storage().nbytes() / one.element_size()
              for one in tensors}  # fmt: skip
    if any(count > max(LAYERS, len(stored)) for count in _layers([state.get("cfg"), state.get("args")])):
        raise _too_large(path)
    for mode in _active:
        mode.path, mode.counts = path, True
        mode.bytes = TIMES * sum(stored.values()) + MORE_BYTES
        mode.calls = CALLS * len(stored) + MORE_CALLS


def _layers(value: Any) -> Iterator[int]:
    """Numbers of layers and blocks, wherever they stand in a configuration."""
    found = leaves(value, MOST_OPTIONS)
    return (count for key, count in found if isinstance(count, int) and key.endswith(("_layers", "_blocks")))


def expect_nothing() -> None:
    """A file is read now, which is not counted."""
    for mode in _active:
        mode.counts = False
