"""The models of the dynamic pooling benchmark: how they are built, the text they read, a training step, its FLOPs.

A kind is ``<what>-<encoding>``: what is ``vanilla`` (no pooling), ``sf4`` (segments of 4 tokens), ``padded`` or
``packed`` (segments end at spaces; without and with ``--packed-shortened``); encoding is ``relative`` or ``rotary``.
``transformer_lm`` is fairseq's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from torch import Tensor

import dynamic_pooling  # noqa: F401  (registers)
from dynamic_pooling import decoder as decoder_module
from dynamic_pooling.config import DynamicPoolingConfig
from dynamic_pooling.model import DynamicPoolingModel
from fairseq_efficient.bench import flops
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.timing import Stopwatch
from fairseq_efficient.bench.work import token_loss, training_step
from fairseq_efficient.ops.segment_pool import fast as pool_module

TRANSFORMER_LM = "transformer_lm"
SPACE = "\u2581"
LETTERS_PER_WORD = 4.7


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of model and work, and where it runs."""

    dim: int = 512
    ffn: int = 2048
    heads: int = 8
    layers: int = 12
    outer: int = 2  # layers before pooling, and after upsampling
    types: int = 32  # of characters, fairseq's four special ones among them
    batch: int = 1
    dropout: float = 0.0
    full: bool = False  # recompute every prefix, not a sample of them


def parts(kind: str) -> tuple[str, str]:
    """(what, encoding) of one of our kinds."""
    what, _, encoding = kind.partition("-")
    return what, encoding


def dictionary(setup: Setup) -> Dictionary:
    words = Dictionary()
    words.add_symbol(SPACE)
    for number in range(setup.types - len(words)):
        words.add_symbol(chr(ord("a") + number))
    return words


def config(kind: str, setup: Setup) -> DynamicPoolingConfig:
    """The flags behind a kind. Rotary has no dropout on attention weights: it would keep SDPA from its fast path."""
    what, encoding = parts(kind)
    cfg = DynamicPoolingConfig(
        position_encoding=encoding,
        decoder_embed_dim=setup.dim,
        decoder_ffn_embed_dim=setup.ffn,
        decoder_attention_heads=setup.heads,
        dropout=setup.dropout,
        attention_dropout=0.0 if encoding == "rotary" else setup.dropout,
        activation_dropout=setup.dropout,
        cpu_bf16=setup.cpu_bf16,
    )
    if what == "vanilla":
        cfg.boundaries_type, cfg.model_config = "none", f"[{setup.layers}, (0,), 0]"
        return cfg
    cfg.model_config = f"[{setup.outer}, ({setup.layers - 2 * setup.outer},), {setup.outer}]"
    if what in ("padded", "packed"):
        cfg.boundaries_type, cfg.packed_shortened = "whitespaces", what == "packed"
    else:
        cfg.boundaries_type, cfg.fixed_sf = "fixed", int(what.removeprefix("sf"))
    return cfg


def build(kind: str, n: int, setup: Setup) -> Any:
    """A model of ``kind`` for windows of ``n`` tokens (only fairseq's own needs to know)."""
    torch.manual_seed(1)
    words = dictionary(setup)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    if kind == TRANSFORMER_LM:
        cfg = TransformerLanguageModelConfig(
            activation_fn="gelu",
            dropout=setup.dropout,
            decoder_embed_dim=setup.dim,
            decoder_input_dim=setup.dim,
            decoder_output_dim=setup.dim,
            decoder_ffn_embed_dim=setup.ffn,
            decoder_layers=setup.layers,
            decoder_attention_heads=setup.heads,
            tokens_per_sample=n,
            max_target_positions=n,
        )
        cfg.tpu = False  # else an interpolation, which is true
        model = TransformerLanguageModel.build_model(cfg, SimpleNamespace(**vars(task), output_dictionary=words))
    else:
        model = DynamicPoolingModel.build_model(config(kind, setup), task)
    return setup.placed(model)


def text(n: int, setup: Setup, seed: int = 2) -> Tensor:
    """(batch, n) ids: EOS, then words of 1 + Poisson letters, 4.7 on average, with a space after each."""
    torch.manual_seed(seed)
    words = dictionary(setup)
    space, first = words.index(SPACE), words.index(SPACE) + 1
    rows = torch.randint(first, setup.types, (setup.batch, n))
    lengths = 2 + torch.poisson(torch.full((setup.batch, n), LETTERS_PER_WORD - 1)).long()
    ends = lengths.cumsum(1)
    for row, end in zip(rows, ends, strict=True):
        row[end[end < n]] = space
    rows[:, 0] = words.eos()
    return rows.to(setup.place)


