"""The models of the PAR benchmark: how they are built, the tokens they read, and the work on whole nets.

A net is named by a layout string, or by ``interleaved`` (Transformer-XL), ``par`` (the rule of the paper), ``supernet``
(training) or ``none`` (no blocks: embedding and softmax), with ``-keys`` behind it if keys and values are remembered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import par_search  # noqa: F401  (registers)
from fairseq_efficient.bench import decoding
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.work import dictionary, training_step
from par_search.config import ParLMConfig, SupernetConfig
from par_search.costs import Shape
from par_search.decoder import DecoderOptions, ParDecoder
from par_search.latency import evaluation_step, usual_tokens
from par_search.layout import rule_layout
from par_search.model import SupernetLanguageModel, decoder_options

KEYS = "-keys"


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of model and work, and where it runs. The base model for WikiText-103, without dropout."""

    dim: int = 512
    ffn: int = 2048
    heads: int = 8
    blocks: int = 32
    types: int = 267_744
    cutoffs: str = "20000,40000,200000"
    factor: float = 1.0  # of the adaptive softmax and input, which share their weights
    batch: int = 1
    memory: int = 640
    init_std: float = 0.02
    full: bool = False  # recompute every prefix, not a sample of them


def layout_of(kind: str, blocks: int) -> str:
    """The layout behind a name."""
    name = kind.removesuffix(KEYS)
    if name == "none":
        return ""
    return rule_layout(name, blocks) if name in ("interleaved", "par") else name


def flags(kind: str, n: int, setup: Setup) -> dict[str, Any]:
    """The configuration of a net that reads blocks of n tokens."""
    adaptive = {}
    if setup.cutoffs:
        adaptive = {
            "adaptive_softmax_cutoff": setup.cutoffs,
            "adaptive_softmax_factor": setup.factor,
            "adaptive_input": True,
            "adaptive_input_factor": setup.factor,
            "tie_adaptive_weights": True,
            "tie_adaptive_proj": True,
        }
    return {
        "decoder_embed_dim": setup.dim,
        "decoder_ffn_embed_dim": setup.ffn,
        "decoder_attention_heads": setup.heads,
        "mem_len": setup.memory,
        "dropout": 0.0,
        "init_std": setup.init_std,
        "tokens_per_sample": n,
        "cache_memory": "keys" if kind.endswith(KEYS) else "hidden",
        "cpu_bf16": setup.cpu_bf16,
        **adaptive,
    }


def options(kind: str, n: int, setup: Setup) -> DecoderOptions:
    return decoder_options(ParLMConfig(**flags(kind, n, setup)), dictionary(setup.types))


def shape(kind: str, n: int, setup: Setup) -> Shape:
    return Shape.of(options(kind, n, setup).block, n, setup.memory, setup.batch)


@lru_cache(maxsize=1)
def _ends(types: int, cutoffs: str, factor: float, dim: int, device: str, dtype: str) -> ParDecoder:
    """A net without blocks, whose embedding and softmax all others use: they are most of the memory."""
    setup = Setup(dim=dim, heads=1, types=types, cutoffs=cutoffs, factor=factor, device=device, dtype=dtype)
    torch.manual_seed(1)
    return setup.placed(ParDecoder(dictionary(types), options("none", 1, setup), ""))


def build(kind: str, n: int, setup: Setup) -> ParDecoder:
    """A net with random weights, the same for the same kind."""
    ends = _ends(setup.types, setup.cutoffs, setup.factor, setup.dim, setup.device, setup.dtype)
    torch.manual_seed(1)
    net = ParDecoder(dictionary(setup.types), options(kind, n, setup), layout_of(kind, setup.blocks), ends=ends)
    return setup.placed(net)


def build_supernet(n: int, setup: Setup) -> SupernetLanguageModel:
    torch.manual_seed(1)
    cfg = SupernetConfig(**{**flags("supernet", n, setup), "decoder_blocks": setup.blocks, "max_update": 1000})
    task = SimpleNamespace(source_dictionary=dictionary(setup.types))
    return setup.placed(SupernetLanguageModel.build_model(cfg, task))


def text(n: int, setup: Setup, seed: int = 2) -> Tensor:
    """(batch, n + 1) ids, frequent ones often: by Zipf's law."""
    found = usual_tokens(dictionary(setup.types), setup.batch * (n + 1), seed)
    return found.view(setup.batch, n + 1).to(setup.place)


# --- work: each function prepares, and returns what is to be measured ------------------------------------------------


def evaluation(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """The loss of n tokens of each row after ``setup.memory`` remembered ones, and the next memory."""
    net = build(kind, n, setup).eval()
    net.prepare_positions(n + setup.memory)
    return evaluation_step(net, setup.batch, n, setup.memory)


def train_step(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward of n tokens of each row after ``setup.memory`` remembered ones, no optimizer."""
    decoder: Any = build_supernet(n, setup).decoder if kind == "supernet" else build(kind, n, setup)
    decoder.train()
    stream = text(n, setup)
    past = [torch.randn_like(one) for one in _memory(decoder, setup)]
    return training_step(decoder, lambda: decoder.nll(decoder(stream[:, :-1], memory=past)[0], stream[:, 1:]))


def _memory(decoder: Any, setup: Setup) -> list[Tensor]:
    found = []
    for slot in decoder.slots():
        one = list(slot.no_memory(setup.batch).shape)
        one[-2] = setup.memory
        found.append(slot.content_bias.detach().new_empty(one))
    return found


def _best(net: Any) -> decoding.Best:
    return lambda output: (
        output if net.adaptive_softmax is None else net.adaptive_softmax.get_log_prob(output)
    ).argmax(-1)  # fmt: skip


def decode(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Read n tokens one by one, with caches of ``setup.memory``, and find the best next one after each."""
    net = build(kind, n, setup).eval()
    return decoding.with_caches(net, text(n, setup)[:, :-1], _best(net))


def recompute(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """The same without caches; reports ``total``."""
    net = build(kind, n, setup).eval()
    net.prepare_positions(n)
    return decoding.by_recomputing(net, text(n, setup)[:, :-1], decoding.prefixes(n, setup.full), _best(net))
