"""The hourglass: token layers, pooling, layers over segments, upsampling, token layers (Nawrot et al. 2023, section 2).

Shapes: B batch, T tokens, S segments with the null segment (1 + most boundaries in a row), D width, V types.
A segment closes *with* its boundary token, which already reads it; tokens before a row's first boundary read the null
segment. Masks: True = pad; pads stand at the right (rows that are left-padded are moved first).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamic_pooling import decoding
from dynamic_pooling.boundaries import Boundaries, BoundaryOptions, BoundaryRule
from dynamic_pooling.layout import Layout
from dynamic_pooling.losses import boundary_loss, statistics
from dynamic_pooling.smoothing import closing_probability, confidence, smooth_segments
from dynamic_pooling.stack import LayerOptions, Positions, Stack, activation
from fairseq_efficient.modules.stream_decoder import CausalDecoder, alignment, moved
from fairseq_efficient.ops.segment_pool import segment_layout, segment_pool, upsample
from fairseq_efficient.precision import cpu_bf16_autocast


@dataclass(frozen=True)
class HourglassOptions:
    """Plain values of the flags; see :mod:`dynamic_pooling.config`."""

    layout: Layout
    layer: LayerOptions
    shortened: LayerOptions
    boundaries: BoundaryOptions
    spikes_left: int = 2
    prior: float = 0.2
    rate_loss: str = "binomial"
    loss_twice: bool = False  # --boundary-loss-compat orig
    estimator: str = "interior"
    pooling: str = "mean"
    smooth: bool = False
    packed: bool = False
    teacher_forcing_updates: int = 0
    init_std: float = 0.02
    cpu_bf16: bool = False


class HourglassDecoder(CausalDecoder):
    """Language model over tokens (B, T); ``dictionary`` only says which id is the pad and how many there are."""

    def __init__(self, dictionary: Any, options: HourglassOptions):
        super().__init__(dictionary)
        o = self.options = options
        dim, types = o.layer.dim, len(dictionary)
        self.embed_tokens = nn.Embedding(types, dim)
        self.pre = Stack(o.layer, o.layout.pre)
        self.content_bias = self.position_bias = None
        if not o.layer.rotary:
            self.content_bias = nn.Parameter(torch.empty(o.layer.heads, o.layer.head_dim))
            self.position_bias = nn.Parameter(torch.empty(o.layer.heads, o.layer.head_dim))
        self.boundary_rule: BoundaryRule | None = None
        if o.layout.shortened:
            self.null_segment = nn.Parameter(torch.empty(dim))
            self.segment_layer_norm = nn.LayerNorm(dim)
            self.boundary_rule = BoundaryRule(o.boundaries, dim, o.layer.ffn, activation(o.layer.activation))
            self.short = Stack(o.shortened, o.layout.shortened)
            self.post = Stack(o.layer, o.layout.post)
            self._add_width(dim)
        self.output_projection = nn.Linear(dim, types)
        self.reset_parameters()

    def _add_width(self, dim: int) -> None:
        wide = self.options.shortened
        self.widen: nn.Module = nn.Identity()
        self.narrow: nn.Module = nn.Identity()
        if wide.dim != dim:
            self.widen, self.narrow = nn.Linear(dim, wide.dim), nn.Linear(wide.dim, dim)
        if not wide.rotary and (wide.heads, wide.head_dim) != (self.options.layer.heads, self.options.layer.head_dim):
            self.short_content_bias = nn.Parameter(torch.empty(wide.heads, wide.head_dim))
            self.short_position_bias = nn.Parameter(torch.empty(wide.heads, wide.head_dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights (also those of LayerNorms, around 1), zero biases, as the original."""
        std = self.options.init_std
        for name, value in self.named_parameters():
            owner = self.get_submodule(name.rpartition(".")[0])
            if name == "null_segment":
                nn.init.normal_(value)
            elif isinstance(owner, nn.LayerNorm):
                nn.init.normal_(value, 1.0, std) if name.endswith("weight") else nn.init.zeros_(value)
            elif name.endswith(".bias"):
                nn.init.zeros_(value)
            else:
                nn.init.normal_(value, 0.0, std)

    # --- full sequences -----------------------------------------------------------------------------------------

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        boundary_targets: Tensor | None = None,
        boundaries: Tensor | None = None,
        sample_boundaries: bool | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) for the token after each, and extras.

        Args:
            prev_output_tokens: (B, T). With ``incremental_state``: all tokens so far, of which the first call reads
                all, and later calls those that are new; logits are of the tokens read.
            boundary_targets: (B, T), what a tokenizer says (the predictor's target for unigram).
            boundaries: (B, T), used instead of the model's own.
            sample_boundaries: draw gumbel boundaries; None: in training (see ``--gumbel-eval``).

        Returns:
            logits, and ``attn``, ``boundaries`` (B, T) bool, ``aux`` (losses summed over tokens), ``stats`` (counts),
            ``can_sample``.
        """
        with cpu_bf16_autocast(self.options.cpu_bf16, prev_output_tokens.device):
            if incremental_state is not None:
                return self.output_projection(self.incremental(prev_output_tokens, incremental_state)), {"attn": [None]}
            return self._full(prev_output_tokens, boundary_targets, boundaries, sample_boundaries)

    def _full(self, tokens: Tensor, targets: Tensor | None, given: Tensor | None, sample: bool | None) -> Any:
        order, back = alignment(tokens, self.pad, self.training)
        tokens, targets, given = (moved(one, order) for one in (tokens, targets, given))
        padding_mask = tokens.eq(self.pad)
        x, found = self.extract(tokens, padding_mask, self._forced(targets, given), sample)
        logits = self.output_projection(x)
        extra: dict[str, Any] = {"attn": [None]}
        if found is not None:
            extra["boundaries"] = moved(found.values.detach().bool(), back)
            extra["aux"], reference = boundary_loss(self.options, found, logits, targets, padding_mask)
            extra["stats"] = statistics(self.options.boundaries, tokens, found, reference, targets, padding_mask)
            extra["can_sample"] = self.options.boundaries.type == "gumbel"
        return moved(logits, back), extra

    def _forced(self, targets: Tensor | None, given: Tensor | None) -> Tensor | None:
        if given is not None:
            return given.bool()
        forced = self.training and self.num_updates < self.options.teacher_forcing_updates
        return targets.bool() if forced and targets is not None else None

    def extract(
        self, tokens: Tensor, padding_mask: Tensor, forced: Tensor | None = None, sample: bool | None = None
    ) -> tuple[Tensor, Boundaries | None]:
        """States (B, T, D) that the output projection reads, and where segments end."""
        x = self._embed(tokens)
        token_positions = self.token_positions(tokens.size(1), x)
        h = self.pre(x, token_positions)
        if self.boundary_rule is None:
            return h, None
        found = self.boundary_rule(tokens, h, padding_mask, sample=sample, forced=forced)
        closed = found.values.detach().bool()
        layout = segment_layout(closed, padding_mask)
        last = self.options.pooling == "last"  # which passes no gradient to boundaries
        pooled = segment_pool(
            h,
            closed if last else found.values,
            padding_mask,
            kind=self.options.pooling,
            estimator=self.options.estimator,
            null=self.null_segment.to(h.dtype),
            layout=layout,
        )
        u = self._segments(pooled.values, layout.lengths, found, layout.ids, closed)
        return self.post(u + h, token_positions), found

    def _segments(self, values: Tensor, lengths: Tensor, found: Boundaries, ids: Tensor, closed: Tensor) -> Tensor:
        """What each token reads from the shortened stack: values (B, S, D) -> (B, T, D)."""
        o = self.options
        s = self.widen(self.segment_layer_norm(values))
        positions = self.segment_positions(s.size(1), s)
        if o.packed:
            real = torch.arange(s.size(1), device=s.device) < lengths.unsqueeze(1)
            z = self.narrow(self.short(s[real], positions, lengths.tolist()))
            if not o.smooth:
                starts = lengths.cumsum(0) - lengths
                return upsample(z[None], (ids + starts.unsqueeze(1)).view(1, -1)).view(*ids.shape, -1)
            padded = z.new_zeros(*values.shape[:2], z.size(-1))
            z = padded.masked_scatter(real.unsqueeze(-1), z)
        else:
            z = self.narrow(self.short(s, positions))
        if not o.smooth:
            return upsample(z, ids)
        assert found.probability is not None
        p = closing_probability(found.probability, ids, closed, z.size(1))
        u = upsample(smooth_segments(z, p), ids)
        return u * confidence(found.probability, closed).unsqueeze(-1).to(u.dtype)

    def _embed(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.dropout(self.embed_tokens(tokens), self.options.layer.dropout, self.training)

    def token_positions(self, length: int, like: Tensor) -> Positions:
        return self.pre.positions(length, like, self.biases())

    def segment_positions(self, length: int, like: Tensor) -> Positions:
        return self.short.positions(length, like, self.biases(shortened=True))

    def biases(self, shortened: bool = False) -> list[Tensor]:
        """Content and position bias of relative attention; none of rotary."""
        if shortened and hasattr(self, "short_content_bias"):
            return [self.short_content_bias, self.short_position_bias]
        return [] if self.content_bias is None else [self.content_bias, self.position_bias]  # type: ignore[list-item]

    # --- incremental decoding -------------------------------------------------------------------------------------

    def empty_state(self, rows: int) -> decoding.HourglassState:
        return decoding.empty_state(self, rows)

    def fill(self, tokens: Tensor, state: decoding.HourglassState) -> Tensor:
        return decoding.fill(self, tokens, state)

    def step(self, tokens: Tensor, state: decoding.HourglassState) -> Tensor:
        return decoding.step(self, tokens, state)
