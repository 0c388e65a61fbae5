"""The work of the adaptive span benchmark: attention alone, training steps, evaluation, decoding; and their FLOPs.

A kind says what the heads of every layer see of S earlier tokens: ``full`` (all, without a mask), ``span2pct`` (2 % of
S, and the ramp), ``span100pct`` (all, with the mask), ``mixed`` (one head all, the others 2 %). Attention alone also
has ``longest`` (mixed, every head computed as far as the longest: trimming by layer) and ``sdpa_KIND`` (torch's fused
attention over all S keys, with positions and mask as its additive mask).
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

import adaptive_span  # noqa: F401  (registers)
from adaptive_span.config import SequentialConfig
from adaptive_span.model import SequentialLanguageModel
from fairseq_efficient.bench import flops
from fairseq_efficient.bench.decoding import block_by_block, token_by_token
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.work import dictionary, token_loss, training_step
from fairseq_efficient.ops.span_attention import head_groups, soft_mask, span_attention, span_width

SDPA, LONGEST = "sdpa_", "longest"
PRICE = "fairseq_efficient.ops.span_attention.common._GROUP"


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of model and work, and where it runs."""

    dim: int = 512
    ffn: int = 2048
    heads: int = 8
    layers: int = 12
    block: int = 512
    ramp: int = 32
    types: int = 256
    batch: int = 1


def spans_of(kind: str, size: int, setup: Setup) -> list[float] | None:
    """Tokens that each head sees, ramp not included; None: all, without a mask."""
    kind = kind.removeprefix(SDPA)
    if kind == "full":
        return None
    if kind in ("mixed", LONGEST):
        return [float(size)] + [0.02 * size] * (setup.heads - 1)
    return [float(kind.removeprefix("span").removesuffix("pct")) / 100 * size] * setup.heads


def widths_of(kind: str, size: int, setup: Setup) -> list[int]:
    """Keys that each head sees at most."""
    spans = spans_of(kind, size, setup)
    return [size] * setup.heads if spans is None else [span_width(span, setup.ramp, size) for span in spans]


def grouping(kind: str) -> AbstractContextManager[Any]:
    """Every head as far as the longest, for ``longest``."""
    return patch(PRICE, math.inf) if kind == LONGEST else nullcontext()


# --- attention alone -------------------------------------------------------------------------------------------------


def attention_inputs(kind: str, size: int, setup: Setup) -> tuple[list[Tensor], Tensor]:
    """q, k and v (in the memory that projections give them), positions, spans; and the gradient of the output.

    There are as many keys before the block as the longest head sees: what a trimmed cache holds.
    """
    torch.manual_seed(1)
    width = setup.dim // setup.heads
    keys = setup.block + (size if kind.startswith(SDPA) else max(widths_of(kind, size, setup)))
    draw = partial(torch.randn, device=setup.place, dtype=setup.number)
    q = draw(setup.batch, setup.block, setup.heads, width).transpose(1, 2)
    k, v = draw(setup.batch, keys, 2, setup.heads, width).permute(2, 0, 3, 1, 4)
    inputs = [q, k, v, draw(size, width)]
    spans = spans_of(kind, size, setup)
    if spans is not None:
        inputs.append(torch.tensor(spans, device=setup.place))
    grad = draw(setup.batch, setup.block, setup.heads, width).transpose(1, 2)
    return [one.requires_grad_() for one in inputs], grad


def attend(kind: str, inputs: list[Tensor], grad: Tensor, setup: Setup) -> tuple[Tensor, ...]:
    """Output, and gradient of each input."""
    q, k, v, positions, *spans = inputs
    if kind.startswith(SDPA):
        out = masked_sdpa(q, k, v, positions, spans[0] if spans else None, setup.ramp)
    else:
        with grouping(kind):
            out = span_attention(q, k, v, positions, spans[0] if spans else None, setup.ramp)
    return (out.detach(), *torch.autograd.grad(out, inputs, grad))


