"""A small Transformer-XL, to test the ``segment_lm`` task with: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

from dataclasses import dataclass, field  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from fairseq.dataclass import FairseqDataclass  # noqa: E402
from fairseq.models import register_model  # noqa: E402
from omegaconf import II  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import dropout  # noqa: E402

import fairseq_efficient.plugin  # noqa: E402, F401
from fairseq_efficient.checkpoint_rules import trust  # noqa: E402
from fairseq_efficient.modules.relative_self_attention import RelativeSelfAttention, sinusoids  # noqa: E402
from fairseq_efficient.modules.stream_decoder import DecodingState, StreamDecoder, StreamOptions  # noqa: E402
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel, layers_reach  # noqa: E402
from fairseq_efficient.state import WindowCache  # noqa: E402
from fairseq_efficient.stream_memory import extend  # noqa: E402

trust("tiny_stream_lm")


@dataclass
class TinyConfig(FairseqDataclass):
    layers: int = field(default=2, metadata={"help": "layers"})
    width: int = field(default=16, metadata={"help": "width"})
    mem_len: int = field(default=8, metadata={"help": "remembered tokens"})
    same_length: bool = field(default=False, metadata={"help": "every query sees --mem-len keys"})
    clamp_len: int = field(default=-1, metadata={"help": "farther tokens count as this far; -1: no limit"})
    dropout: float = field(default=0.0, metadata={"help": "dropout"})
    remember_keys: bool = field(default=False, metadata={"help": "remember keys and values, not layer inputs"})
    tokens_per_sample: int = II("task.tokens_per_sample")


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, rate: float, window: int | None, clamp: int | None):
        super().__init__()
        self.attention = RelativeSelfAttention(
            width, heads, width // heads, rate, bias=False, window=window, clamp_length=clamp
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2, self.rate = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), rate

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm1(x + dropout(attended, self.rate, self.training))
        return self.norm2(x + dropout(self.fc2(self.fc1(x).relu()), self.rate, self.training))


class TinyDecoder(StreamDecoder):
    def __init__(self, dictionary: Any, cfg: TinyConfig):
        super().__init__(dictionary, StreamOptions(emb_dropout=cfg.dropout), cfg.width)
        self.cfg, heads = cfg, 2
        window = max(cfg.mem_len, 1) if cfg.same_length else None
        clamp = None if cfg.clamp_len < 0 else cfg.clamp_len
        self.build_input()
        self.layers = self.checkpointed(Layer(cfg.width, heads, cfg.dropout, window, clamp) for _ in range(cfg.layers))
        self.content_bias, self.position_bias = (nn.Parameter(torch.randn(heads, cfg.width // heads)) for _ in "uv")
        self.build_output()

    def read(self, tokens: Tensor, memory: Any, memory_length: int | None, **_: Any) -> Any:
        length = self.cfg.mem_len if memory_length is None else memory_length
        x, after = self.embed(tokens), []
        remembered = 0 if memory is None else memory[0].size(-2)
        positions = sinusoids(remembered + x.size(1), self.dim, x.device).to(x.dtype)
        for number, layer in enumerate(self.layers):
            past = None if memory is None else memory[number]
            out, k, v = layer.attention.attend(x, positions, self.content_bias, self.position_bias, memory=past)
            if self.cfg.remember_keys:
                after.append(extend(None, torch.stack([k, v], 1), length, dim=3))
            else:
                after.append(extend(past, x, length))
            x = layer.after(x, out)
        return x, {"memory": after}

    def empty_state(self, rows: int) -> DecodingState:
        window = max(self.cfg.mem_len, 1) if self.cfg.same_length else self.cfg.mem_len + 1
        return DecodingState([WindowCache(window=window) for _ in self.layers])

    def fill(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x = self.embed(tokens)
        positions = sinusoids(x.size(1), self.dim, x.device)
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x = layer.after(x, layer.attention.fill(x, positions, self.content_bias, self.position_bias, cache))
        return x

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        x = self.embed(tokens)
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x = layer.after(x, layer.attention.step(x, cache, self.content_bias, self.position_bias))
        return x


@register_model("tiny_stream_lm", dataclass=TinyConfig)
class TinyStreamModel(StreamLanguageModel):
    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "TinyStreamModel":
        return cls(TinyDecoder(task.source_dictionary, cfg))

    def memory_reach(self, tokens: int, memory_length: int | None = None) -> int:
        length = self.decoder.cfg.mem_len if memory_length is None else memory_length
        return layers_reach(len(self.decoder.layers), length, tokens)
