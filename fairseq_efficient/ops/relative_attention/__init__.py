"""Causal attention with relative positions (Dai et al. 2019, "Transformer-XL", section 3.3)."""

from fairseq_efficient.ops.relative_attention.fast import relative_attention, relative_attention_step

__all__ = ["relative_attention", "relative_attention_step"]
