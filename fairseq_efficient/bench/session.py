"""What the benchmarks share: variants measured in turns, and rows that are collected and printed one by one."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fairseq_efficient.bench.memory import Peak, peak_memory
from fairseq_efficient.bench.rows import Row, make_row, table_row
from fairseq_efficient.bench.timing import LONG, Pair, Sample, take_turns

Job = tuple[str, int]  # kind of variant, size


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where work runs, and in which precision; a benchmark's description of its models and work is one with more."""

    device: str = "cpu"
    dtype: str = "fp32"  # bf16: as --cpu-bf16 does it, on CUDA as fairseq's --bf16 does

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)


@dataclass
class Session:
    """Settings of one run, and the rows measured so far. A benchmark adds a method ``_<name>`` for each kind of row.

    ``setup`` is the benchmark's own description of models and work, a :class:`Where`.
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
        """Measure the rows of these names, one after the other."""
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

    def _versus(
        self,
        name: str,
        jobs: Sequence[Job],
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        gflop: Callable[..., float] | None = None,
        tokens: float | None = None,
        setup: Any = None,
        part: str = "",
        **more: Any,
    ) -> None:
        """Add a row of two jobs, ours and the baseline, unless one of them could not run.

        Args:
            gflop: of a job, ``gflop(kind, size, setup)``. tokens: that one call reads. setup: instead of the session's.
            part: of the samples, instead of the whole. more: of :func:`make_row`.
        """
        if not all(job in samples for job in jobs):
            return
        ours, baseline = jobs
        for who, job in (("ours", ours), ("baseline", baseline)):
            more[f"{who}_mb"] = peaks[job].mb if job in peaks else None
            if gflop is not None:
                more[f"{who}_gflop"] = gflop(*job, setup or self.setup)
        row = make_row(name, Pair.of(samples[ours], samples[baseline], part, part), **more)
        if tokens is not None:
            row.ours_tokens_per_s, row.baseline_tokens_per_s = tokens / row.ours_s, tokens / row.baseline_s
        self._add(row)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.emit(table_row(row))

    def _say(self, text: str) -> None:
        """Progress, on a terminal only."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text} ...", end="\r", file=sys.stderr, flush=True)
