"""What the results of all quality runs share: where numbers come from, and a row for each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiment_parts.runs import ExperimentPlan, Run
from experiment_parts.stages import Record, TrainingLog
from fairseq_efficient.bench.machine import provenance, this_command


def head_of(plan: ExperimentPlan, logs: Sequence[TrainingLog]) -> dict[str, Any]:
    """Provenance, with the GPU that trained."""
    head = provenance(this_command(), plan.args.threads)
    head["machine"]["gpu"] = next((log.gpu for log in logs if log.gpu), head["machine"]["gpu"])
    return head


def cost(one: Run, log: TrainingLog) -> dict[str, Any]:
    """What a row says of its model's size and training."""
    record = Record.load(one.folder / "train.json")
    assert record is not None
    return {
        "params": log.parameters, "updates": one.updates, "seconds": round(log.seconds, 1),
        "peak_mb": round(log.gpu_peak_mb or record.peak_mb),
    }  # fmt: skip


def metrics(base: Mapping[str, Any], numbers: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """One row for each metric that there is."""
    return [{**base, "metric": name, "value": rounded(value)} for name, value in numbers.items() if value is not None]


def rounded(value: Any) -> float:
    return float(f"{float(value):.7g}")
