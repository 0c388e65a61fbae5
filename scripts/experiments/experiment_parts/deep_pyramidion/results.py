"""Results of a quality run of summaries as JSON rows, and the page made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_parts.deep_pyramidion.page import KINDS, page
from experiment_parts.deep_pyramidion.plan import Plan, Run
from experiment_parts.deep_pyramidion.stages import scores, validate_log
from experiment_parts.rows import cost, head_of, metrics, rounded
from experiment_parts.runs import validated
from experiment_parts.stages import Record, TrainingLog, read_training_log
from fairseq_efficient.files import write_json

NAME = "deep_pyramidion"
FLOORS = ("lead", "oracle")


def write(folder: Path, plan: Plan, runs: Sequence[Run]) -> None:
    """``deep_pyramidion.json`` and ``deep_pyramidion.md`` in ``folder``, of these runs alone."""
    folder.mkdir(parents=True, exist_ok=True)
    document = new_document(plan, runs)
    write_json(folder / f"{NAME}.json", document)
    (folder / f"{NAME}.md").write_text(page(document), encoding="utf-8")


def new_document(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """Rows and provenance of every run, which all have been scored; of the floors too."""
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    rows = [row for one, log in zip(runs, logs, strict=True) for row in rows_of(one, log)]
    found = scores(runs[0])
    for floor in FLOORS:
        nothing = {"params": 0, "updates": 0, "seconds": None, "peak_mb": None}
        rows += summary_rows({"data": plan.name, "seed": runs[0].seed, "model": floor, **nothing}, found[floor])
    about = {
        "name": plan.name, "split": "valid", "pairs": found["model"]["pairs"],
        "max_source_positions": plan.args.max_source_positions, "cut": logs[-1].cuts,
    }  # fmt: skip
    return {**head_of(plan, logs), "data": about, "settings": plan.settings, "rows": rows}


def rows_of(one: Run, log: TrainingLog) -> list[dict[str, Any]]:
    """One row for each metric of a run."""
    base = {"data": one.plan.name, "seed": one.seed, "model": one.model, **cost(one, log)}
    decoding = Record.load(one.folder / "generate.json")
    assert decoding is not None
    numbers = {
        "valid_nll_loss": validated(validate_log(one), "valid")["nll_loss"],
        "seconds_per_update": log.seconds_per_update,
        "seconds_per_update_fastest": log.fastest_update,
        "generate_seconds": decoding.seconds,
        "generate_peak_mb": round(decoding.peak_mb),
    }
    return [*summary_rows(base, scores(one)["model"]), *metrics(base, numbers)]


def summary_rows(base: Mapping[str, Any], rouge: Mapping[str, Any]) -> list[dict[str, Any]]:
    """ROUGE with its intervals, and the length, of a model's or a floor's summaries."""
    found = []
    for kind in KINDS:
        (row,) = metrics(base, {kind: rouge[kind]["mean"]})
        found.append(row | {side: rounded(rouge[kind][side]) for side in ("low", "high")})
    return [*found, *metrics(base, {"summary_words": rouge["words"]})]
