"""The operators of the dynamic pooling benchmark beside what they are measured against, as pieces of work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bench_parts.dynamic_pooling.models import Setup
from bench_parts.einsums import einsum_attention
from fairseq_efficient.bench import flops
from fairseq_efficient.ops.relative_attention import relative_attention
from fairseq_efficient.ops.segment_pool import segment_layout, segment_pool, upsample

RELATIVE, EINSUM = "relative", "einsum"
REPEATS = 20  # calls of an operator that are timed as one
SEGMENT = 4  # tokens


ATTENTION: dict[str, Callable[..., Tensor]] = {RELATIVE: relative_attention, EINSUM: einsum_attention}


def attention_inputs(n: int, setup: Setup) -> tuple[list[Tensor], Tensor]:
    """What needs a gradient (q, k and v in one, as the projection gives them; r and the biases), and the gradient."""
    torch.manual_seed(1)
    width = setup.dim // setup.heads
    shapes = [(setup.batch, n, 3, setup.heads, width), (setup.heads, n, width), *[(setup.heads, width)] * 2]
    inputs = [torch.randn(shape, device=setup.place, dtype=setup.number, requires_grad=True) for shape in shapes]
    grad = torch.randn(setup.batch, n, setup.heads, width, device=setup.place, dtype=setup.number).transpose(1, 2)
    return inputs, grad


def attend(kind: str, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradient of each input."""
    both, *others = inputs
    q, k, v = both.permute(2, 0, 3, 1, 4)
    out = ATTENTION[kind](q, k, v, *others)
    return (out.detach(), *torch.autograd.grad(out, inputs, grad))


def attention(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward of relative attention alone."""
    inputs, grad = attention_inputs(n, setup)

    def run() -> None:
        attend(kind, inputs, grad)

    return run


def attention_gflop(kind: str, n: int, setup: Setup) -> float:
    if kind == RELATIVE:
        return setup.batch * flops.relative_attention(n, setup.dim, training=True) / 1e9
    return setup.batch * flops.TRAINING * 6 * n * n * setup.dim / 1e9


# --- pooling ---------------------------------------------------------------------------------------------------------


def pooling_pieces(kind: str, n: int, setup: Setup) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function and the values it reads. kinds: ``layout`` (what both directions know of the boundaries, once a
    batch); ``pool`` (tokens to segments) and the bare ``embedding_bag`` of the same bags; ``upsample`` (segments to
    tokens) and the bare ``index_select`` of the same rows."""
    torch.manual_seed(1)
    n -= n % SEGMENT
    closed = (torch.arange(n, device=setup.place) % SEGMENT == SEGMENT - 1).expand(setup.batch, n).contiguous()
    layout = segment_layout(closed)
    ids = layout.ids
    columns = 1 + n // SEGMENT
    rows = columns if kind in ("upsample", "index_select") else n
    values = torch.randn(setup.batch, rows, setup.dim, device=setup.place, dtype=setup.number)
    null = values.new_zeros(setup.dim)
    tokens = torch.arange(setup.batch * n, device=setup.place)
    starts = tokens[::SEGMENT]
    flat_ids = (ids + torch.arange(setup.batch, device=setup.place).unsqueeze(1) * columns).flatten()
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "layout": lambda x: segment_layout(closed).ends,
        "pool": lambda x: segment_pool(x, closed, null=null, layout=layout).values,
        "embedding_bag": lambda x: embedding_bag(tokens, x.view(-1, setup.dim), starts, mode="mean"),
        "upsample": lambda x: upsample(x, ids),
        "index_select": lambda x: x.view(-1, setup.dim).index_select(0, flat_ids),
    }
    return functions[kind], values


def pooling_forward(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """:data:`REPEATS` calls without gradient."""
    function, values = pooling_pieces(kind, n, setup)

    @torch.no_grad()
    def run() -> None:
        for _ in range(REPEATS):
            function(values)

    return run


def pooling_both(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """:data:`REPEATS` calls, forward and backward."""
    function, values = pooling_pieces(kind, n, setup)
    values.requires_grad_()
    grad = torch.randn_like(function(values))

    def run() -> None:
        for _ in range(REPEATS):
            torch.autograd.grad(function(values), values, grad)

    return run
