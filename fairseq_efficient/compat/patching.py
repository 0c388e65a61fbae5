"""How repairs are made: one name of stock fairseq replaced, once."""

import functools
import types
from collections.abc import Callable
from typing import Any

MARK = "_fairseq_efficient"


def patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``make(stock)``, once."""
    stock = getattr(owner, name)
    if not getattr(stock, MARK, False):
        ours = functools.wraps(stock)(make(stock))
        setattr(ours, MARK, True)
        bound = isinstance(vars(owner).get(name), (staticmethod, classmethod))  # stock is bound to the class already
        setattr(owner, name, staticmethod(ours) if bound else ours)


class Overlay(types.ModuleType):
    """What one fairseq module sees under another module's name: a few names of ours, else the real ones."""

    def __init__(self, real: types.ModuleType, **names: Any):
        super().__init__(real.__name__)
        vars(self).update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
