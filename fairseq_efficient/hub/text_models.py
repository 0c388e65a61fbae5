"""What the interfaces of models that write text have in common: texts in, texts out, options that are looked at."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.texts import text_coder

_OF_INTERFACES = {"verbose", "skip_invalid_size_inputs", "inference_step_args", "prefix_allowed_tokens_fn"}
_OPTIONS = {one.name for one in dataclasses.fields(GenerationConfig)} | _OF_INTERFACES
_NOT_HERE = {
    "score_reference": "texts are scored by .score()",
    "constraints": "of fairseq-interactive only",
    "print_alignment": "of fairseq-generate only",
    "replace_unk": "of fairseq-generate only",
}


def check_texts(texts: Iterable[Any]) -> list[str]:
    """The texts as a list; UserError for what is no text, or holds half a surrogate (of a file that is not UTF-8)."""
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"text {place} (from 0): {type(text).__name__}, not str")
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise UserError(f"text {place} (from 0): not valid Unicode (character {err.start})") from None
    return found


def check_options(options: Mapping[str, Any], beam: int, types: int, more: Mapping[str, str] | None = None) -> None:
    """UserError for options that fairseq-generate does not have, that cannot work here, or are out of range.

    Args:
        types: in the dictionary. more: option -> why it cannot work, beside those that work nowhere here.
    """
    refused = {**_NOT_HERE, **(more or {})}
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UserError(f"{name}: no option of fairseq-generate has that name")
        if name in refused and value:
            raise UserError(f"{name}={value}: {refused[name]}")
    for name, value in (("beam", beam), ("nbest", options.get("nbest", 1))):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    if not options.get("temperature", 1.0) > 0:
        raise UserError(f"temperature={options['temperature']}: must be greater than 0")
    if options.get("sampling_topk", -1) > types:
        raise UserError(f"sampling_topk={options['sampling_topk']}: the dictionary has {types:,} types")


class TextInterface(GeneratorHubInterface):
    """fairseq's interface (``encode``, ``decode``, ``cuda``, ``half`` ...) whose texts are those of the prepared data.

    Made by ``Model.from_pretrained``. Texts are cleaned as the training data was: a model of text8 sees lower case.
    """

    def __init__(self, model: Any, config: Any, task: Any, data: Path):
        self.coder = text_coder(data, task.source_dictionary)
        if self.coder is not None:  # what the checkpoint says of tokenizers is not needed, and so not followed
            config.bpe = config.tokenizer = None
        super().__init__(config, task, [model])
        self.eval()

    def encode(self, sentence: str) -> Tensor:
        """A text as tokens (T,) int64 with EOS at the end, as fairseq's interfaces have it."""
        if self.coder is None:
            return super().encode(sentence)
        tokens = self.coder.encode(self.coder.clean(sentence))
        return torch.cat([tokens, tokens.new_tensor([self.src_dict.eos()])])

    def decode(self, tokens: Tensor) -> str:
        """Tokens as text; EOS and pads are left out."""
        if self.coder is None:
            return super().decode(tokens)
        special = {self.tgt_dict.eos(), self.tgt_dict.pad(), self.tgt_dict.bos()}
        return self.coder.decode([self.tgt_dict[one] for one in tokens.tolist() if one not in special])