def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, spans: Tensor | None, ramp: int) -> Tensor:
    """The same by torch's fused attention: positions and mask shifted into one additive mask (B, H, M, K)."""
    queries, keys, size = q.size(2), k.size(2), positions.size(0)
    bias = torch.matmul(q, positions.flip(0).t()) * q.size(3) ** -0.5  # (B, H, M, S) by descending distance
    if spans is not None:
        mask = soft_mask(spans, ramp, size)
        log_mask = torch.where(mask > 0, mask, 1.0).log().masked_fill(mask == 0, float("-inf"))  # log 0 has no slope
        bias = bias + log_mask.flip(-1).unsqueeze(1).to(bias.dtype)
    bias = pad(bias, (0, queries), value=float("-inf")).flatten(2)  # row i is moved i to the right
    bias = bias[:, :, : queries * (size + queries - 1)].view(*q.shape[:3], size + queries - 1)
    bias = pad(bias, (0, 1), value=float("-inf"))[..., size + queries - keys :]
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attention(kind: str, size: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward of attention over one block, without projections."""
    inputs, grad = attention_inputs(kind, size, setup)

    def run() -> None:
        attend(kind, inputs, grad, setup)

    return run


# --- models ----------------------------------------------------------------------------------------------------------


def build(kind: str, size: int, setup: Setup) -> SequentialLanguageModel:
    torch.manual_seed(1)
    spans = spans_of(kind, size, setup)
    adapting: dict[str, Any] = {"adapt_span": True, "adapt_span_cache": True, "adapt_span_ramp": setup.ramp}
    cfg = SequentialConfig(
        decoder_layers=setup.layers,
        decoder_embed_dim=setup.dim,
        decoder_ffn_embed_dim=setup.ffn,
        decoder_attention_heads=setup.heads,
        attn_span=size,
        **({} if spans is None else adapting),
        cpu_bf16=setup.cpu_bf16,
    )
    model = SequentialLanguageModel.build_model(cfg, SimpleNamespace(source_dictionary=dictionary(setup.types)))
    if spans is not None:
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.self_attn.spans.ratio.copy_(torch.tensor(spans) / size)
    return setup.placed(model)


def text(n: int, setup: Setup, seed: int = 2) -> Tensor:
    """(batch, n) ids."""
    torch.manual_seed(seed)
    return torch.randint(4, setup.types, (setup.batch, n), device=setup.place)


def remembered(model: SequentialLanguageModel, size: int, setup: Setup) -> list[Tensor]:
    """Full caches of a layer each, as long as the model keeps them."""
    torch.manual_seed(3)
    decoder = model.decoder
    like = decoder.positions
    pairs = zip(decoder.layers, decoder.known(), strict=True)
    sizes = [layer.self_attn.cache_size(known) for layer, known in pairs]
    return [torch.randn(setup.batch, one, setup.dim, device=setup.place, dtype=like.dtype) for one in sizes]


def train_step(kind: str, size: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward over a block with full caches, no optimizer."""
    model = build(kind, size, setup).train()
    tokens, memory = text(setup.block, setup), remembered(model, size, setup)
    target = tokens.roll(-1, 1)

    def loss() -> Tensor:
        with grouping(kind):
            logits = model.decoder(tokens, memory=memory)[0]
        return token_loss(logits, target)

    return training_step(model, loss)


def evaluate(kind: str, size: int, setup: Setup) -> Callable[[], Any]:
    """The next block of a stream of which some tokens have been read, block by block: ``KIND@TOKENS``."""
    kind, _, read = kind.partition("@")
    model = build(kind, size, setup).eval()
    stream = text(int(read) + setup.block, setup)
    with torch.no_grad():
        *_, (_, memory) = block_by_block(model.decoder, stream[:, : int(read)], setup.block)

    @torch.no_grad()
    def run() -> None:
        model.decoder(stream[:, int(read) :], memory=memory)

    return run


def decode(kind: str, size: int, setup: Setup) -> Callable[[], Any]:
    """Read one token for each row with full caches: 32 of them."""
    model = build(kind, size, setup).eval()
    decoder, prompt = model.decoder, text(size + setup.block, setup)
    state: dict[str, Any] = {}
    with torch.no_grad():
        decoder(prompt, incremental_state=state)

    @torch.no_grad()
    def run() -> None:
        inner = next(iter(state.values()))
        tokens = torch.cat([prompt.new_zeros(setup.batch, inner.seen), text(DECODED, setup)], 1)
        for _ in token_by_token(decoder, tokens, state, inner.seen):
            pass

    return run


DECODED = 32


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def attention_gflop(kind: str, size: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of :func:`attention`."""
    width = setup.dim // setup.heads
    if kind.startswith(SDPA):
        keys = size + setup.block
        of_positions = flops.TRAINING * flops.linear(setup.block, width, size)
        fused = flops.attention(setup.block, keys, width)
        return setup.batch * setup.heads * (of_positions + flops.TRAINING * fused) / 1e9
    return setup.batch * _span_attention(kind, size, setup, True) / 1e9


def _span_attention(kind: str, size: int, setup: Setup, training: bool) -> int:
    with grouping(kind):
        groups = head_groups(widths_of(kind, size, setup), setup.batch)
    width = setup.dim // setup.heads
    return sum(len(heads) * flops.span_attention(setup.block, far, width, training) for heads, far in groups)


def training_gflop(kind: str, size: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of :func:`train_step`."""
    dense = 4 * flops.linear(setup.block, setup.dim, setup.dim) + flops.feed_forward(setup.block, setup.dim, setup.ffn)
    with grouping(kind):
        groups = head_groups(widths_of(kind, size, setup), setup.batch)
    width = setup.dim // setup.heads
    memory = sum(2 * flops.linear(far, setup.dim, len(heads) * width) for heads, far in groups)
    output = flops.linear(setup.block, setup.dim, setup.types)
    # remembered places get keys and values, and give these weights a gradient, but get none themselves
    layer = flops.TRAINING * dense + 2 * memory + _span_attention(kind, size, setup, True)
    return setup.batch * (setup.layers * layer + flops.TRAINING * output) / 1e9
