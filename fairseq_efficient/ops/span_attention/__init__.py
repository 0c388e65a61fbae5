"""Attention over a sliding window of earlier keys with a learned soft span for each head (Sukhbaatar et al. 2019)."""

from fairseq_efficient.ops.span_attention.common import head_groups, soft_mask, span_width
from fairseq_efficient.ops.span_attention.fast import span_attention, span_attention_step

__all__ = ["head_groups", "soft_mask", "span_attention", "span_attention_step", "span_width"]
