"""Layers that are computed again in the backward: gradients, precision, memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.modules import checkpoint_activations
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from fairseq_efficient import compat
from tests.util import assert_close

compat.apply()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.fc2, self.norm = nn.Linear(8, 32), nn.Linear(32, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, scale: Tensor | None = None, more: dict[str, int] | None = None) -> tuple[Tensor, int]:
        y = self.fc2(nn.functional.dropout(self.fc1(x).relu(), 0.3, self.training))
        return self.norm(x + (y if scale is None else y * scale)), 7


def gradients(wrap: Callable[[nn.Module], Any] | None, half: bool) -> dict[str, Tensor]:
    """Of two layers after an embedding, the forward alone under autocast, as fairseq's --amp has it."""
    layers = [Layer(), Layer()]
    if wrap is not None:
        layers = [wrap(layer) for layer in layers]
    torch.manual_seed(2)
    x, scale = torch.randn(3, 5, 8, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y, seven = layers[0](x)
        y, _ = layers[1](y, scale=scale, more={"kept": 1})
        loss = y.float().square().sum()
    assert seven == 7
    loss.backward()
    found = {f"{number}.{name}": one.grad for number, layer in enumerate(layers) for name, one in
             layer.named_parameters()}  # fmt: skip
    return {**found, "x": x.grad, "scale": scale.grad}


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("offload", [False, True], ids=["", "offloaded"])
def test_gradients_are_those_of_layers_that_are_kept(half: bool, offload: bool):
    """Bitwise, dropout and all, in the precision of the forward."""
    found = gradients(lambda layer: checkpoint_wrapper(layer, offload_to_cpu=offload), half)
    assert_close(found, gradients(None, half), 0, 0)


def test_what_is_mended_in_fairseqs_own(monkeypatch: pytest.MonkeyPatch):
    stock = checkpoint_activations._checkpointed_forward.__wrapped__
    monkeypatch.setattr(checkpoint_activations, "_checkpointed_forward", stock)
    found, expected = gradients(checkpoint_wrapper, True), gradients(None, True)
    assert float((found["x"] - expected["x"]).abs().max()) > 1e-4


def test_what_is_reached_otherwise_learns_too():
    """As branches of a mixture that are called with its weights."""
    outside, layer, x = torch.tensor(2.0, requires_grad=True), Layer().eval(), torch.randn(2, 8)
    forward: Any = checkpoint_activations._checkpointed_forward
    forward(lambda y: layer(y)[0] * outside, False, x).sum().backward()
    assert outside.grad is not None
    assert_close(outside.grad, layer(x)[0].sum().detach(), 1e-5, 1e-5)
    assert layer.fc1.weight.grad is not None


@pytest.mark.parametrize("wrap", [False, True])
def test_only_inputs_are_kept(wrap: bool):
    layer: Any = checkpoint_wrapper(Layer()) if wrap else Layer()
    x, kept = torch.randn(3, 5, 8, requires_grad=True), []

    def pack(one: Tensor) -> Tensor:
        kept.append(one.numel())
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        out, _ = layer(x)
    assert (sum(kept) <= 2 * x.numel()) == wrap
    out.sum().backward()
    assert x.grad is not None


def test_without_gradient_nothing_is_kept_or_drawn():
    layer = checkpoint_wrapper(Layer()).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        out, _ = layer(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)))
    assert not out.requires_grad and torch.equal(torch.get_rng_state(), state)
