"""What the benchmarks share: variants measured in turns, and rows that are collected and printed one by one."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairseq_efficient.bench.memory import Peak, peak_memory
from fairseq_efficient.bench.rows import Row, table_row
from fairseq_efficient.bench.timing import LONG, Sample, take_turns

Job = tuple[str, int]  # kind of variant, size


@dataclass
class Session:
    """Settings of one run, and the rows measured so far. A benchmark adds a method ``_<name>`` for each kind of row.

    ``setup`` is the benchmark's own description of models and work; ``setup.device`` is a name, ``setup.place`` the
    device.
    """

    setup: Any
    sizes: list[int]
    runs: int = 5
    long: float = LONG  # seconds of a call that needs no warm-up
    threads: int = 2
    memory: bool = True
    emit: Callable[[str], None] = print
    rows: list[Row] = field(default_factory=list)

    def measure(self, names: list[str]) -> None:
        for name in names:
            getattr(self, f"_{name}")()

    def _turns(
        self,
        what: str,
        work: Callable[..., Any],
        jobs: list[Job],
        memory: bool = True,
        more: int = 1,
        setup: Any = None,
    ) -> tuple[dict[Job, list[Sample]], dict[Job, Peak]]:
        """Samples and peaks of each job that could run; ``work(*job, setup)`` prepares the call to be measured.

        Args:
            memory: also measure peaks, if the session does.
            more: times as many runs.
            setup: instead of the session's.
        """
        setup = setup or self.setup
        peaks: dict[Job, Peak] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for job in jobs:
            label = f"{what} {job[0]} {job[1]:,}"
            if memory and self.memory:
                self._say(f"memory of {label}")
                peaks[job] = peak_memory(work, *job, setup, device=self.setup.device, threads=self.threads)
                if peaks[job].failed:
                    self.emit(f"{label}: not measured ({peaks[job].failed})")
                    continue
            calls[str(job)] = work(*job, setup)
        self._say(f"timing {what} {', '.join(f'{kind} {n:,}' for kind, n in jobs)}")
        known = {str(job): peak.sample for job, peak in peaks.items() if peak.sample is not None}
        samples = take_turns(calls, self.runs * more, self.setup.place, known, self.long)
        return {job: samples[str(job)] for job in jobs if str(job) in samples}, peaks

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.emit(table_row(row))

    def _say(self, text: str) -> None:
        """Progress, on a terminal only."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text} ...", end="\r", file=sys.stderr, flush=True)
