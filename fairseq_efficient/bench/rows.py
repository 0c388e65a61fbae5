"""Measured rows: goals, the table, and the JSON file.

A row's name is ``<what>/<size>[/<variant>]/vs_<baseline>``. Times are medians in seconds, memory is in 2**20 bytes.
"""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fairseq_efficient.bench.timing import Pair
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json

WHAT = {
    "encoder_forward", "train_step", "generate", "pooling", "attention", "packed_forward", "eval_latency", "softmax",
    "decode", "memory", "matmul",
}  # fmt: skip
NOT_DRAWN = ("", "")  # as the ``lines`` of a row that is in no picture
ALWAYS = {"bound", "goal", "ours_mb", "baseline_mb"}  # null where a row has none; other fields are left out


@dataclass
class Row:
    """``value`` is what the goal is about: the ratio (baseline / ours), unless the row says otherwise."""

    name: str
    ours_s: float
    baseline_s: float
    ratio: float
    runs: int  # timed calls of the variant that had fewer
    value: float
    unit: str = "x"
    goal: float | None = None
    at_most: bool = False  # the goal is a ceiling
    bound: float | None = None  # FLOPs of the baseline / ours: the ratio if every FLOP took the same time
    ratio_of_pairs: float | None = None
    ratio_of_best: float | None = None
    ours_mb: float | None = None
    baseline_mb: float | None = None
    ours_gflop: float | None = None
    baseline_gflop: float | None = None
    ours_tokens_per_s: float | None = None
    baseline_tokens_per_s: float | None = None
    note: str = ""
    lines: tuple[str, str] | None = None  # what the picture calls ours and the baseline over size; None: see the name

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    @property
    def share(self) -> float | None:
        """Share of the FLOP bound that the ratio reaches."""
        return None if self.bound is None else self.ratio / self.bound

    def as_dict(self) -> dict[str, Any]:
        """As it is written; without what the row does not have."""
        found = {**asdict(self), "share_of_bound": self.share, "met": self.met}
        return {key: _rounded(value) for key, value in found.items() if value is not None or key in ALWAYS}


def make_row(name: str, pair: Pair, **more: Any) -> Row:
    """A row from a pair of timings; the FLOP bound follows from ``ours_gflop`` and ``baseline_gflop``.

    Raises:
        ValueError: a name that does not follow the rule above.
    """
    parts = name.split("/")
    if len(parts) not in (3, 4) or parts[0] not in WHAT or not parts[1].isdigit() or not parts[-1].startswith("vs_"):
        raise ValueError(f"row name {name!r} is not <what>/<size>[/<variant>]/vs_<baseline>")
    if more.get("ours_gflop") and more.get("baseline_gflop"):
        more.setdefault("bound", more["baseline_gflop"] / more["ours_gflop"])
    return Row(
        name=name,
        ours_s=pair.ours_s,
        baseline_s=pair.baseline_s,
        ratio=pair.ratio,
        runs=min(len(pair.ours), len(pair.baseline)),
        value=more.pop("value", pair.ratio),
        ratio_of_pairs=pair.ratio_of_pairs,
        ratio_of_best=pair.ratio_of_best,
        **more,
    )


def _rounded(value: Any) -> Any:
    """Five significant digits: more would be noise."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return float(f"{value:.5g}")


HEADER = ("row", "ours", "baseline", "result", "goal", "bound", "reached", "MB", "GFLOP", "runs")
_WIDTHS = (44, 9, 9, 8, 14, 7, 7, 15, 15, 4)


def table_line(cells: tuple[str, ...]) -> str:
    """Cells in columns."""
    first, *others = zip(cells, _WIDTHS, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def table_row(row: Row) -> str:
    """A row as a line of the table."""
    goal = "" if row.goal is None else f"{'<=' if row.at_most else '>='} {row.goal:g}{row.unit}"
    verdict = {None: "", True: " met", False: " MISSED"}[row.met]
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    cells = (
        row.name,
        seconds(row.ours_s),
        seconds(row.baseline_s),
        f"{row.value:.2f}{row.unit}",
        goal + verdict,
        "" if row.bound is None else f"{row.bound:.2f}x",
        share,
        _two(row.ours_mb, row.baseline_mb),
        _two(row.ours_gflop, row.baseline_gflop),
        str(row.runs),
    )
    return table_line(cells) + (f"  {row.note}" if row.note else "")


def seconds(value: float) -> str:
    """1.23 s, 12.3 ms"""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _two(ours: float | None, baseline: float | None) -> str:
    if ours is None and baseline is None:
        return ""
    return " / ".join("-" if v is None else f"{v:,.0f}" if v >= 10 else f"{v:.2g}" for v in (ours, baseline))


def summary(rows: list[Row]) -> str:
    """How many goals are met, and which are not."""
    judged = [row for row in rows if row.met is not None]
    missed = [row.name for row in judged if not row.met]
    text = f"{len(judged) - len(missed)} of {len(judged)} goals met"
    return text + (f"; missed: {', '.join(missed)}" if missed else "")


def write_rows(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    """Write ``{**head, "rows": [...]}``, replacing the file at once. UserError if it cannot be written."""
    write_json(path, {**head, "rows": [row.as_dict() for row in rows]})


def read_rows(document: dict[str, Any]) -> list[Row]:
    """The rows of what :func:`write_rows` wrote. UserError if these are none."""
    try:
        known = {field.name for field in fields(Row)}
        found = [{key: value for key, value in row.items() if key in known} for row in document["rows"]]
        return [Row(**{**row, "lines": tuple(row["lines"]) if row.get("lines") else None}) for row in found]
    except (AttributeError, KeyError, TypeError) as err:
        raise UserError(f"not the rows of a benchmark: {err}") from None
