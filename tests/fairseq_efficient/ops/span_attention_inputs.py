"""Arguments of span attention with every kind of span, its gradients, and tiles small enough for them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_efficient.ops.span_attention import tiles

# queries, keys
SIZES = [(1, 1), (1, 6), (5, 5), (7, 9), (16, 16), (37, 37), (33, 90)]
SPANS = pytest.mark.parametrize("kind", ["none", "heads", "layer", "mixed", "queries"])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are short: 8 queries a tile make them cross as many borders as a long text would."""
    monkeypatch.setattr(tiles, "_QUERIES", (8, 8))


def inputs(
    queries: int,
    keys: int,
    most: int = 24,
    batch: int = 2,
    heads: int = 3,
    dim: int = 4,
    constant: int = 0,
    dtype: torch.dtype = torch.double,
) -> dict[str, Any]:
    """Arguments of the operator, all with a gradient; no spans."""
    shapes = [(batch, heads, queries, dim), *[(batch, heads, keys, dim)] * 2, (most, dim)]
    q, k, v, positions = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)
    found: dict[str, Any] = {"q": q, "k": k, "v": v, "positions": positions}
    if constant:
        found["constant"] = tuple(torch.randn(heads, constant, dim, dtype=dtype).requires_grad_() for _ in range(2))
    return found


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    found: list[Any] = []
    for value in arguments.values():
        found += value if isinstance(value, tuple) else [value]
    return [one for one in found if isinstance(one, Tensor) and one.requires_grad]


def with_gradients(op: Any, arguments: dict[str, Any]) -> list[Tensor]:
    out = op(**arguments)
    loss = (out * out.detach().cos()).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves(arguments), allow_unused=True, materialize_grads=True)]


def spans_of(kind: str, batch: int, heads: int, queries: int, most: int) -> Tensor | None:
    draw = torch.rand(batch, heads, queries, dtype=torch.double) * most
    if kind == "none":
        return None
    if kind == "heads":
        return draw[0, :, 0].clone().requires_grad_()
    if kind == "layer":
        return draw[0, :1, 0].clone().requires_grad_()
    if kind == "mixed":  # one head sees all, the others next to nothing
        return torch.tensor([float(most), *[0.5 + i for i in range(heads - 1)]], dtype=torch.double).requires_grad_()
    return draw.requires_grad_()
