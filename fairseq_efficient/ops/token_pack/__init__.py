"""Ragged batches in one buffer: unpad, drop tokens, attend within each sentence, pad again."""

from fairseq_efficient.ops.token_pack.attention import BackendError
from fairseq_efficient.ops.token_pack.common import BACKENDS, TokenLayout
from fairseq_efficient.ops.token_pack.fast import (
    compact_tokens,
    pack_tokens,
    places_where,
    repad_tokens,
    varlen_attention,
)

__all__ = [
    "BACKENDS", "BackendError", "TokenLayout", "compact_tokens", "pack_tokens", "places_where", "repad_tokens",
    "varlen_attention",
]  # fmt: skip
