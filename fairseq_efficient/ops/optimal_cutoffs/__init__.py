"""Where an adaptive softmax should cut its vocabulary (Grave et al. 2017, arXiv 1609.04309, section 4)."""

from fairseq_efficient.ops.optimal_cutoffs.common import LOGIT, band_width
from fairseq_efficient.ops.optimal_cutoffs.fast import optimal_cutoffs, partition_cost

__all__ = ["LOGIT", "band_width", "optimal_cutoffs", "partition_cost"]
