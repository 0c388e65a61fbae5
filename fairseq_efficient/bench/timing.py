"""Paired timing: variants take turns in one process, so that a slow minute of the machine slows all of them alike."""

import functools
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

LONG = 5.0  # seconds: a call this long is its own warm-up and is repeated at most three times
SLOW = 60.0  # seconds: a call this long is made once
SHORT = 0.5  # seconds: a call below this is made once more, untimed, before each timed one


@dataclass(frozen=True)
class Sample:
    """One timed call: seconds in all, and of the parts that the call itself reported."""

    seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def of(self, part: str = "") -> float:
        return self.parts[part] if part else self.seconds


@dataclass(frozen=True)
class Pair:
    """Ours against a baseline: seconds of each, in the order of the turns."""

    ours: list[float]
    baseline: list[float]

    @classmethod
    def of(cls, ours: list[Sample], baseline: list[Sample], ours_part: str = "", baseline_part: str = "") -> "Pair":
        return cls([s.of(ours_part) for s in ours], [s.of(baseline_part) for s in baseline])

    def each(self, steps: int) -> "Pair":
        """Of one of as many equal steps that were timed as one."""
        return Pair([seconds / steps for seconds in self.ours], [seconds / steps for seconds in self.baseline])

    @property
    def ours_s(self) -> float:
        return median(self.ours)

    @property
    def baseline_s(self) -> float:
        return median(self.baseline)

    @property
    def ratio(self) -> float:
        """Baseline / ours, from the medians: above 1 is faster than the baseline."""
        return self.baseline_s / self.ours_s

    @property
    def ratio_of_pairs(self) -> float:
        """The median of baseline / ours turn by turn."""
        return median(b / o for o, b in zip(self.ours, self.baseline, strict=False))

    @property
    def ratio_of_best(self) -> float:
        return min(self.baseline) / min(self.ours)


def time_call(call: Callable[[], Any], device: torch.device) -> Sample:
    """Time one call, on CUDA by events and until its last kernel. A dict that it returns names parts in seconds.

    A plain dict: outputs of ``transformers`` are dicts of another class, and hold tensors.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            parts = call()
            end.record()
            torch.cuda.synchronize(device)
            seconds = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            parts = call()
            seconds = time.perf_counter() - begin
    finally:
        if collecting:
            gc.enable()
    return Sample(seconds, parts if type(parts) is dict else {})


def take_turns(
    variants: Mapping[str, Callable[[], Any]],
    runs: int,
    device: torch.device,
    known: Mapping[str, Sample] | None = None,
    long: float = LONG,
    slow: float = SLOW,
) -> dict[str, list[Sample]]:
    """Time each variant up to ``runs`` times: A B C, C B A, A B C ..., after one warm-up call of each.

    A call of ``long`` seconds or more needs no warm-up and is timed three times at most, one of ``slow`` seconds once.
    A short one is warmed up in every turn: after another variant caches are cold and the allocator has given its memory
    back, which a service that runs one model never sees.

    Args:
        known: samples taken elsewhere; those of ``slow`` seconds or more stand for the variant, which is not called.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    wanted: dict[str, int] = {}
    short = set()
    for name, call in variants.items():
        first = (known or {}).get(name)
        if first is None or first.seconds < slow:
            first = time_call(call, device)
        wanted[name] = runs if first.seconds < long else min(runs, 3) if first.seconds < slow else 1
        if first.seconds >= long:
            samples[name].append(first)
        elif first.seconds < SHORT:
            short.add(name)
    for turn in range(runs):
        names = [name for name in variants if len(samples[name]) < wanted[name]]
        for name in names if turn % 2 == 0 else reversed(names):
            if name in short:
                time_call(variants[name], device)
            samples[name].append(time_call(variants[name], device))
    return samples


class Stopwatch:
    """Adds up the time spent inside the functions it wraps, on CUDA without waiting for them."""

    def __init__(self, device: torch.device):
        self.device = device
        self._spans: list[tuple[Any, Any]] = []

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._spans.append((start, self._now()))

        return timed

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Seconds since the last call of this."""
        spans, self._spans = self._spans, []
        if self.device.type != "cuda":
            return float(sum(end - start for start, end in spans))
        torch.cuda.synchronize(self.device)
        return float(sum(start.elapsed_time(end) for start, end in spans)) / 1e3
