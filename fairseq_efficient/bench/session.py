"""What the benchmarks share: variants measured in turns, and rows that are collected and printed one by one."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from fairseq_efficient.bench.decoding import prefixes
from fairseq_efficient.bench.memory import Peak, peak_memory
from fairseq_efficient.bench.rows import NOT_DRAWN, Row, make_row, table_row
from fairseq_efficient.bench.timing import LONG, Pair, Sample, take_turns
from fairseq_efficient.bench.work import trained_mb

Job = tuple[str, int]  # kind of variant, size


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where work runs, and in which precision; a benchmark's description of its models and work is one with more."""

    device: str = "cpu"
    dtype: str = "fp32"  # bf16: as --cpu-bf16 does it, on CUDA as fairseq's --bf16 does

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def cpu_bf16(self) -> bool:
        """Whether models get the flag of this name."""
        return self.dtype == "bf16" and self.device == "cpu"

    @property
    def number(self) -> torch.dtype:
        """The type of inputs that are drawn."""
        return torch.bfloat16 if self.dtype == "bf16" else torch.float32

    def placed(self, model: nn.Module) -> Any:
        """A model where it runs, in its precision."""
        model = model.to(self.place)
        return model.bfloat16() if self.dtype == "bf16" and not self.cpu_bf16 else model


@dataclass
class Session:
    """Settings of one run, and the rows measured so far. A benchmark adds a method ``_<name>`` for each kind of row.

    ``setup`` is the benchmark's own description of models and work, a :class:`Where`. By the names of rows, ``goals``
    say how many times faster we want to be, and ``ceilings`` what a row's value may be at most.
    """

    goals: ClassVar[Mapping[str, float]] = {}
    ceilings: ClassVar[Mapping[str, float]] = {}

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
        steps: int = 1,
        at_most: bool = False,
        **more: Any,
    ) -> None:
        """Add a row of two jobs, ours and the baseline, unless one of them could not run.

        Args:
            gflop: of a job, ``gflop(kind, size, setup)``. tokens: that one call reads. setup: instead of the session's.
            part: of the samples, instead of the whole. steps: in a call; the row is of one of them, and so are
                ``tokens``. at_most: the row has a ceiling. more: of :func:`make_row`.
        """
        if not all(job in samples for job in jobs):
            return
        ours, baseline = jobs
        pair = Pair.of(samples[ours], samples[baseline], part, part).each(steps)
        for who, job, seconds in (("ours", ours, pair.ours_s), ("baseline", baseline, pair.baseline_s)):
            more[f"{who}_mb"] = peaks[job].mb if job in peaks else None
            if gflop is not None:
                more[f"{who}_gflop"] = gflop(*job, setup or self.setup) / steps
            if tokens is not None:
                more[f"{who}_tokens_per_s"] = tokens / seconds
        (self._ceiling if at_most else self._row)(name, pair, **more)

    def _memory(
        self,
        name: str,
        jobs: Sequence[Job],
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        note: str,
        build: Callable[..., nn.Module] | None = None,
    ) -> None:
        """Add a row: our peak in percent of the baseline's, unless one is not known. With ``build(*job, setup)``, also
        one without the models' weights and their gradients."""
        found = [mb for job in jobs if job in samples and job in peaks and (mb := peaks[job].mb) is not None]
        if len(found) < 2:
            return
        pair = Pair.of(samples[jobs[0]], samples[jobs[1]])
        add = partial(self._ceiling, pair=pair, unit="%")
        add(name, value=100 * found[0] / found[1], ours_mb=found[0], baseline_mb=found[1], note=note)
        if build is not None:
            ours, baseline = (mb - trained_mb(build(*job, self.setup)) for mb, job in zip(found, jobs, strict=True))
            note = "the same without weights and their gradients"
            name = f"{name}_activations"
            add(name, value=100 * ours / baseline, ours_mb=ours, baseline_mb=baseline, note=note)

    def _cached(
        self, name: str, job: Job, works: Sequence[Callable[..., Any]], setup: Any, read: int, unit: str
    ) -> None:
        """Add a row: decoding with caches against recomputing each prefix; ``works`` are both, ``read`` is what a call
        reads, in ``unit``."""
        decode, recompute = works
        cached, _ = self._turns("decode", decode, [job], memory=False, setup=setup)
        again, _ = self._turns("recompute", recompute, [job], memory=False, setup=setup)
        pair = Pair.of(cached[job], again[job], "", "total")
        taken = "every prefix" if setup.full else f"from {len(prefixes(job[1]))} prefixes"
        note = f"{read / pair.ours_s:.0f} {unit}/s; recomputed: {taken}"
        self._row(name, pair, note=note, lines=NOT_DRAWN)

    def _row(self, name: str, pair: Pair, **more: Any) -> None:
        """Add a row, with its goal if it has one."""
        self._add(make_row(name, pair, **{"goal": self.goals.get(name), **more}))

    def _ceiling(self, name: str, pair: Pair, value: float | None = None, **more: Any) -> None:
        """Add a row that may be so much at most: ours / baseline, or ``value``."""
        value = 1 / pair.ratio if value is None else value
        self._row(name, pair, value=value, at_most=True, **{"goal": self.ceilings.get(name), **more})

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.emit(table_row(row))

    def _say(self, text: str) -> None:
        """Progress, on a terminal only."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text} ...", end="\r", file=sys.stderr, flush=True)
