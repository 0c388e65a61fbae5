"""What stays fp32; and bfloat16 autocast: on the CPU, when asked for."""

import pytest
import torch

from fairseq_efficient.precision import cpu_bf16_autocast, wide, wide_dtype


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float32),
    ],
)
def test_wide_is_fp32_or_better(given: torch.dtype, expected: torch.dtype):
    x = torch.ones(3, dtype=given)
    assert wide_dtype(given) == expected == wide(x).dtype
    assert (wide(x) is x) == (given == expected)


@pytest.mark.parametrize(
    ("enabled", "device", "expected"),
    [(True, "cpu", torch.bfloat16), (False, "cpu", torch.float32), (True, "meta", torch.float32)],
)
def test_products_are_bf16_only_when_enabled_on_the_cpu(enabled: bool, device: str, expected: torch.dtype):
    with cpu_bf16_autocast(enabled, torch.device(device)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_gradients_stay_fp32():
    layer = torch.nn.Linear(4, 4)
    with cpu_bf16_autocast(True, torch.device("cpu")):
        out = layer(torch.randn(3, 4))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
