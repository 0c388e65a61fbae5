"""Encoder that skips tokens: training and reference under a mask, inference on a packed buffer (``packed.py``).

B sentences, T columns, N real tokens, C channels, L layers. States are (T, B, C) under the mask as in fairseq, (N, C)
packed. Masks of padding: True = pad; masks of skimming: 1 = kept.
"""

from typing import Any

import torch
from fairseq.models.transformer import TransformerConfig, TransformerEncoder
from torch import Tensor, nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.modules.layer_steps import wrap_layer
from fairseq_efficient.modules.packed_encoder_layer import PackedEncoderLayer
from fairseq_efficient.ops.token_mask import masked_update
from fairseq_efficient.precision import cpu_bf16_autocast
from fairseq_efficient.schedules import linear
from skimming.flops import EncoderSizes
from skimming.options import SkimOptions
from skimming.packed import encode_packed
from skimming.predictor import SkimPredictor, decide, protected_tokens, segments
from skimming.statistics import SkimCounts, Skimmed


class SkimEncoder(TransformerEncoder):
    """fairseq's encoder with a predictor before each chosen layer; a skipped token keeps its state to the end.

    Args:
        args: complete :class:`SkimRobertaConfig` with the fields that RobertaEncoder adds.
        eos: id of </s>.
    """

    def __init__(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding, options: SkimOptions, eos: int):
        self.options, self.eos, self.noise = options, eos, options.noise
        super().__init__(args, dictionary, embed_tokens)
        dim = embed_tokens.embedding_dim
        self.segment_embeddings = nn.Embedding(options.num_segments, dim) if options.num_segments else None
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = options.layer_norm_eps
        start = options.predictor_dim, options.init_bias, options.lr_scale
        self.skim_predictors = nn.ModuleDict({str(layer): SkimPredictor(dim, *start) for layer in options.layers})
        ffn = args.encoder_ffn_embed_dim
        flags = tuple(layer in options.layers for layer in range(args.encoder_layers))
        self.sizes = EncoderSizes(dim, ffn, options.predictor_dim, flags)

    def build_encoder_layer(self, cfg: Any) -> Any:
        cfg = TransformerConfig.from_namespace(cfg)
        return wrap_layer(PackedEncoderLayer(cfg, self.options.rule, self.options.backend), cfg)

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.segment_embeddings is not None:
            if token_embedding is None:
                token_embedding = self.embed_tokens(src_tokens)
            found = segments(src_tokens, self.eos, self.options.num_segments)
            token_embedding = token_embedding + self.segment_embeddings(found)
        return super().forward_embedding(src_tokens, token_embedding)

    def set_num_updates(self, num_updates: int) -> None:
        """The noise of decisions in training follows its schedule."""
        if self.options.noise_updates:
            self.noise = linear(self.options.noise, 0.0, self.options.noise_updates, num_updates)

    def runs_packed(self, return_all_hiddens: bool = False) -> bool:
        """Whether a forward now drops tokens: never in training, nor where that would not compute the same."""
        options = self.options
        possible = not return_all_hiddens and options.rule == "renorm" and not options.count_padding
        return not self.training and options.inference != "masked" and possible

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        first_only: bool = False,
        return_masks: bool = False,
    ) -> dict[str, Any]:
        """src_tokens (B, T) -> fairseq's dict, with ``skim``: :class:`Skimmed`.

        Args:
            return_all_hiddens: states of every layer, which only the masked path has.
            token_embeddings: (B, T, C) instead of the table's.
            first_only: the caller reads the first token only: packed, ``encoder_out`` may be (1, B, C).
            return_masks: packed inference too shall return the masks.

        Raises:
            UserError: a sentence has more tokens than positions.
        """
        padding = src_tokens.eq(self.padding_idx)
        self._check_length(padding)
        with cpu_bf16_autocast(self.options.cpu_bf16, src_tokens.device):
            if self.runs_packed(return_all_hiddens):
                x, skimmed = encode_packed(self, src_tokens, padding, token_embeddings, first_only, return_masks)
                states: list[Tensor] = []
            else:
                x, skimmed, states = self._encode_masked(src_tokens, padding, token_embeddings, return_all_hiddens)
        return {
            "last_state": x,  # fairseq looks for NaN by hooks, which want a tensor among the values
            "encoder_out": [x],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [],
            "encoder_states": states,
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [],
            "skim": skimmed,
        }

    def _check_length(self, padding: Tensor) -> None:
        limit = self.max_positions()
        if padding.size(1) > limit:
            longest = int((~padding).sum(1).max()) if padding.numel() else 0
            if longest > limit:
                raise UserError(
                    f"a sentence has {longest} tokens, the model --max-positions {limit}: shorten it "
                    "(--shorten-method truncate)"
                )

    def _encode_masked(
        self, src_tokens: Tensor, padding: Tensor, token_embeddings: Tensor | None, return_all_hiddens: bool
    ) -> tuple[Tensor, Skimmed, list[Tensor]]:
        """States (T, B, C), what was kept, and all states if asked for: the embedding, then after each layer."""
        x = self.forward_embedding(src_tokens, token_embeddings)[0]
        x = x.masked_fill(padding.unsqueeze(-1), 0.0).transpose(0, 1)
        states = [x] if return_all_hiddens else []
        protected = protected_tokens(src_tokens, padding, self.eos, self.options.protect)
        # as LayerDropModuleList draws it; a dropped layer's predictor does not decide
        drops = self.training and self.encoder_layerdrop > 0
        runs = torch.empty(self.num_layers).uniform_() > self.encoder_layerdrop if drops else None
        alive: Tensor | None = None
        masks = []
        for number in range(self.num_layers):
            if runs is None or runs[number]:
                alive = self._decide(number, x, protected, alive)
                x = self._layer(number, x, padding, alive)
            masks.append(torch.ones_like(padding, dtype=torch.float) if alive is None else alive)
            if return_all_hiddens:
                states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x, self._skimmed(masks, padding, protected), states

    def _decide(self, number: int, x: Tensor, protected: Tensor, alive: Tensor | None) -> Tensor | None:
        """Tokens (B, T) that enter layer ``number``; None as long as no predictor has decided."""
        if str(number) not in self.skim_predictors:
            return alive
        logits = self.skim_predictors[str(number)](x).transpose(0, 1)
        options = self.options
        sample, noise = self.training or options.eval_sample, self.noise if self.training else 1.0
        kept = decide(logits, sample, options.tau, options.threshold, noise).masked_fill(protected, 1.0)
        return kept if alive is None else alive * kept

    def _layer(self, number: int, x: Tensor, padding: Tensor, alive: Tensor | None) -> Tensor:
        """One layer over all tokens; tokens that are not alive are no keys and keep their state."""
        layer = self.layers[number]
        if alive is not None and (alive.requires_grad or self.options.rule == "postmult"):
            new = layer(x, encoder_padding_mask=padding, keep=alive)
        else:
            hidden = padding if alive is None else padding | (alive == 0)
            new = layer(x, encoder_padding_mask=hidden if bool(hidden.any()) else None)  # as fairseq calls it
        return new if alive is None else masked_update(new, x, alive.t())

    def _skimmed(self, masks: list[Tensor], padding: Tensor, protected: Tensor) -> Skimmed:
        every = torch.stack(masks)
        real = every.masked_fill(padding, 0.0)
        with_padding = every.sum(-1).unbind() if self.options.count_padding else None
        counts = SkimCounts(real.sum(-1).unbind(), (~padding).sum(1), protected.sum(1), padding.size(1), with_padding)
        return Skimmed(counts, real)
