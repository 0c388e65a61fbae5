"""Memory that nobody has written holds NaN, not by luck zeros."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``torch.empty`` and its kin return NaN (floats) or a huge number (integers) until written."""

    def poison(make: Any) -> Any:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.dtype == torch.bool:
                return made.fill_(True)
            return made.fill_(float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).min)

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    assert torch.empty(2).isnan().all() and torch.zeros(1).new_empty(2).isnan().all()
    yield
