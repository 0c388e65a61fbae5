"""What the dynamic pooling benchmark measures, row by row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bench_parts.dynamic_pooling.generation import decode, firing_share, generate, recompute
from bench_parts.dynamic_pooling.models import (
    TRANSFORMER_LM,
    Setup,
    build,
    decoding_gflop,
    train_step,
    train_step_by_parts,
    training_gflop,
)
from bench_parts.dynamic_pooling.ops import (
    EINSUM,
    RELATIVE,
    REPEATS,
    attention,
    attention_gflop,
    pooling_both,
    pooling_forward,
)
from fairseq_efficient.bench.memory import Peak
from fairseq_efficient.bench.rows import NOT_DRAWN
from fairseq_efficient.bench.session import Job, Session
from fairseq_efficient.bench.timing import Pair, Sample

ENCODINGS = ("relative", "rotary")
# row -> how many times faster we want to be
GOALS = {
    "train_step/2048/sf2-relative/vs_vanilla": 1.45,
    "train_step/2048/sf2-rotary/vs_vanilla": 1.45,
    "train_step/2048/sf4-relative/vs_vanilla": 2.2,
    "train_step/2048/sf4-rotary/vs_vanilla": 1.9,
    "train_step/2048/rotary/vs_relative": 2.0,
    "train_step/2048/rotary-vanilla/vs_transformer_lm": 0.8,
    "attention/2048/relative/vs_einsum": 1.0,
    "generate/1024/batch8-sf4-relative/vs_recompute": 20.0,
    "generate/1024/batch8-sf4-rotary/vs_recompute": 20.0,
    "decode/1024/batch1-sf4-relative/vs_vanilla": 1.5,
    "decode/1024/batch1-sf4-rotary/vs_vanilla": 1.5,
}
# row -> at most so many percent of the baseline, or times as long as it
CEILINGS = {
    "memory/2048/sf4-relative/vs_vanilla": 50.0,
    "memory/2048/sf4-rotary/vs_vanilla": 65.0,
    "memory/2048/batch4-sf4-relative/vs_vanilla": 50.0,
    "memory/2048/batch4-sf4-rotary/vs_vanilla": 65.0,
    "pooling/2048/sf4-relative/vs_train_step": 3.0,
    "pooling/2048/sf4-rotary/vs_train_step": 3.0,
    "pooling/2048/pool/vs_embedding_bag": 1.5,
    "pooling/2048/upsample/vs_index_select": 1.5,
}
ROWS = ("train_step", "batch", "ragged", "encodings", "attention", "pooling", "decode", "generate")


@dataclass
class Bench(Session):
    """The dynamic pooling rows; sizes are tokens of a window."""

    goals, ceilings = GOALS, CEILINGS

    setup: Setup
    factors: tuple[int, ...] = (2, 3, 4)  # --fixed-sf
    encodings: tuple[str, ...] = ENCODINGS
    ragged_size: int = 1024
    ragged_batch: int = 4
    decode_size: int = 1024
    decode_batches: tuple[int, ...] = (1, 8)

    @property
    def size(self) -> int:
        """Of the rows that have one size only."""
        return 2048 if 2048 in self.sizes else max(self.sizes)

    # --- training ----------------------------------------------------------------------------------------------------

    def _train_step(self) -> None:
        for n in self.sizes:
            for encoding in self.encodings:
                whats = [f"sf{factor}" for factor in self.factors]
                samples, peaks = self._turns(
                    "train_step", train_step, [(f"{what}-{encoding}", n) for what in ("vanilla", *whats)]
                )
                for what in whats:
                    jobs = (f"{what}-{encoding}", n), (f"vanilla-{encoding}", n)
                    lines = (f"hourglass SF {what[2:]} {encoding}", f"vanilla {encoding}")
                    self._compare(f"{what}-{encoding}", "vanilla", jobs, samples, peaks, lines=lines)
                    self._peaks(f"{what}-{encoding}", jobs, samples, peaks)

    def _batch(self) -> None:
        """The longest segments in a batch as in training: weights are a small part of its memory."""
        n, setup, most = self.size, replace(self.setup, batch=self.ragged_batch), f"sf{max(self.factors)}"
        for encoding in self.encodings:
            jobs = (f"{most}-{encoding}", n), (f"vanilla-{encoding}", n)
            samples, peaks = self._turns("train_step", train_step, [*jobs], setup=setup)
            name = f"batch{setup.batch}-{most}-{encoding}"
            self._compare(name, "vanilla", jobs, samples, peaks, setup, f"batch {setup.batch}")
            self._peaks(name, jobs, samples, peaks)

    def _ragged(self) -> None:
        """Segments that end at spaces: rows have different numbers of them."""
        n, setup = self.ragged_size, replace(self.setup, batch=self.ragged_batch)
        for encoding in self.encodings:
            kinds = [f"{what}-{encoding}" for what in ("vanilla", "padded", "packed")]
            samples, peaks = self._turns("train_step", train_step, [(kind, n) for kind in kinds], setup=setup)
            for ours, baseline, name in (
                ("padded", "vanilla", f"whitespaces-{encoding}"),
                ("packed", "vanilla", f"whitespaces-packed-{encoding}"),
                ("packed", "padded", f"whitespaces-packed-{encoding}"),
            ):
                jobs = (f"{ours}-{encoding}", n), (f"{baseline}-{encoding}", n)
                note = f"batch {setup.batch}"
                self._compare(name, baseline, jobs, samples, peaks, setup, note)

    def _encodings(self) -> None:
        """Twelve layers without pooling: rotary against relative positions, and against fairseq's model."""
        n = self.size
        ours = ("vanilla-rotary", n)
        baselines = [("vanilla-relative", n), (TRANSFORMER_LM, n)]
        if self.setup.dtype == "bf16" and self.setup.device == "cpu":
            baselines.pop()  # fairseq has no bf16 on the CPU
        samples, peaks = self._turns("train_step", train_step, [ours, *baselines])
        for baseline in baselines:
            if baseline[0] == TRANSFORMER_LM:
                self._compare("rotary-vanilla", TRANSFORMER_LM, (ours, baseline), samples, peaks, note="both with gelu")
            else:
                self._compare("rotary", "relative", (ours, baseline), samples, peaks)

    def _compare(
        self,
        variant: str,
        against: str,
        jobs: tuple[Job, Job],
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        setup: Setup | None = None,
        note: str = "",
        lines: tuple[str, str] = NOT_DRAWN,
    ) -> None:
        """Add one row of training steps: ``jobs`` are ours and the baseline."""
        setup = setup or self.setup
        n = jobs[0][1]
        name = f"train_step/{n}/{variant}/vs_{against}"
        self._versus(name, jobs, samples, peaks, training_gflop, setup.batch * n, setup, note=note, lines=lines)

    def _peaks(
        self, variant: str, jobs: tuple[Job, Job], samples: Mapping[Job, list[Sample]], peaks: Mapping[Job, Peak]
    ) -> None:
        name, note = f"memory/{jobs[0][1]}/{variant}/vs_vanilla", "peak of a training step, weights included"
        self._memory(name, jobs, samples, peaks, note, build)

    # --- operators ---------------------------------------------------------------------------------------------------

    def _attention(self) -> None:
        n = self.size
        jobs = [(RELATIVE, n), (EINSUM, n)]
        samples, peaks = self._turns("attention", attention, jobs)
        name = f"attention/{n}/{RELATIVE}/vs_{EINSUM}"
        note = "forward and backward"
        self._versus(name, jobs, samples, peaks, attention_gflop, note=note, lines=NOT_DRAWN)

    def _pooling(self) -> None:
        """Pooling and upsampling: their share of a training step, and each against its bare kernel."""
        n, most = self.size, f"sf{max(self.factors)}"
        for encoding in self.encodings:
            job = (f"{most}-{encoding}", n)
            runs = self._turns("train_step", train_step_by_parts, [job], memory=False)[0][job]
            share = 100 * median(sample.of("pooling") / sample.seconds for sample in runs)
            name = f"pooling/{n}/{most}-{encoding}/vs_train_step"
            note = "pooling and upsampling, forward and backward"
            self._ceiling(name, Pair.of(runs, runs, "pooling"), share, unit="%", note=note)
        for ours, bare in (("pool", "embedding_bag"), ("upsample", "index_select")):
            self._operator(pooling_forward, ours, bare, ours, "forward")
            self._operator(pooling_both, ours, bare, f"{ours}-training", "forward and backward")
        self._operator(pooling_forward, "layout", "embedding_bag", "layout", "once a batch, for pooling and upsampling")

    def _operator(self, work: Callable[..., Any], ours: str, bare: str, name: str, note: str) -> None:
        jobs = [(ours, self.size), (bare, self.size)]
        samples, _ = self._turns("pooling", work, jobs, memory=False, more=4)
        name = f"pooling/{self.size}/{name}/vs_{bare}"
        self._versus(name, jobs, samples, {}, steps=REPEATS, at_most=True, note=note)

    # --- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Cached decoding, hourglass against twelve layers; at the largest batch also with boundaries at spaces."""
        n, most = self.decode_size, f"sf{max(self.factors)}"
        for batch in self.decode_batches:
            setup = replace(self.setup, batch=batch)
            whats = {most: most} if batch == 1 else {most: most, "padded": "whitespaces"}
            for encoding in self.encodings:
                jobs = [(f"{what}-{encoding}", n) for what in ("vanilla", *whats)]
                samples, _ = self._turns("decode", decode, jobs, memory=False, setup=setup)
                for what, called in whats.items():
                    share = firing_share(f"{what}-{encoding}", n, setup)
                    name = f"decode/{n}/batch{batch}-{called}-{encoding}/vs_vanilla"
                    jobs = [(f"{what}-{encoding}", n), (f"vanilla-{encoding}", n)]
                    note = f"one step; shortened layers run in {share:.0f} % of the steps"
                    more: dict[str, Any] = {"steps": n, "note": note, "lines": NOT_DRAWN}
                    self._versus(name, jobs, samples, {}, decoding_gflop, batch, setup, **more)

    def _generate(self) -> None:
        """Cached decoding against recomputing, and hourglass against twelve layers in fairseq's generator."""
        n, batch, most = self.decode_size, max(self.decode_batches), f"sf{max(self.factors)}"
        setup = replace(self.setup, batch=batch)
        for encoding in self.encodings:
            kind = f"{most}-{encoding}"
            name = f"generate/{n}/batch{batch}-{kind}/vs_recompute"
            self._cached(name, (kind, n), (decode, recompute), setup, n, "steps")
        for encoding in self.encodings:
            jobs = [(f"{what}-{encoding}", n) for what in (most, "vanilla")]
            samples, _ = self._turns("generate", generate, jobs, memory=False, setup=setup)
            name = f"generate/{n}/batch{batch}-greedy-{most}-{encoding}/vs_vanilla"
            note = f"PrefilledGenerator, prompts of {n // 2}"
            self._versus(name, jobs, samples, {}, note=note, lines=NOT_DRAWN)
