"""P14: what --bf16, --fp16, --cpu-bf16 and --amp do to the numbers, as far as a CPU shows it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.dynamic_pooling.helpers import POOLED, WORDS, decoder, text

HALVES = {"bf16": (torch.bfloat16, 0.06), "fp16": (torch.float16, 0.01)}  # dtype, largest relative difference of losses


def losses(built: torch.nn.Module, tokens: Tensor, given: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Cross-entropy and boundary loss of a token, fp32, and the gradients of all weights."""
    built.zero_grad()
    logits, extra = built(tokens, boundaries=given, boundary_targets=given)
    real = tokens.ne(WORDS.pad())
    entropy = cross_entropy(logits[:, :-1].float()[real[:, 1:]], tokens[:, 1:][real[:, 1:]])
    auxiliary = extra["aux"].get("boundary", torch.zeros(())) / real.sum()
    (entropy + auxiliary).backward()
    grads = [weight.grad for weight in built.parameters() if weight.grad is not None]
    return entropy.detach(), auxiliary.detach().float(), grads


@pytest.mark.parametrize("rotary", [False, True], ids=["relative", "rotary"])
@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("half", HALVES)
def test_p14_half_weights_give_the_same_losses(half: str, kind: str, rotary: bool):
    """The whole model in 16 bits (--fp16, --bf16), with the same boundaries: finite, and near fp32."""
    dtype, tolerance = HALVES[half]
    flags = {"position_encoding": "rotary" if rotary else "relative", "init_std": 0.1}
    tokens = text(60, 41, 17)
    given = torch.rand(tokens.shape) < 0.25
    exact = losses(decoder(kind, double=False, **flags).train(), tokens, given)
    found = losses(decoder(kind, double=False, **flags).train().to(dtype), tokens, given)
    for one, other in zip(exact[:2], found[:2], strict=True):
        assert math.isclose(one.item(), other.item(), rel_tol=tolerance, abs_tol=1e-4)
    assert len(exact[2]) == len(found[2]) and all(grad.dtype == dtype and grad.isfinite().all() for grad in found[2])


@pytest.mark.parametrize("kind", POOLED)
def test_p14_autocast_gives_the_same_losses(kind: str):
    """--cpu-bf16 (and --amp): products in bf16, weights and gradients in fp32."""
    tokens = text(60, 41, 17)
    given = torch.rand(tokens.shape) < 0.25
    flags = {"position_encoding": "rotary", "init_std": 0.1}
    exact = losses(decoder(kind, double=False, **flags).train(), tokens, given)
    found = losses(decoder(kind, double=False, cpu_bf16=True, **flags).train(), tokens, given)
    for one, other in zip(exact[:2], found[:2], strict=True):
        assert math.isclose(one.item(), other.item(), rel_tol=0.06, abs_tol=1e-4)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_rows_keep_exact_counts(dtype: torch.dtype):
    """Positions and counts beyond what 16 bits can hold: every segment of 3,000 tokens is where fp32 puts it."""
    tokens = text(3000)
    built = decoder("whitespaces", double=False, init_std=0.05)
    expected = built(tokens)[1]
    found = built.to(dtype)(tokens)[1]
    assert torch.equal(found["boundaries"], expected["boundaries"])
    assert found["stats"]["closed"].dtype == torch.int64 and found["stats"]["closed"] == expected["stats"]["closed"]
