"""fairseq's adaptive softmax with exact results: all rows normalised, and no type taken for a pad."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear, log_softmax

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_least, parse_cutoffs
from fairseq_efficient.ops.optimal_cutoffs import band_width
from fairseq_efficient.precision import cpu_bf16_autocast, wide


@dataclass(frozen=True)
class AdaptiveOptions:
    """Adaptive input and softmax; empty cutoffs mean there is none. ``tie_weights`` without: of plain ends.

    Raises:
        UserError: ends to tie that are not of one form.
    """

    cutoffs: tuple[int, ...] = ()
    factor: float = 4.0
    dropout: float = 0.0
    input_cutoffs: tuple[int, ...] = ()
    input_factor: float = 4.0
    tie_weights: bool = False
    tie_projections: bool = False

    def __post_init__(self) -> None:
        factors = {self.factor, self.input_factor} if self.cutoffs else {}
        if self.tie_weights and (self.cutoffs != self.input_cutoffs or len(factors) > 1):
            raise UserError("--tie-adaptive-weights needs adaptive softmax and input of the same cutoffs and factor")


class CleanAdaptiveInput(AdaptiveInput):
    """fairseq's (Baevski and Auli 2019) with the same weights: embeddings of rare types are narrower, and projected.

    Mended: under autocast it fails; a band of one type fails; its checkpoints hold a number that nobody wrote. Each
    band gets a gradient in each step, of zeros where a batch has none of its types.

    Args:
        dim: channels of the first band and of the result; each further one has ``factor`` times fewer, at least 1.
        cutoff: ids at which bands begin.
    """

    def __init__(self, types: int, pad: int, dim: int, factor: float, cutoff: Sequence[int]):
        nn.Module.__init__(self)
        self.cutoff, self.embedding_dim, self.padding_idx = [*cutoff, types], dim, pad
        self.embeddings = nn.ModuleList()
        for number, (start, end) in enumerate(itertools.pairwise([0, *self.cutoff])):
            words = nn.Embedding(end - start, band_width(dim, factor, number), None if number else pad)
            projection = nn.Linear(words.embedding_dim, dim, bias=False)
            reset_embedding(words)
            nn.init.xavier_uniform_(projection.weight)
            self.embeddings.append(nn.Sequential(words, projection))
        self.register_buffer("_float_tensor", torch.zeros(1))  # stock's checkpoints have it

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...) -> (..., C), in the precision of the weights."""
        ids = input.reshape(-1)
        band = torch.bucketize(ids, torch.tensor(self.cutoff[:-1], device=ids.device), right=True)
        rows = [(band == number).nonzero().squeeze(1) for number in range(len(self.cutoff))]
        starts = [0, *self.cutoff]
        parts = [
            embed(ids.index_select(0, places) - start)
            for embed, places, start in zip(self.embeddings, rows, starts, strict=False)
        ]
        order = torch.empty_like(ids).scatter_(0, torch.cat(rows), torch.arange(ids.numel(), device=ids.device))
        found = torch.cat(parts).index_select(0, order).to(self._float_tensor.dtype)
        return found.view(*input.shape, self.embedding_dim)


