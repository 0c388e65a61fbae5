"""Relative attention over memory: hidden states or keys, a fixed number of keys, clamped distances, sliding caches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_efficient.modules.relative_self_attention import RelativeSelfAttention, sinusoids
from fairseq_efficient.state import WindowCache
from fairseq_efficient.stream_memory import extend
from tests.util import assert_close

CHANNELS, HEADS, DIM = 12, 3, 6
TABLE = sinusoids(200, CHANNELS, dtype=torch.double)


def layer_of(**flags: Any) -> tuple[RelativeSelfAttention, list[Tensor]]:
    """A module in float64 and its two biases."""
    module = RelativeSelfAttention(CHANNELS, HEADS, DIM, **flags).double()
    return module, [torch.randn(HEADS, DIM, dtype=torch.double).requires_grad_() for _ in range(2)]


def tokens(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, CHANNELS, dtype=torch.double)


def by_loops(module: RelativeSelfAttention, biases: list[Tensor], x: Tensor, queries: int, seen: int) -> Tensor:
    """The last ``queries`` outputs, each over its last ``seen`` keys, one pair of query and key at a time."""
    q, k, v = module.split(x)
    r = module.r_proj(TABLE.double()).view(-1, HEADS, DIM)
    clamp = module.clamp_length if module.clamp_length is not None else 10**6
    rows = []
    for place in range(x.size(1) - queries, x.size(1)):
        keys = range(max(0, place - seen + 1), place + 1)
        scores = torch.stack(
            [
                ((q[:, :, place] + biases[0]) * k[:, :, j]).sum(-1)
                + ((q[:, :, place] + biases[1]) * r[min(place - j, clamp)]).sum(-1)
                for j in keys
            ],
            -1,
        )
        probs = (scores * DIM**-0.5).softmax(-1)
        rows.append(sum(probs[..., n, None] * v[:, :, j] for n, j in enumerate(keys)))
    return module.merge(torch.stack(rows, 2))


@pytest.mark.parametrize("memory", [1, 5, 9])
@pytest.mark.parametrize("clamp", [None, 0, 3, 50])
@pytest.mark.parametrize("same_length", [False, True])
def test_memory_is_the_formula(memory: int, clamp: int | None, same_length: bool):
    """With --same-length every query sees as many keys as there is memory, with --clamp-len distances end."""
    module, biases = layer_of(window=memory if same_length else None, clamp_length=clamp, bias=False)
    x = tokens(2, memory + 7)
    expected = by_loops(module, biases, x, 7, memory if same_length else 10**6)
    assert_close(module(x[:, memory:], TABLE, *biases, memory=x[:, :memory]), expected, 1e-9)


def test_keys_are_remembered_as_hidden_states_are():
    """Outputs and gradients of what is not memory; also with positions that were projected before."""
    module, biases = layer_of()
    x, past = tokens(2, 7).requires_grad_(), tokens(2, 9)
    parameters = [x, *biases, module.out_proj.weight]
    _, k, v = module.attend(past, TABLE, *biases)
    kept = torch.stack([k, v], 1).detach()
    results = []
    for memory, positions in ((past, TABLE), (kept, TABLE), (kept, module.project_positions(TABLE[:30]))):
        out = module(x, positions, *biases, memory=memory)
        results.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
    for other in results[1:]:
        assert_close(other, results[0], 1e-9)


def test_what_is_attended_to_can_be_remembered():
    """Block after block over keys, of which the last 6 stay, is block after block over hidden states."""
    module, biases = layer_of()
    x = tokens(2, 40)
    keys: Tensor | None = None
    hidden: Tensor | None = None
    for start in range(0, 40, 4):
        block = x[:, start : start + 4]
        one, k, v = module.attend(block, TABLE, *biases, memory=keys)
        two = module(block, TABLE, *biases, memory=hidden)
        assert_close(one, two, 1e-9)
        keys, hidden = extend(None, torch.stack([k, v], 1), 6, dim=3), extend(hidden, block, 6)
        assert keys.shape == (2, 2, HEADS, min(6, start + 4), DIM) and hidden.shape[1] == keys.shape[3]


def test_weights_learn_from_memory_and_memory_learns_nothing():
    module, biases = layer_of()
    past = tokens(2, 9).requires_grad_()
    hidden = extend(None, past * 2, 9)
    module(tokens(2, 1), TABLE, *biases, memory=hidden).sum().backward()
    with_memory = module.qkv_proj.weight.grad.clone()
    module.zero_grad()
    module(tokens(2, 1), TABLE, *biases).sum().backward()
    assert past.grad is None and not torch.allclose(with_memory, module.qkv_proj.weight.grad)


def test_memory_of_another_precision():
    module, biases = layer_of()
    module, biases = module.bfloat16(), [one.detach().bfloat16() for one in biases]
    x = tokens(2, 12)
    out = module(x[:, 5:].bfloat16(), TABLE, *biases, memory=x[:, :5].float())
    whole = module(x.bfloat16(), TABLE, *biases)
    assert out.dtype == torch.bfloat16
    assert_close(out, whole[:, 5:], 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide, wide_biases = layer_of()
        out = wide.float()(x[:, 5:].float(), TABLE, *(b.float() for b in wide_biases), memory=x[:, :5].bfloat16())
    assert out.isfinite().all()


def test_a_window_for_one_call():
    module, biases = layer_of(window=7)
    x = tokens(2, 20)
    for window, seen in ((None, 7), (3, 3), (9, 7)):
        assert_close(module(x, TABLE, *biases, window=window), by_loops(module, biases, x, 20, seen), 1e-9)


# --- the sliding cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 40, 100])
@pytest.mark.parametrize("first", [0, 1, 3, 60])
def test_a_sliding_cache_is_a_window(window: int, first: int):
    """Steps through many moves of the buffer, after a prompt of ``first`` tokens, with rows that change places."""
    module, biases = layer_of()
    x, cache = tokens(3, 180), WindowCache(window=window)
    with torch.no_grad():
        if first:
            out = module.fill(x[:, :first], TABLE, *biases, cache=cache)
            assert_close(out, module(x[:, :first], TABLE, *biases, window=window), 1e-10)
        sizes = set()
        for t in range(first, 180):
            out = module.step(x[:, t], cache, *biases)
            assert_close(out, module(x[:, : t + 1], TABLE, *biases, window=window)[:, -1], 1e-10)
            assert cache.lengths == min(window, t + 1)
            sizes.add(cache.buffer.size(3))
            if t % 7 == 6:
                order = torch.tensor([[2, 0, 1], [1, 1, 0]][t % 2])
                cache.reorder(order)
                x = x[order]
    assert max(sizes) <= max(2 * window, first if first <= window else window, 2)


def test_a_sliding_cache_takes_several_keys_at_once():
    for counts in ([3, 4, 5], [1] * 12, [9, 1, 2], [12]):
        cache, keys = WindowCache(window=5), torch.arange(12.0).view(1, 1, 12, 1)
        done = 0
        for count in counts:
            cache.append(keys[:, :, done : done + count], -keys[:, :, done : done + count])
            done += count
            k, v, length = cache.select_rows()
            assert k.flatten().tolist() == list(range(max(0, done - 5), done)) and length == k.size(2)
            assert torch.equal(v, -k)


def test_what_a_sliding_cache_refuses():
    cache, keys = WindowCache(window=3), torch.zeros(2, HEADS, 2, DIM)
    with pytest.raises(ValueError, match="one length"):
        cache.fill(keys, keys, torch.tensor([1, 2]))
    cache.fill(keys, keys)
    with pytest.raises(ValueError, match="empty"):
        cache.fill(keys, keys)


def test_no_uninitialised_memory_is_read(poisoned_memory: None):
    test_a_sliding_cache_is_a_window(5, 3)