def segments(kind: str, n: int, setup: Setup) -> list[int]:
    """Segments of each row of :func:`text` with the null segment, as many as the shortened layers work on."""
    what, _ = parts(kind)
    if what == "vanilla":
        return [0] * setup.batch
    if what not in ("padded", "packed"):
        return [1 + n // int(what.removeprefix("sf"))] * setup.batch
    words = dictionary(setup)
    tokens = text(n, setup)
    found = 1 + (tokens.eq(words.index(SPACE)) | tokens.eq(words.eos())).sum(1)
    return [int(count) for count in (found if what == "packed" else found.max().expand(setup.batch))]


# --- work: each function prepares, and returns what is to be measured ------------------------------------------------


def train_step(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward over windows of n tokens, no optimizer."""
    model, tokens = build(kind, n, setup).train(), text(n, setup)
    target = tokens.roll(-1, 1)
    return training_step(model, lambda: token_loss(model(tokens)[0], target))


def train_step_by_parts(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """:func:`train_step` that reports the part ``pooling``: pooling and upsampling, forward and backward."""
    step, watch = train_step(kind, n, setup), Stopwatch(setup.place)
    wrapped = [
        (decoder_module, name, watch.wrap(getattr(decoder_module, name)))
        for name in ("segment_layout", "segment_pool", "upsample")
    ]
    for function in (pool_module._Pool, pool_module._Upsample):
        wrapped.append((function, "backward", staticmethod(watch.wrap(function.backward))))  # type: ignore[arg-type]

    def run() -> dict[str, float]:
        patches = [patch.object(*one) for one in wrapped]
        for one in patches:
            one.start()
        try:
            step()
        finally:
            for one in patches:
                one.stop()
        return {"pooling": watch.take()}

    return run


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def training_gflop(kind: str, n: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of :func:`train_step`."""
    dense = 4 * flops.linear(1, setup.dim, setup.dim) + flops.feed_forward(1, setup.dim, setup.ffn)
    output = setup.batch * flops.linear(n, setup.dim, setup.types)
    if kind == TRANSFORMER_LM:  # a mask, which the kernel applies to full squares
        squares = flops.FUSED_TRAINING * flops.attention(n, n, setup.dim)
        one = setup.batch * (flops.TRAINING * n * dense + squares)
        return (setup.layers * one + flops.TRAINING * output) / 1e9
    what, encoding = parts(kind)
    outer = setup.layers if what == "vanilla" else 2 * setup.outer
    short = segments(kind, n, setup)
    total = outer * _stack_layer([n] * setup.batch, dense, encoding, setup)
    if what != "vanilla":
        total += (setup.layers - outer) * _stack_layer(short, dense, encoding, setup)
        total += flops.TRAINING * setup.batch * n * setup.dim  # adding up the tokens of segments
    return (total + flops.TRAINING * output) / 1e9


def _stack_layer(lengths: list[int], dense: int, encoding: str, setup: Setup) -> float:
    """Training FLOPs of one layer over rows of these lengths."""
    total = flops.TRAINING * sum(lengths) * dense
    if encoding == "rotary":
        return total + sum(flops.FUSED_TRAINING * flops.causal_attention(n, setup.dim) for n in lengths)
    total += sum(flops.relative_attention(n, setup.dim, training=True) for n in lengths)
    # positions are projected once per batch, and are no function of weights themselves
    return total + 2 * flops.linear(max(lengths), setup.dim, setup.dim)


def decoding_gflop(kind: str, n: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of reading n tokens one by one with caches."""
    what, encoding = parts(kind)
    outer = setup.layers if what == "vanilla" else 2 * setup.outer
    short = segments(kind, n, setup)
    total = outer * sum(_decoding_layer(n, encoding, setup) for _ in short)
    total += (setup.layers - outer) * sum(_decoding_layer(count, encoding, setup) for count in short)
    if encoding == "relative":
        total += outer * _tables(n, setup) + (setup.layers - outer) * _tables(max(short), setup)
    return (total + setup.batch * flops.linear(n, setup.dim, setup.types)) / 1e9


def _decoding_layer(steps: int, encoding: str, setup: Setup) -> int:
    seen = steps * (steps + 1) // 2
    of_scores = flops.attention(1, seen, setup.dim) * (3 if encoding == "relative" else 2) // 2
    dense = 4 * flops.linear(steps, setup.dim, setup.dim) + flops.feed_forward(steps, setup.dim, setup.ffn)
    return dense + of_scores


def _tables(steps: int, setup: Setup) -> int:
    """Projected positions: the table starts with 64 and doubles."""
    rows, size = 0, 64
    while steps:
        rows += size
        if size >= steps:
            break
        size *= 2
    return flops.linear(rows, setup.dim, setup.dim)
