"""Single layers of the PAR benchmark: attention over memory beside what it is measured against, and softmaxes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from bench_parts.einsums import einsum_attention
from bench_parts.par_search.models import Setup, options
from fairseq_efficient.bench.work import dictionary
from fairseq_efficient.modules.adaptive_softmax import ExactAdaptiveSoftmax
from fairseq_efficient.modules.relative_self_attention import sinusoids
from fairseq_efficient.ops.optimal_cutoffs import LOGIT, optimal_cutoffs, partition_cost
from par_search.blocks import KEEP, AttentionBlock, Reach
from par_search.latency import usual_tokens, zipf

RELATIVE, ADDITIVE, EINSUM = "relative", "additive_mask", "einsum"
OPTIMAL, MATMUL, RULE, FULL = "optimal", "matmul", "rule", "full"
CLUSTERS, PAD, SPECIAL = 4, 1, 4


class _WholeBlock(AttentionBlock):
    """The same block, its attention over all keys at once."""

    def forward(self, x: Tensor, memory: Tensor | None, reach: Reach) -> tuple[Tensor, Tensor]:
        assert memory is not None

        def attend(y: Tensor) -> Tensor:
            q, k, v = self.self_attn.split(y)
            old = self.self_attn.split_memory(memory)
            k, v = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
            return self.self_attn.merge(self._attention(q, k, v, reach))

        return self._around(x, attend), x

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
        raise NotImplementedError


class AdditiveBlock(_WholeBlock):
    """SDPA under an additive causal mask: no positions."""

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
        mask = torch.full((q.size(2), k.size(2)), float("-inf"), dtype=q.dtype, device=q.device)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask.triu_(1 + k.size(2) - q.size(2)))


class EinsumBlock(_WholeBlock):
    """As it is usually written."""

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
        r = self.self_attn.project_positions(reach.positions[: k.size(2)])
        return einsum_attention(q, k, v, r, self.content_bias, self.position_bias)


BLOCKS: dict[str, type[AttentionBlock]] = {RELATIVE: AttentionBlock, ADDITIVE: AdditiveBlock, EINSUM: EinsumBlock}


def block(kind: str, n: int, setup: Setup) -> tuple[AttentionBlock, list[Tensor], Reach]:
    """A block, its inputs (x and memory) and the sinusoids; the same weights for all kinds."""
    torch.manual_seed(1)
    one = BLOCKS[kind](options("a", n, setup).block)
    torch.manual_seed(2)
    inputs = [torch.randn(setup.batch, length, setup.dim) for length in (n, setup.memory)]
    positions = sinusoids(n + setup.memory, setup.dim)
    if setup.dtype == "bf16":
        one, inputs, positions = one.bfloat16(), [x.bfloat16() for x in inputs], positions.bfloat16()
    return one.to(setup.place), [x.to(setup.place) for x in inputs], Reach(positions.to(setup.place), 0)


def attention_forward(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """One layer in evaluation; weights, and so what is made of them alone, are known before."""
    one, (x, memory), reach = block(kind, n, setup)
    one.eval()
    if kind == RELATIVE:
        one.prepare_positions(reach.positions)

    @torch.no_grad()
    def run() -> Tensor:
        return one(x, memory, reach)[0]

    return run


def attention_training(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward of one layer; memory needs no gradient, x does."""
    one, (x, memory), reach = block(kind, n, setup)
    x.requires_grad_()
    grad = torch.randn_like(x)

    one.train()

    def run() -> tuple[Tensor | None, ...]:
        one.zero_grad(set_to_none=True)
        x.grad = None
        one(x, memory, reach)[0].backward(grad)
        return (x.grad, *(weight.grad for weight in one.parameters()))

    return run


def attention_gflop(training: bool, kind: str, n: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of a layer."""
    keys, d, t = n + setup.memory, setup.dim, n
    linear = 2 * d * d * setup.batch * (2 * t + 2 * keys)
    scores = 2 * d * setup.batch * t * keys
    if not training:  # of prepared positions only the scores are left
        prepared = 0 if kind == RELATIVE else 2 * d * d * keys
        return (linear + (2 * scores if kind == ADDITIVE else 3 * scores + prepared)) / 1e9
    memory = 2 * 2 * d * d * setup.batch * setup.memory  # its gradient is not needed
    total = 3.0 * linear - memory + (7 * scores if kind == ADDITIVE else 3 * 3 * scores + 2 * 2 * d * d * keys)
    made_again = kind == RELATIVE and setup.batch * setup.heads * t * keys > KEEP  # in the backward
    return (total + (2 * scores if made_again else 0)) / 1e9


# --- softmax ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def counts(types: int) -> np.ndarray:
    """Of types by id; the special ones do not occur."""
    return np.concatenate([np.zeros(SPECIAL), zipf(types - SPECIAL).numpy()])


def cutoffs(kind: str, types: int, setup: Setup) -> list[int]:
    """optimal: by multiply-adds and softmaxes; matmul: by multiply-adds alone; rule: by the original's cost, the sum
    over all bins of types x tokens."""
    model: dict[str, Any] = {} if kind == RULE else {"dim": setup.dim, "factor": 4.0}
    model |= {"logit": LOGIT} if kind == OPTIMAL else {}
    return optimal_cutoffs(counts(types), CLUSTERS, smallest_head=SPECIAL + 1, **model)[0]


def softmax_step(kind: str, types: int, setup: Setup) -> Callable[[], Any]:
    """Loss of ``setup.memory`` states, and its gradient for them and for the weights."""
    torch.manual_seed(1)
    layer: Any = nn.Linear(setup.dim, types, bias=False)
    if kind != FULL:
        layer = ExactAdaptiveSoftmax(types, setup.dim, cutoffs(kind, types, setup), 0.0, PAD, factor=4.0)
    layer = layer.to(setup.place)
    states = torch.randn(1, setup.memory, setup.dim, device=setup.place, requires_grad=True)
    target = usual_tokens(dictionary(types), setup.memory).to(setup.place)

    def run() -> Tensor:
        layer.zero_grad(set_to_none=True)
        states.grad = None
        loss = cross_entropy(layer(states[0]), target, reduction="sum") if kind == FULL else layer.loss(states, target)
        loss.backward()
        return loss.detach()

    return run


def softmax_gflop(kind: str, types: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of :func:`softmax_step`, for tokens by their frequencies."""
    if kind == FULL:
        return 6 * setup.memory * setup.dim * types / 1e9
    places: Sequence[int] = cutoffs(kind, types, setup)
    return 6 * setup.memory * partition_cost(counts(types), list(places), dim=setup.dim, factor=4.0) / 1e9
