"""Heads on the encoder's states. C channels."""

from typing import Any

from fairseq.models.roberta.model import RobertaClassificationHead
from torch import Tensor, nn

from skimming.flops import classification_macs, question_answering_macs


class QuestionAnsweringHead(nn.Module):
    """States (B, T, C) -> scores (B, T, 2) for the start and the end of an answer."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_proj = nn.Linear(dim, 2)
        nn.init.normal_(self.out_proj.weight, 0.0, 0.02)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """features (B, T, C) -> scores (B, T, 2)."""
        return self.out_proj(features)


def reads_first_token_only(head: nn.Module) -> bool:
    """Whether the last layer may compute the first token alone."""
    return type(head) is RobertaClassificationHead


def head_macs(head: nn.Module | None, tokens: Tensor) -> Tensor:
    """Multiply-adds of a head for sentences of these numbers of tokens (B,) int64; 0 for a head we do not know."""
    if isinstance(head, RobertaClassificationHead):
        inner = head.dense.out_features
        return tokens.new_full(tokens.shape, classification_macs(head.dense.in_features, inner, _classes(head)))
    if isinstance(head, QuestionAnsweringHead):
        return question_answering_macs(tokens, head.out_proj.in_features)
    return tokens.new_zeros(tokens.shape)


def _classes(head: RobertaClassificationHead) -> int:
    return int(head.out_proj.out_features)
