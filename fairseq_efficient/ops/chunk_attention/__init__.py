"""Chunked (blockwise) self-attention."""

from fairseq_efficient.ops.chunk_attention.fast import chunk_attention

__all__ = ["chunk_attention"]
