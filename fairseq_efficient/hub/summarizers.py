"""A trained encoder-decoder that summarizes documents."""

from pathlib import Path
from typing import Any

import torch
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_efficient.hub.texts import text_coder
from fairseq_efficient.text.sentences import unmark_sentences


class SummarizerInterface(GeneratorHubInterface):
    """fairseq's interface (``encode``, ``decode``, ``translate``, ``cuda``) with :meth:`summarize`."""

    def __init__(self, model: Any, config: Any, task: Any, data: Path):
        super().__init__(config, task, [model])
        self.coder = text_coder(data, task.source_dictionary)
        self.eval()

    def encode(self, sentence: str) -> Tensor:
        """A document as tokens (T,) int64 with EOS at the end; the task cuts what is too long, and says so."""
        if self.coder is None:
            return super().encode(sentence)
        tokens = self.coder.encode(self.coder.clean(sentence))
        return torch.cat([tokens, tokens.new_tensor([self.src_dict.eos()])])

    def decode(self, tokens: Tensor) -> str:
        """Tokens as text, with marks between sentences."""
        if self.coder is None:
            return super().decode(tokens)
        special = {self.tgt_dict.eos(), self.tgt_dict.pad(), self.tgt_dict.bos()}
        return self.coder.decode([self.tgt_dict[one] for one in tokens.tolist() if one not in special])

    def summarize(
        self, documents: Any, beam: int = 4, max_len_b: int = 400, no_repeat_ngram_size: int = 3, **options: Any
    ) -> Any:
        """The summary of each document, in their order, its sentences on lines of their own; a string for a string.

        ``options`` are those of fairseq-generate (``lenpen``, ``min_len`` ...). Documents share batches by the
        interface's ``cfg.dataset`` (``max_tokens``, ``batch_size``).
        """
        if isinstance(documents, str):
            return self.summarize([documents], beam, max_len_b, no_repeat_ngram_size, **options)[0]
        tokens = [self.encode(document) for document in documents]
        limits = {"max_len_a": 0, "max_len_b": max_len_b, "no_repeat_ngram_size": no_repeat_ngram_size}
        found = self.generate(tokens, beam=beam, **{**limits, **options})
        return ["\n".join(unmark_sentences(self.decode(one[0]["tokens"]))) for one in found]
