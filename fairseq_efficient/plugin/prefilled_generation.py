"""fairseq's generator for language models, with prompts read by one forward instead of token by token.

Works with a decoder that accepts several new tokens at once on a fresh ``incremental_state`` and returns a logit row
for each of them. Scores and hypotheses are those of the stock generator.
"""

import logging
from typing import Any

import torch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from fairseq_efficient.errors import UserError

logger = logging.getLogger(__name__)


def cut_prefix(prefix: Tensor, eos: int, pad: int) -> Tensor:
    """Prompts (B, P) with pads from the first EOS of a row on: there its document ends and the model goes on freely."""
    over = prefix.eq(eos).cumsum(1) > 0
    return prefix.masked_fill(over, pad)


def common_prefix_length(prefix: Tensor, eos: int, pad: int) -> int:
    """Columns of ``prefix`` (B, P) in which every row is forced to a token."""
    free = (prefix.eq(pad) | prefix.eq(eos)).any(0)
    return int(free.nonzero()[0]) if bool(free.any()) else prefix.size(1)


class PrefillingEnsemble(EnsembleModel):
    """Answers the steps inside the prompt that all rows have from one forward per sentence."""

    def __init__(self, models: Any):
        super().__init__(models)
        self.forget()

    def plan(self, prefix: Tensor) -> None:
        """Forced tokens (B, P), the same number for each sentence, that the next generation starts with."""
        self.prefix: Tensor | None = prefix

    def forget(self) -> None:
        self.prefix = None
        self.known: Tensor | None = None
        self.answered = -1  # the last step inside the prompt that was asked for

    def reorder_incremental_state(self, incremental_states: Any, new_order: Tensor) -> None:
        """Nothing to do inside the prompt: there all rows of a sentence are alike."""
        if self.prefix is None or self.answered >= self.prefix.size(1):
            super().reorder_incremental_state(incremental_states, new_order)

    @torch.no_grad()
    def forward_decoder(
        self, tokens: Tensor, encoder_outs: Any, incremental_states: Any, temperature: float = 1.0
    ) -> Any:
        step = tokens.size(1) - 1
        if self.prefix is None or step > self.prefix.size(1):
            return super().forward_decoder(tokens, encoder_outs, incremental_states, temperature)
        if step == 0:
            self.known = self._read(tokens, incremental_states, temperature)
        assert self.known is not None
        self.answered = step
        beam = tokens.size(0) // self.known.size(0)
        return self.known[:, step].repeat_interleave(beam, 0), None

    def _read(self, tokens: Tensor, incremental_states: Any, temperature: float) -> Tensor:
        """Log-probabilities (B, 1 + P, V) of one forward over start symbol and prompt; states are left behind it."""
        assert self.prefix is not None
        sentences = self.prefix.size(0)
        beam = tokens.size(0) // sentences
        whole = torch.cat([tokens[::beam, :1], self.prefix], 1)
        found = []
        for model, state in zip(self.models, incremental_states, strict=True):
            logits, extra = model.decoder(whole, incremental_state=state)
            found.append(model.get_normalized_probs((logits.div_(temperature), extra), log_probs=True))
        rows = torch.arange(sentences, device=whole.device).repeat_interleave(beam)
        super().reorder_incremental_state(incremental_states, rows)
        if len(found) == 1:
            return found[0]
        return torch.logsumexp(torch.stack(found), 0) - torch.log(torch.tensor(float(len(found))))


class PrefilledGenerator(SequenceGenerator):
    """``SequenceGenerator`` whose prompts are read at once; what one row has longer than another is forced as usual."""

    def __init__(self, models: Any, *args: Any, **kwargs: Any):
        super().__init__(PrefillingEnsemble(models), *args, **kwargs)

    def _generate(self, sample: Any, prefix_tokens: Any = None, constraints: Any = None, bos_token: Any = None) -> Any:
        self.model.forget()
        if prefix_tokens is not None and self.lm_model is None:
            length = common_prefix_length(prefix_tokens, self.eos, self.pad)
            longest = int(self.max_len_a * sample["net_input"]["src_tokens"].size(1) + self.max_len_b)
            self._tell_cut(prefix_tokens, min(longest, self.max_len - 1))
            length = min(length, longest - 1, self.max_len - 2)
            if length > 0:
                self.model.plan(prefix_tokens[:, :length])
        try:
            return super()._generate(sample, prefix_tokens, constraints, bos_token)
        finally:
            self.model.forget()

    def _tell_cut(self, prefix: Tensor, longest: int) -> None:
        cut = int(prefix.ne(self.pad).sum(1).gt(longest).sum())
        if cut:
            logger.warning(f"{cut} prompt(s) cut to {longest} tokens: raise --max-len-b, which counts the prompt too")


class PromptReader:
    """Beside a language-modelling task: prompts are read by one forward and end where their document does."""

    dictionary: Any

    def can_prefill(self, models: Any) -> bool:
        """Whether the models' decoders read several tokens at once in incremental decoding."""
        return True

    def build_generator(self, models: Any, args: Any, **kwargs: Any) -> Any:
        """fairseq's generator; prompts are read by one forward, not token by token. UserError for options that need a
        source beside the text."""
        for name in ("print_alignment", "constraints"):
            if getattr(args, name, None):
                raise UserError(f"--{name.replace('_', '-')}: not for language models")
        if self.can_prefill(models):
            kwargs = {"seq_gen_cls": PrefilledGenerator, **kwargs}
        return super().build_generator(models, args, **kwargs)  # type: ignore[misc]

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Prompts end where their document does (at EOS), and rows with shorter ones go on freely."""
        if prefix_tokens is not None:
            prefix_tokens = cut_prefix(prefix_tokens, self.dictionary.eos(), self.dictionary.pad())
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)  # type: ignore[misc]
