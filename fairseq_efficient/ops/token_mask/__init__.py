"""Masks over tokens that act like removal and can be learned."""

from fairseq_efficient.ops.token_mask.fast import masked_attention, masked_update

__all__ = ["masked_attention", "masked_update"]
