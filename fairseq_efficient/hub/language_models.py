"""A trained language model that continues and scores texts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.text_models import TextInterface, check_options, check_texts
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel

WINDOW = 2048  # tokens that a model without memory reads at once


class LanguageModelInterface(TextInterface):
    """fairseq's interface (``encode``, ``decode``, ``sample``, ``cuda``) that continues and scores texts."""

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.models[0]

    @property
    def dictionary(self) -> Any:
        """fairseq's dictionary of its symbols."""
        return self.src_dict

    # --- continuing -------------------------------------------------------------------------------------------------

    def generate(self, prompts: Any, beam: int = 1, length: int = 200, **options: Any) -> Any:
        """Continue texts.

        Args:
            prompts: a text or several; tokens are left to fairseq's interface, as are its other arguments.
            length: tokens to add at most; a document may end before.
            options: of fairseq-generate: ``sampling=True, sampling_topk=10, temperature=0.8``, ``lenpen``,
                ``min_len`` (prompts count) ...

        Returns:
            The continuation of each prompt, without it; a string for a string.

        Raises:
            UserError: length < 1, what is no text, options that there are not or that are out of range.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], beam, length, **options)[0]
        prompts = prompts if torch.is_tensor(prompts) else list(prompts)
        if torch.is_tensor(prompts) or any(map(torch.is_tensor, prompts)):
            return super().generate(prompts, beam=beam, **options)
        if length < 1:
            raise UserError(f"length={length}: must be at least 1")
        check_options(options, beam, len(self.tgt_dict), dict.fromkeys(("max_len_a", "max_len_b"), "say length="))
        tokens = [self.encode(prompt) for prompt in check_texts(prompts)]
        found = [""] * len(tokens)
        for places in _searched_together(tokens, beam):
            longest = max(len(tokens[place]) for place in places) - 1
            limit = {"max_len_a": 0, "max_len_b": longest + length}
            hypotheses = super().generate([tokens[place] for place in places], beam=beam, **{**options, **limit})
            for place, one in zip(places, hypotheses, strict=True):
                if not one:
                    raise UserError(f"prompt {place} (from 0): no continuation is allowed (prefix_allowed_tokens_fn)")
                start = len(tokens[place]) - 1
                found[place] = self.decode(one[0]["tokens"][start : start + length])
        return found

    # --- scoring ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Of a document's tokens (T,), which follow EOS: (T,) fp32 log-probabilities, in nats, of each after those
        before it. A model with memory reads block by block, as in evaluation; another one windows of 2,048 tokens with
        half as many before them as context."""
        tokens = tokens.to(self.device)
        start = tokens.new_tensor([self.dictionary.eos()])
        before, after = torch.cat([start, tokens[:-1]]), tokens
        remembers = isinstance(self.model, StreamLanguageModel) and hasattr(self.task, "evaluation_tokens")
        blocks = self._blocks(before) if remembers else self._windows(before)
        found, done = [], 0
        for output, skip in blocks:
            scores = self.model.get_normalized_probs(output, log_probs=True)[0, skip:].float()
            targets = after[done : done + len(scores)]
            found.append(scores.gather(1, targets[:, None]).squeeze(1))
            done += len(scores)
        return torch.cat(found).cpu() if found else torch.zeros(0)

    def _blocks(self, tokens: Tensor) -> Iterator[tuple[Any, int]]:
        """Outputs of blocks one after another, with memory."""
        memory: Any = None
        most = self.task.args.eval_mem_len
        for block in tokens.split(self.task.evaluation_tokens()):
            logits, extra = self.model.decoder(block[None], memory=memory, memory_length=most)
            memory = extra.pop("memory")
            yield (logits, extra), 0

    def _windows(self, tokens: Tensor) -> Iterator[tuple[Any, int]]:
        """Outputs of windows, and how many of their first ones were read for context only: half a window."""
        for start in range(0, len(tokens), WINDOW):
            early = max(start - WINDOW // 2, 0)
            yield self.model(tokens[None, early : start + WINDOW]), start - early

    def score(self, sentences: Any, **options: Any) -> Any:
        """How probable texts are, each as a document of its own.

        Returns:
            For each text a dict: ``tokens`` (T,), ``positional_scores`` (T,) log-probabilities in nats and ``score``,
            their mean, as fairseq's interface; ``perplexity`` by token; ``bits_per_character`` of the cleaned text.
        """
        if isinstance(sentences, str):
            return self.score([sentences], **options)[0]
        return [self._score(sentence) for sentence in check_texts(sentences)]

    def _score(self, text: str) -> dict[str, Any]:
        tokens = self.encode(text)[:-1]
        scores = self.log_probabilities(tokens)
        characters = len(self.coder.clean(text)) if self.coder else len(text)
        mean = float(scores.double().mean()) if len(scores) else math.nan
        bits = -float(scores.double().sum()) / math.log(2)
        return {
            "tokens": tokens,
            "positional_scores": scores,
            "score": mean,
            "perplexity": math.exp(-mean) if mean > -700 else math.inf,
            "bits_per_character": bits / characters if characters else math.nan,
        }


def _searched_together(tokens: Sequence[Tensor], beam: int) -> list[list[int]]:
    """Places of prompts that one search may serve. A beam goes on until the longest prompt of a batch has its length,
    and could end elsewhere alone: then those of one length."""
    if beam == 1:
        return [list(range(len(tokens)))] if tokens else []
    found: dict[int, list[int]] = {}
    for place, one in enumerate(tokens):
        found.setdefault(len(one), []).append(place)
    return list(found.values())
