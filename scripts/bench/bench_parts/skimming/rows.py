"""What the skimming benchmark measures, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench_parts.skimming.models import PAD, Setup, batch, forward, forward_gflop, kept, skimmed_forward, train_step
from fairseq_efficient.bench.memory import Peak
from fairseq_efficient.bench.rows import NOT_DRAWN
from fairseq_efficient.bench.session import Job, Session
from fairseq_efficient.bench.timing import Pair, Sample

MODELS = {"6x384": (6, 384), "12x768": (12, 768)}
RATIOS = (0.7, 0.5, 0.3, 0.1)
ROWS = ("ratios", "overhead", "uneven", "latency", "backends", "masked", "train_step")
SIZES = (128, 512)
# row -> how many times faster we want to be
GOALS = {
    f"packed_forward/{n}/{model}-keep{ratio}/vs_{baseline}": goal
    for n in SIZES
    for model in MODELS
    for baseline, goals in (("packed", {0.5: 1.9, 0.3: 3.2}), ("stock", {0.5: 2.9, 0.3: 4.8}))
    for ratio, goal in goals.items()
}
# row -> at most so many percent more time than the baseline, or times as long as it
CEILINGS = {
    **{f"packed_forward/{n}/{model}-predictor64/vs_packed": 3.0 for n in SIZES for model in MODELS},
    **{f"packed_forward/{n}/{model}-predictor-full/vs_packed": 10.0 for n in SIZES for model in MODELS},
    **{f"packed_forward/{n}/{model}-uneven/vs_even": 1.15 for n in SIZES for model in MODELS},
}


@dataclass
class Bench(Session):
    """The skimming rows; sizes are tokens of the longest sentence of a batch."""

    goals, ceilings = GOALS, CEILINGS

    setup: Setup
    models: tuple[str, ...] = tuple(MODELS)
    ratios: tuple[float, ...] = RATIOS
    batches: tuple[int, ...] = (1, 8, 32)  # of the latency rows

    def _each(self) -> list[tuple[str, int, Setup]]:
        """(model, size, setup) of everything that is measured."""
        return [(model, n, self._sized(model)) for model in self.models for n in self.sizes]

    def _sized(self, model: str, **more: Any) -> Setup:
        layers, dim = MODELS[model]
        return replace(self.setup, layers=layers, dim=dim, **more)

    def _ratios(self) -> None:
        """Given shares of tokens, against ours without skimming and against fairseq on the padded batch."""
        for model, n, setup in self._each():
            kinds = [f"keep{ratio}" for ratio in self.ratios]
            jobs = [(kind, n) for kind in ("stock", "packed", *kinds)]
            samples, peaks = self._turns("forward", forward, jobs, more=3, setup=setup)
            for baseline in ("packed", "stock"):
                for kind in kinds:
                    lines = (f"{model} {kind}", f"{model} {baseline}")
                    self._compare(f"{model}-{kind}", (kind, n), (baseline, n), samples, peaks, setup, lines)
            self._compare(f"{model}-packed", ("packed", n), ("stock", n), samples, peaks, setup)

    def _overhead(self) -> None:
        """Predictors that keep everything: the time they take, against the rest of the same call. Two calls differ by
        more than that."""
        for model, n, setup in self._each():
            jobs = [(kind, n) for kind in ("predictor64", "predictor-full")]
            samples, _ = self._turns("overhead", skimmed_forward, jobs, memory=False, more=3, setup=setup)
            for kind, _ in jobs:
                calls = samples[kind, n]
                pair = Pair([one.seconds for one in calls], [one.seconds - one.of("predictors") for one in calls])
                name = f"packed_forward/{n}/{model}-{kind}/vs_packed"
                value = 100 * (1 / pair.ratio_of_pairs - 1)
                note = "all tokens kept: time inside predictors, over the rest of the same call; median of the calls"
                self._ceiling(name, pair, value, unit="%", note=note, lines=NOT_DRAWN)

    def _uneven(self) -> None:
        """As many kept tokens, shared out evenly, or with one sentence that keeps all."""
        for model, n, setup in self._each():
            jobs = [(kind, n) for kind in ("even", "uneven")]
            samples, _ = self._turns("forward", forward, jobs, memory=False, setup=setup)
            longest = [int(kept(kind, n, setup).sum(1).max()) for kind in ("uneven", "even")]
            note = f"longest row {longest[0]} and {longest[1]} tokens, equal sums"
            name = f"packed_forward/{n}/{model}-uneven/vs_even"
            self._versus(name, jobs[::-1], samples, {}, at_most=True, note=note, lines=NOT_DRAWN)

    def _latency(self) -> None:
        """Small and large batches, at the smallest size."""
        n, kind = min(self.sizes), "keep0.3"
        for model in self.models:
            for rows in self.batches:
                setup = self._sized(model, batch=rows, real=1.0 if rows == 1 else self.setup.real)
                jobs = [(name, n) for name in ("stock", "packed", kind)]
                samples, peaks = self._turns("forward", forward, jobs, memory=False, more=2, setup=setup)
                for baseline in ("stock", "packed"):
                    variant = f"{model}-batch{rows}-{kind}"
                    self._compare(variant, jobs[2], (baseline, n), samples, peaks, setup, what="eval_latency")

    def _backends(self) -> None:
        """Ways to attend within sentences, each against one padded call."""
        for model, n, setup in self._each():
            found = {}
            for backend in ("padded", "loop", "bucket"):
                job = ("keep0.5", n)
                found[backend] = self._turns(backend, forward, [job], False, setup=replace(setup, backend=backend))[0][
                    job
                ]
            for backend in ("loop", "bucket"):
                name = f"packed_forward/{n}/{model}-keep0.5-{backend}/vs_padded"
                self._row(name, Pair.of(found[backend], found["padded"]), lines=NOT_DRAWN)

    def _masked(self) -> None:
        """Dropping tokens against hiding them."""
        for model, n, setup in self._each():
            jobs = [(kind, n) for kind in ("keep0.5", "masked")]
            samples, peaks = self._turns("forward", forward, jobs, memory=False, setup=setup)
            self._compare(f"{model}-keep0.5", jobs[0], jobs[1], samples, peaks, setup)

    def _train_step(self) -> None:
        """Training under the mask, with predictors, against fairseq's."""
        for model, n, setup in self._each():
            jobs = [(kind, n) for kind in ("predictor64", "stock")]
            samples, peaks = self._turns("train_step", train_step, jobs, setup=setup)
            name, note = f"train_step/{n}/{model}-predictor64/vs_stock", "forward and backward, all positions"
            self._versus(name, jobs, samples, peaks, note=note, lines=NOT_DRAWN)

    def _compare(
        self,
        variant: str,
        ours: Job,
        baseline: Job,
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        setup: Setup,
        lines: tuple[str, str] = NOT_DRAWN,
        what: str = "packed_forward",
    ) -> None:
        """Add one row of forwards, with the ratio of their FLOPs."""
        n = ours[1]
        name = f"{what}/{n}/{variant}/vs_{baseline[0]}"
        real = int(batch(n, setup).ne(PAD).sum())
        self._versus(name, (ours, baseline), samples, peaks, forward_gflop, real, setup, lines=lines)
