"""Ragged batches in one buffer: unpad, drop tokens, attend within each sentence, pad again."""

from fairseq_efficient.ops.token_pack.common import BACKENDS, TokenLayout
from fairseq_efficient.ops.token_pack.fast import compact_tokens, pack_tokens, repad_tokens, varlen_attention

__all__ = ["BACKENDS", "TokenLayout", "compact_tokens", "pack_tokens", "repad_tokens", "varlen_attention"]
