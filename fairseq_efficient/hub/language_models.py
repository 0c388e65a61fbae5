"""A trained language model that continues and scores texts."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.texts import text_coder
from fairseq_efficient.modules.stream_language_model import StreamLanguageModel

WINDOW = 2048  # tokens that a model without memory reads at once


class LanguageModelInterface(GeneratorHubInterface):
    """fairseq's interface (``encode``, ``decode``, ``sample``, ``cuda``) whose texts are those of the prepared data.

    Made by ``Model.from_pretrained``. Texts are cleaned as the training data was: a model of text8 sees lower case.
    """

    def __init__(self, model: Any, config: Any, task: Any, data: Path):
        super().__init__(config, task, [model])
        self.coder = text_coder(data, task.source_dictionary)
        self.eval()

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.models[0]

    @property
    def dictionary(self) -> Any:
        """fairseq's dictionary of its symbols."""
        return self.task.source_dictionary

    # --- texts ------------------------------------------------------------------------------------------------------

    def encode(self, sentence: str) -> Tensor:
        """A text as tokens (T,) int64 with EOS at the end, as fairseq's interfaces have it."""
        if self.coder is None:
            return super().encode(sentence)
        tokens = self.coder.encode(self.coder.clean(sentence))
        return torch.cat([tokens, tokens.new_tensor([self.dictionary.eos()])])

    def decode(self, tokens: Tensor) -> str:
        """Tokens as text; EOS and pads are left out."""
        if self.coder is None:
            return super().decode(tokens)
        special = {self.dictionary.eos(), self.dictionary.pad(), self.dictionary.bos()}
        return self.coder.decode([self.dictionary[one] for one in tokens.tolist() if one not in special])

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
            UserError: length < 1.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], beam, length, **options)[0]
        if torch.is_tensor(prompts) or not all(isinstance(one, str) for one in prompts):
            return super().generate(prompts, beam=beam, **options)
        if length < 1:
            raise UserError(f"length={length}: must be at least 1")
        tokens = [self.encode(prompt) for prompt in prompts]
        sizes = [len(one) - 1 for one in tokens]
        limit = {"max_len_a": 0, "max_len_b": max(sizes, default=0) + length}
        found = super().generate(tokens, beam=beam, **{**limit, **options})
        return [self.decode(one[0]["tokens"][n : n + length]) for one, n in zip(found, sizes, strict=True)]

    # --- scoring ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Of a document's tokens (T,), which follow EOS: (T,) fp32 log-probabilities, in nats, of each after those
        before it. A model with memory reads block by block, as in evaluation; another one windows of 2,048 tokens with
        half as many before them as context."""
        tokens = tokens.to(self.device)
        start = tokens.new_tensor([self.dictionary.eos()])
        before, after = torch.cat([start, tokens[:-1]]), tokens
        blocks = self._blocks(before) if isinstance(self.model, StreamLanguageModel) else self._windows(before)
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
        for block in tokens.split(self.task.evaluation_tokens()):
            logits, extra = self.model.decoder(block[None], memory=memory)
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
        return [self._score(sentence) for sentence in sentences]

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
