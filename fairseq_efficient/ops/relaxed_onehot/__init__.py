"""Gumbel-softmax: a random choice among K that passes a gradient."""

from fairseq_efficient.ops.relaxed_onehot.fast import gumbel_like, relaxed_onehot

__all__ = ["gumbel_like", "relaxed_onehot"]
