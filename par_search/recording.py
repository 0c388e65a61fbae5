"""Compare our cutoffs with those recorded of the original; see ``scripts/check_reference.py``."""

from collections.abc import Iterator
from typing import Any

import torch

from fairseq_efficient.ops.optimal_cutoffs import optimal_cutoffs, partition_cost
from fairseq_efficient.recording import Difference, difference


def check_optimal_cuts(recording: dict[str, Any]) -> Iterator[Difference]:
    """Ours must be a partition that costs no more; the recorded one must cost what was recorded."""
    for number, case in enumerate(recording["cases"]):
        counts, clusters = torch.as_tensor(case["counts"]).numpy(), int(case["clusters"])
        where = f"{number}, {len(counts)} types, {clusters} clusters: "
        recorded = torch.tensor(float(case["cost"])).double()
        inclusive = case["original_last_index_of_each_cluster"]
        cost = partition_cost(counts, [int(last) + 1 for last in inclusive])
        yield difference(where + "cost of the recorded cutoffs", torch.tensor(cost).double(), recorded, 0.0, 1e-6)
        cutoffs, best = optimal_cutoffs(counts, clusters)
        again = torch.tensor(partition_cost(counts, cutoffs)).double()
        yield difference(where + "our cost, counted again", again, torch.tensor(best).double(), 0.0, 1e-6)
        yield difference(
            where + "our cost where it is more than recorded", again.maximum(recorded), recorded, 0.0, 1e-6
        )


CHECKS = {"optimal_cuts": check_optimal_cuts}