class ExactAdaptiveSoftmax(AdaptiveSoftmax):
    """Grave et al. 2017 (arXiv 1609.04309): a head of frequent types and clusters, narrower tails of rare types.

    Two faults of the stock one are mended: asked for the log-probabilities of a target, it leaves all other types
    unnormalised; and its criterion ``adaptive_loss`` takes the type next to a tail's first for a pad, and forgets it.

    Args:
        pad: id of the pad, which is in the head. cpu_bf16: its products are in bf16 on the CPU, as the model's; asked
            after the model's forward, it is not under that one's autocast. Others as fairseq's.
    """

    def __init__(
        self,
        vocab_size: int,
        input_dim: int,
        cutoff: list[int],
        dropout: float,
        pad: int,
        cpu_bf16: bool = False,
        **more: Any,
    ):
        super().__init__(vocab_size, input_dim, cutoff, dropout, **more)
        self.pad, self.cpu_bf16 = pad, cpu_bf16
        for tail in self.tail:
            if isinstance(tail[0], nn.Linear) and not tail[0].out_features:  # stock's would be constant
                least = band_width(input_dim, self.factor, len(cutoff))
                tail[0] = nn.Linear(input_dim, least, bias=False)
                tail[2] = nn.Linear(least, tail[2].out_features, bias=False)
                nn.init.xavier_uniform_(tail[0].weight)
                nn.init.xavier_uniform_(tail[2].weight)

    def _half(self, states: Tensor) -> AbstractContextManager[object]:
        return cpu_bf16_autocast(self.cpu_bf16, states.device)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Nothing: stock asks for its version, which the weights of ``--store-ema`` do not hold."""

    def forward(self, input: Tensor, target: Tensor) -> tuple[list[Any], list[Any]]:
        """What ``adaptive_loss`` takes: logits of the head and of each tail that has a target, and those targets.

        In a tail no target is the number of the pad, which the criterion ignores: that type changes its place.
        """
        with self._half(input):
            output, targets = super().forward(input, target)
        output = [one if one is None else wide(one) for one in output]
        if self.training:  # every parameter gets a gradient in every update, as DDP wants
            unused = [tail for tail, one in zip(self.tail, output[1:], strict=True) if one is None]
            for tail in unused:
                output[0] = output[0] + 0 * sum(one.sum() for one in tail.parameters())
        for tail in range(1, len(output)):
            if output[tail] is not None and output[tail].size(1) > self.pad:
                output[tail], targets[tail] = self._without_pad(output[tail], targets[tail])
        return output, targets

    def _without_pad(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One column more: that of the pad is impossible, and what stood there is last."""
        pad, size = self.pad, logits.size(1)
        empty = torch.full_like(logits[:, :1], float("-inf"))
        moved = torch.cat([logits[:, :pad], empty, logits[:, pad + 1 :], logits[:, pad : pad + 1]], 1)
        return moved, target.masked_fill(target == pad, size)

    def loss(self, input: Tensor, target: Tensor, reduce: bool = True) -> Tensor:
        """Negative log-likelihood of target (B, T) at states (B, T, C), in fp32 or better; pads count nothing.

        Returns:
            The sum; with ``reduce=False`` (B * T,). Tails without target get a gradient of zero.
        """
        with self._half(input):
            return self._loss(input.reshape(-1, input.size(-1)), target.reshape(-1), reduce)

    def _loss(self, states: Tensor, target: Tensor, reduce: bool) -> Tensor:
        states = self.dropout_module(states)
        bounds = torch.tensor(self.cutoff[:-1], device=target.device)
        band = torch.bucketize(target, bounds, right=True)  # 0 is the head
        head_target = torch.where(band == 0, target, self.cutoff[0] + band - 1)
        total = cross_entropy(wide(self.head(states)), head_target, ignore_index=self.pad, reduction="none")
        total = total.sum() if reduce else total
        for number, tail in enumerate(self.tail):
            rows = (band == number + 1).nonzero().squeeze(1)
            logits = wide(tail(states.index_select(0, rows)))
            local = target.index_select(0, rows) - self.cutoff[number]
            if reduce:
                total = total + cross_entropy(logits, local, reduction="sum")
            else:
                total = total.index_add(0, rows, cross_entropy(logits, local, reduction="none"))
        return total

    def get_log_prob(self, input: Tensor, target: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, T, V) of all types at states (B, T, C), in fp32 or better, whatever the target."""
        with self._half(input):
            return self._log_prob(input.reshape(-1, input.size(-1))).view(*input.shape[:-1], -1)

    def _log_prob(self, states: Tensor) -> Tensor:
        head = log_softmax(wide(self.head(states)), -1)
        first = self.cutoff[0]
        found = head.new_empty(states.size(0), self.vocab_size)
        found[:, :first] = head[:, :first]
        for number, tail in enumerate(self.tail):
            start, end = self.cutoff[number], self.cutoff[number + 1]
            found[:, start:end] = log_softmax(wide(tail(states)), -1) + head[:, first + number, None]
        return found


class ProjectedAdaptiveSoftmax(ExactAdaptiveSoftmax):
    """The same with biases and a projection before the head too, as adaptive-span's code has it.

    Args:
        adaptive_inputs: share its embeddings (of all bands). tie_proj: and its projections, transposed. Others as
            fairseq's.
    """

    def __init__(
        self,
        vocab_size: int,
        input_dim: int,
        cutoff: list[int],
        dropout: float,
        pad: int,
        factor: float = 4.0,
        adaptive_inputs: Any = None,
        tie_proj: bool = False,
        cpu_bf16: bool = False,
    ):
        nn.Module.__init__(self)  # stock would first make bands of another form
        self.vocab_size, self.input_dim, self.factor, self.pad = vocab_size, input_dim, factor, pad
        self.cpu_bf16 = cpu_bf16
        self.cutoff = [*cutoff, vocab_size]
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        bands = []
        for number, (start, end) in enumerate(itertools.pairwise([0, *self.cutoff])):
            words, proj = (None, None) if adaptive_inputs is None else adaptive_inputs.weights_for_band(number)
            dim = band_width(input_dim, factor, number)
            rate = dropout if number else 0.0
            bands.append(_Band(input_dim, dim, end - start, rate, words, proj if tie_proj else None))
        self.head = _Head(bands[0], len(cutoff))
        self.tail = nn.ModuleList(bands[1:])
        self.register_buffer("version", torch.LongTensor([1]))


class _Band(nn.Module):
    """States (N, C) -> logits of some types (N, n): a projection to d channels, then weight and bias."""

    def __init__(self, width: int, dim: int, types: int, dropout: float, words: Any = None, proj: Any = None):
        super().__init__()
        self.dropout = dropout
        self.proj = nn.Parameter(torch.empty(width, dim)) if proj is None else proj  # as an input's projection to C
        self.weight = nn.Parameter(torch.empty(types, dim)) if words is None else words
        self.bias = nn.Parameter(torch.zeros(types))
        for mine, given in ((self.proj, proj), (self.weight, words)):
            if given is None:
                nn.init.xavier_uniform_(mine)

    def narrow(self, states: Tensor) -> Tensor:
        return dropout(linear(states, self.proj.t()), self.dropout, self.training)

    def forward(self, states: Tensor) -> Tensor:
        return linear(self.narrow(states), self.weight, self.bias)


class _Head(nn.Module):
    """The band of frequent types, and one logit for each tail."""

    def __init__(self, band: _Band, clusters: int):
        super().__init__()
        self.words = band
        self.class_proj = nn.Linear(band.weight.size(1), clusters)

    def forward(self, states: Tensor) -> Tensor:
        y = self.words.narrow(states)
        return torch.cat([linear(y, self.words.weight, self.words.bias), self.class_proj(y)], -1)


def reset_embedding(embedding: nn.Embedding) -> None:
    """Normal, of length 1 on average; the pad is zero."""
    nn.init.normal_(embedding.weight, 0.0, embedding.embedding_dim**-0.5)
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])


def adaptive_options(cfg: Any, dictionary: Any) -> AdaptiveOptions:
    """By the flags ``--adaptive-*`` and ``--tie-adaptive-*``.

    Raises:
        UserError: cutoffs that cannot be, or cannot be tied.
    """
    types, pad = len(dictionary), dictionary.pad()
    softmax = parse_cutoffs("adaptive-softmax-cutoff", cfg.adaptive_softmax_cutoff, types, pad)
    inputs = parse_cutoffs("adaptive-input-cutoff", cfg.adaptive_input_cutoff, types, pad)
    if inputs and not cfg.adaptive_input:
        raise UserError("--adaptive-input-cutoff needs --adaptive-input")
    inputs = (inputs or softmax) if cfg.adaptive_input else []
    if cfg.adaptive_input and not inputs:
        raise UserError("--adaptive-input needs --adaptive-input-cutoff or --adaptive-softmax-cutoff")
    check_least(cfg, 1, "adaptive_softmax_factor", "adaptive_input_factor")
    if cfg.tie_adaptive_proj and not cfg.tie_adaptive_weights:
        raise UserError("--tie-adaptive-proj needs --tie-adaptive-weights")
    if cfg.tie_adaptive_weights and not softmax and not inputs:
        raise UserError("--tie-adaptive-weights needs --adaptive-softmax-cutoff and --adaptive-input")
    return AdaptiveOptions(
        tuple(softmax),
        cfg.adaptive_softmax_factor,
        cfg.adaptive_softmax_dropout,
        tuple(inputs),
        cfg.adaptive_input_factor,
        cfg.tie_adaptive_weights,
        cfg.tie_adaptive_proj,
    )
