"""Pooling of variable-length segments and its way back (Nawrot et al. 2023, "Efficient Transformers with Dynamic Token
Pooling", section 2)."""

from fairseq_efficient.ops.segment_pool.common import SegmentLayout, SegmentPooled, segment_ids
from fairseq_efficient.ops.segment_pool.fast import segment_layout, segment_pool, upsample

__all__ = ["SegmentLayout", "SegmentPooled", "segment_ids", "segment_layout", "segment_pool", "upsample"]
