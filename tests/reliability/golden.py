"""Checkpoints that a released version wrote, and what their models computed: what is recorded, and how it is compared.

``tests/golden/VERSION`` holds them (``scripts/make_golden.py``); each later version must load them and compute as much.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file
from torch import Tensor

from tests.util import BLOCKS, HOURGLASS, PYRAMID, ROOT, SKIM, SPANS, System

FOLDER = ROOT / "tests" / "golden"
OUTPUTS = "outputs.safetensors"
UPDATES = 2  # of each training
LARGEST = 200_000  # bytes of a file

_SMALL_STREAM = ("--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "12", "--decoder-attention-heads", "2")
_TIED = ("--adaptive-softmax-cutoff", "6,10", "--adaptive-softmax-factor", "2", "--adaptive-input",
         "--adaptive-input-factor", "2", "--tie-adaptive-weights")  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """A family of options. ``state``: with the optimizer's state, so that training goes on; else the model alone.
    ``tensors``: as safetensors."""

    name: str
    system: System
    state: bool = False
    tensors: bool = False

    @property
    def file(self) -> str:
        return f"{self.name}.{'safetensors' if self.tensors else 'pt'}"


def _golden(user_dir: str, data: str, arch: str, name: str, *flags: str, **how: bool) -> Golden:
    return Golden(name, System(user_dir, arch, flags, data), **how)


def _pyramid(name: str, *flags: str, arch: str = "pyramidion_tiny", **how: bool) -> Golden:
    layers = ("--encoder-layers", "2", "--decoder-layers", "1")
    return _golden("deep_pyramidion", "pairs", arch, f"pyramidion-{name}", *PYRAMID, *layers, *flags, **how)


def _hourglass(name: str, arch: str, *flags: str, **how: bool) -> Golden:
    arch = f"dynamic_pooling_lm_{arch}"
    return _golden("dynamic_pooling", "stream", arch, f"hourglass-{name}", *HOURGLASS, *_SMALL_STREAM, *flags, **how)


def _skim(name: str, *flags: str, data: str = "sentences", **how: bool) -> Golden:
    return _golden("skimming", data, "skim_roberta_tiny", f"skimming-{name}", *SKIM, *flags, **how)


def _blocks(name: str, *flags: str, arch: str = "par_lm", data: str = "segments", **how: bool) -> Golden:
    return _golden("par_search", data, arch, f"par-{name}", *BLOCKS, *flags, **how)


def _span(name: str, *flags: str, learned: bool = True, **how: bool) -> Golden:
    given = SPANS if learned else SPANS[: SPANS.index("--adapt-span")]
    return _golden("adaptive_span", "spans", "sequential_lm", f"span-{name}", *given, *_SMALL_STREAM, *flags, **how)


GOLDEN: tuple[Golden, ...] = (
    _pyramid("topk", state=True),
    _pyramid("topk-tensors", tensors=True),
    _pyramid("ffn-overlap", "--encoder-pooling-arch", "ffn", "--chunk-overlap", "2", "--chunk-shift",
             "--chunk-positions", "--sort-back", "0"),
    _pyramid("no-positions", "--no-decoder-positional-embeddings", "--hard-topk-inference", "--use-sparse-attn",
             "pooler_no_block", "--share-decoder-input-output-embed"),
    _pyramid("blockwise", "--encoder-pooling", "lambda", arch="pyramidion_blockwise"),
    _pyramid("bart", "--max-source-positions", "40", "--max-target-positions", "20", arch="pyramidion_bart_base"),
    _hourglass("vanilla", "vanilla", "--model-config", "[2, (0,), 0]"),
    _hourglass("fixed", "fixed", "--fixed-sf", "3", "--fixed-phase", "orig"),
    _hourglass("whitespaces", "whitespaces_fast", "--packed-shortened", "--decoder-normalize-before"),
    _hourglass("rotary", "fixed", "--position-encoding", "rotary", "--packed-shortened"),
    _hourglass("unigram", "unigram", "--teacher-forcing-updates", "1"),
    _hourglass("entropy", "entropy", "--pooling", "last"),
    _hourglass("gumbel", "gumbel", "--upsampling", "smooth", "--rate-loss", "ratio", state=True),
    _hourglass("wide", "gumbel_fast", "--shortened-embed-dim", "12", "--shortened-attention-heads", "3",
               "--shortened-ffn-embed-dim", "16"),
    _hourglass("tensors", "gumbel_fast", tensors=True),
    _skim("roberta", state=True),
    _skim("bert", "--layer-norm-eps", "1e-12", "--num-segments", "2", "--skim-protect", "cls+sep"),
    _skim("some-layers", "--skim-layers", "1", "--skim-threshold", "0.3", "--skim-attn", "postmult"),
    _skim("none", "--skim-layers", "none", "--encoder-normalize-before", "--no-layernorm-embedding"),
    _skim("questions", "--max-positions", "60", data="questions"),
    _skim("tensors", tensors=True),
    _blocks("layout", "--layout", "affa", "--cache-memory", "keys", state=True),
    _blocks("adaptive", "--layout", "af", *_TIED),
    _blocks("txl", "--layout-rule", "interleaved", "--decoder-blocks", "4", "--same-length", "--clamp-len", "5",
            "--decoder-normalize-before"),
    _blocks("supernet", "--decoder-blocks", "3", arch="par_supernet", data="search"),
    _blocks("tensors", "--layout", "aff", tensors=True),
    _span("fixed", learned=False),
    _span("heads", "--adapt-span-cache", state=True),
    _span("layer", "--adapt-span-layer"),
    _span("tokens", "--dynamic-span"),
    _span("published", "--adapt-span-mask", "orig", "--empty-cache", "zeros"),
    _span("persistent", "--pers-mem-size", "4", *_TIED, "--tie-adaptive-proj"),
    _span("tensors", tensors=True),
)  # fmt: skip


def data_of(version: Path, golden: Golden) -> Path:
    """The folder of dictionaries of its kind of data."""
    return version / (golden.system.data if golden.system.data in ("pairs", "sentences", "questions") else "stream")


@torch.no_grad()
def compute(path: Path, data: Path, kind: str) -> Tensor:
    """What the model in ``path`` says of fixed tokens, fp32; a language model of two blocks, so that memory counts."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    model, words = models[0].eval().float(), task.source_dictionary

    def rows(count: int, length: int, step: int) -> Tensor:
        numbers = torch.arange(count * length).view(count, length) * step
        return words.nspecial + numbers % (len(words) - words.nspecial)

    if kind == "pairs":
        sources, targets = rows(2, 30, 7), rows(2, 5, 3)
        sources[1, :11] = words.pad()
        return log_probs(model, model(sources, None, targets))
    if kind in ("sentences", "questions"):
        tokens = rows(2, 14, 5)
        tokens[:, 0], tokens[0, 8], tokens[1, 9:] = 0, words.eos(), words.pad()
        (head,) = model.classification_heads
        out: Any = model(tokens, features_only=True, classification_head_name=head)
        return out[0][tokens.ne(words.pad())].float() if kind == "questions" else out[0].float()
    tokens = rows(2, 24, 5)
    if kind == "stream":
        return log_probs(model, model(tokens))
    first = model.decoder(tokens[:, :14])
    second = model.decoder(tokens[:, 14:], memory=first[1]["memory"])
    return torch.cat([log_probs(model, one) for one in (first, second)], 1)


def log_probs(model: Any, output: Any) -> Tensor:
    found: Tensor = model.get_normalized_probs(output, log_probs=True)
    return found.float()


def versions() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if (path / OUTPUTS).exists())


def recorded(version: Path) -> dict[str, Tensor]:
    """File -> output."""
    return dict(load_file(version / OUTPUTS))
