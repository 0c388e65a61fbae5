"""Successive-halving top-k pooling (Pietruszka et al. 2022)."""

from fairseq_efficient.ops.topk_halving.common import Pooled, num_rounds
from fairseq_efficient.ops.topk_halving.fast import topk_halving

__all__ = ["Pooled", "num_rounds", "topk_halving"]
