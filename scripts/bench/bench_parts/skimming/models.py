"""The models of the skimming benchmark: how they are built, the batch they read, which tokens they keep, the work.

A kind is ``stock`` (fairseq's RoBERTa on the padded batch), ``packed`` (ours without predictors), ``predictor64`` and
``predictor-full`` (ours with predictors that keep all), ``keepR`` (with predictors of width 64, the tokens that go on
are given: a share R of all, unequal shares of each sentence), ``even``, ``uneven`` (half of the tokens: half of each
sentence, or all of the longest one and less of the others), ``masked`` (as keep0.5, hidden instead of dropped).
"""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from fairseq.models.roberta.model import RobertaModel, base_architecture
from torch import Tensor
from torch.nn.functional import cross_entropy

import skimming  # noqa: F401  (registers)
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.work import dictionary
from skimming import encoder as encoder_module
from skimming import packed as packed_module
from skimming.config import SkimRobertaConfig
from skimming.flops import EncoderSizes, classification_macs, dense_macs, layer_macs, skim_macs
from skimming.model import SkimRobertaModel

HEAD, CLASSES, PAD, FIRST_WORD = "sentence_classification_head", 2, 1, 4
REAL = 0.6  # share of the padded batch that is no padding


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of model and batch, and where it runs. ``batch`` 0: 4,096 / tokens of the longest sentence."""

    layers: int = 6
    dim: int = 384
    heads: int = 12
    types: int = 1000
    batch: int = 0
    real: float = REAL
    dropout: float = 0.0
    backend: str = "auto"

    @property
    def ffn(self) -> int:
        return 4 * self.dim

    def rows(self, n: int) -> int:
        """Sentences in a batch whose longest has n tokens."""
        return self.batch or max(4096 // n, 1)


def base(kind: str) -> str:
    """The model behind a kind: several kinds share one."""
    if kind in ("stock", "packed", "predictor-full"):
        return kind
    return "masked" if kind == "masked" else "predictor64"


@lru_cache(maxsize=8)
def build(kind: str, n: int, setup: Setup) -> Any:
    """A model of a :func:`base` kind in evaluation mode; all have the same weights, but for predictors."""
    torch.manual_seed(1)
    task = SimpleNamespace(source_dictionary=dictionary(setup.types))
    sizes: dict[str, Any] = {
        "encoder_layers": setup.layers,
        "encoder_embed_dim": setup.dim,
        "encoder_ffn_embed_dim": setup.ffn,
        "encoder_attention_heads": setup.heads,
        "max_positions": n,
        "dropout": setup.dropout,
        "attention_dropout": setup.dropout,
    }
    args = Namespace(**sizes)
    base_architecture(args)
    stock = RobertaModel.build_model(args, task)
    stock.register_classification_head(HEAD, num_classes=CLASSES)
    if kind == "stock":
        return setup.placed(stock).eval()
    cfg = SkimRobertaConfig(
        **sizes,
        skim_layers="none" if kind == "packed" else "all",
        skim_predictor_dim=0 if kind == "predictor-full" else 64,
        skim_inference="masked" if kind == "masked" else "auto",
        skim_backend=setup.backend,
        cpu_bf16=setup.cpu_bf16,
    )
    ours = SkimRobertaModel.build_model(cfg, task)
    ours.register_classification_head(HEAD, num_classes=CLASSES)
    ours.load_state_dict(stock.state_dict())
    ours.train().eval()  # its predictors count as trained
    return setup.placed(ours).eval()


def batch(n: int, setup: Setup, seed: int = 2) -> Tensor:
    """(B, n) ids, padded on the right: ``setup.real`` of them real, at least one sentence of n tokens."""
    draw, rows = torch.Generator().manual_seed(seed), setup.rows(n)
    wanted = max(round(setup.real * rows * n), rows)
    lengths = (torch.rand(rows, generator=draw) + 0.15) * n
    lengths[0] = n
    for _ in range(100):  # the others, scaled until their sum fits
        rest = lengths[1:] * max(wanted - n, rows - 1) / lengths[1:].sum().clamp(min=1)
        lengths[1:] = rest.clamp(2, n)
    lengths = lengths.round().long()
    tokens = torch.randint(FIRST_WORD, setup.types, (rows, n), generator=draw)
    tokens[:, 0] = 0
    return tokens.masked_fill(torch.arange(n) >= lengths.unsqueeze(1), PAD).to(setup.place)


def kept(kind: str, n: int, setup: Setup) -> Tensor:
    """(B, n) bool: the tokens that go on, in every layer; the first of each sentence among them."""
    tokens = batch(n, setup).cpu()
    real, draw = tokens.ne(PAD), torch.Generator().manual_seed(3)
    scores = torch.rand(tokens.shape, generator=draw)
    if kind.startswith("keep"):  # sentences whose tokens score higher keep more of them
        scores = scores + 0.5 * torch.rand(len(tokens), 1, generator=draw)
        found = _best(scores, real, round(float(kind.removeprefix("keep")) * int(real.sum())))
    elif kind == "even":
        found = torch.zeros_like(real)
        for row, length in enumerate(real.sum(1).tolist()):
            found[row : row + 1] = _best(scores[row : row + 1], real[row : row + 1], round(length / 2))
    elif kind == "uneven":
        scores[0] += 9
        found = _best(scores, real, int(kept("even", n, setup).sum()))
    else:
        found = real
    return found.to(setup.place)


def _best(scores: Tensor, real: Tensor, count: int) -> Tensor:
    """As many real tokens, those that score highest, first tokens before all others."""
    scores = scores.masked_fill(~real, -1.0)
    scores[:, 0] = 99.0
    found = torch.zeros(real.numel(), dtype=torch.bool)
    found[scores.flatten().topk(max(count, len(real))).indices] = True
    return found.view_as(real)


class _GivenBuffer(packed_module.Buffer):
    """Predictors run, then the tokens go on that were chosen beforehand."""

    chosen: Tensor  # (B * T,) bool

    def skim(self, predictor: Any, options: Any) -> None:
        predictor(self.x.index_select(0, (~self.protected).nonzero().squeeze(1)))
        self._keep(self.chosen[self.layout.index], options.compact_threshold)


class _TimedBuffer(_GivenBuffer):
    """Adds up the seconds that predictors take, and what follows from their decisions."""

    seconds: list[float]

    def skim(self, predictor: Any, options: Any) -> None:
        start = _now(self.x.device)
        super().skim(predictor, options)
        self.seconds.append(_now(self.x.device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- work: each function prepares, and returns what is to be measured ------------------------------------------------


def forward(kind: str, n: int, setup: Setup) -> Callable[[], Tensor]:
    """Logits of a batch of sentences, by inference."""
    model, tokens = build(base(kind), n, setup), batch(n, setup)
    if kind == "masked":
        return _masked(model, tokens, kept("keep0.5", n, setup))
    buffer = type("Given", (_GivenBuffer,), {"chosen": kept(kind, n, setup).flatten()})

    @torch.no_grad()
    def run() -> Tensor:
        if kind in ("stock", "packed"):
            return model(tokens, classification_head_name=HEAD)[0]
        with patch.object(packed_module, "Buffer", buffer):
            return model(tokens, classification_head_name=HEAD)[0]

    return run


def skimmed_forward(kind: str, n: int, setup: Setup) -> Callable[[], dict[str, float]]:
    """A forward that keeps what ``kind`` says, and how many of its seconds are those of predictors."""
    model, tokens = build(base(kind), n, setup), batch(n, setup)
    chosen = kept(kind, n, setup).flatten()

    @torch.no_grad()
    def run() -> dict[str, float]:
        seconds: list[float] = []
        buffer = type("Timed", (_TimedBuffer,), {"chosen": chosen, "seconds": seconds})
        with patch.object(packed_module, "Buffer", buffer):
            model(tokens, classification_head_name=HEAD)
        return {"predictors": sum(seconds)}

    return run


def _masked(model: Any, tokens: Tensor, chosen: Tensor) -> Callable[[], Tensor]:
    given = chosen.float()

    @torch.no_grad()
    def run() -> Tensor:
        with patch.object(encoder_module, "decide", lambda *_: given):
            return model(tokens, classification_head_name=HEAD)[0]

    return run


def train_step(kind: str, n: int, setup: Setup) -> Callable[[], Any]:
    """Forward and backward of a batch, no optimizer; ours with the price of kept tokens."""
    model, tokens = build(base(kind), n, setup), batch(n, setup)
    target = torch.arange(len(tokens), device=setup.place) % CLASSES

    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        logits, extra = model(tokens, classification_head_name=HEAD)
        loss = cross_entropy(logits.float(), target)
        (loss if kind == "stock" else loss + extra["aux"]["skim"]).backward()
        model.eval()

    return run


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def forward_gflop(kind: str, n: int, setup: Setup) -> float:
    """Analytic 10**9 FLOPs of :func:`forward`. Packed, the last layer computes first tokens only."""
    real = batch(n, setup).ne(PAD)
    lengths = real.sum(1)
    ones, head = torch.ones_like(lengths), classification_macs(setup.dim, setup.dim, CLASSES) * len(lengths)
    predictors = (kind not in ("stock", "packed"),) * setup.layers
    sizes = EncoderSizes(setup.dim, setup.ffn, setup.dim if kind == "predictor-full" else 64, predictors)
    if kind in ("stock", "masked"):
        total = int(dense_macs(torch.full_like(lengths, n), sizes).sum()) + head
        return 2 * (total + (n * len(lengths) * _predictor(sizes) if kind == "masked" else 0)) / 1e9
    entering = kept(kind, n, setup).sum(1)
    macs = skim_macs(entering.expand(setup.layers, -1), lengths, ones, sizes)
    last = entering * 2 * setup.dim**2 + 2 * setup.dim**2 + 2 * setup.dim * setup.ffn + 2 * entering * setup.dim
    return 2 * (int((macs - layer_macs(entering, setup.dim, setup.ffn) + last).sum()) + head) / 1e9


def _predictor(sizes: EncoderSizes) -> int:
    return sizes.layers * (sizes.dim * sizes.predictor_dim + 2 * sizes.predictor_dim)
