"""What the adaptive span benchmark measures, row by row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bench_parts.adaptive_span.models import (
    DECODED,
    LONGEST,
    SDPA,
    Setup,
    attention,
    attention_gflop,
    build,
    decode,
    evaluate,
    train_step,
    training_gflop,
)
from fairseq_efficient.bench.memory import Peak
from fairseq_efficient.bench.rows import NOT_DRAWN
from fairseq_efficient.bench.session import Job, Session
from fairseq_efficient.bench.timing import Sample

# row -> how many times faster we want to be
GOALS = {
    "attention/8192/span2pct/vs_full": 20.0,
    "attention/8192/span2pct/vs_sdpa": 20.0,
    "attention/8192/mixed/vs_longest": 4.0,
    "attention/8192/full/vs_sdpa": 1.0,
    "train_step/8192/span2pct/vs_full": 4.0,
}
# row -> at most so many percent of the baseline, or times as long as it
CEILINGS = {
    "memory/8192/attention-span2pct/vs_full": 25.0,
    "memory/8192/span2pct/vs_full": 25.0,
    "eval_latency/65536/span2pct/vs_8192": 1.1,
    "eval_latency/65536/full/vs_8192": 1.1,
}
ROWS = ("attention", "train_step", "eval_latency", "decode")
LINES = {"span2pct": "2 % of the longest", "span10pct": "10 %", "mixed": "one head of eight long"}


@dataclass
class Bench(Session):
    """The adaptive span rows; sizes are S, the longest span in tokens."""

    goals, ceilings = GOALS, CEILINGS

    setup: Setup
    kinds: tuple[str, ...] = ("span2pct", "span10pct", "span100pct", "mixed")
    streams: tuple[int, int] = (8192, 65536)  # tokens read before the block that is timed
    eval_size: int = 2048  # S of that
    step_batch: int = 4  # rows of the training steps whose memory is judged

    def _attention(self) -> None:
        """Attention alone: how time follows the spans; trimming by head against by layer; torch's fused attention."""
        for n in self.sizes:
            kinds = ["full", *self.kinds, LONGEST, f"{SDPA}full", f"{SDPA}span2pct"]
            samples, peaks = self._turns("attention", attention, [(kind, n) for kind in kinds])
            pairs = [*((kind, "full") for kind in self.kinds), ("mixed", LONGEST)]
            for kind, against in [*pairs, ("full", f"{SDPA}full"), ("span2pct", f"{SDPA}span2pct")]:
                if kind in kinds:
                    note = "forward and backward"
                    self._compare("attention", kind, against, n, samples, peaks, attention_gflop, note)
            jobs = ("span2pct", n), ("full", n)
            self._memory(f"memory/{n}/attention-span2pct/vs_full", jobs, samples, peaks, "attention alone")

    def _train_step(self) -> None:
        """A whole block with full caches, without the optimizer."""
        for n in self.sizes:
            setup = replace(self.setup, batch=self.step_batch)
            kinds = ["full", *(kind for kind in self.kinds if kind != "span100pct"), LONGEST]
            samples, peaks = self._turns("train_step", train_step, [(kind, n) for kind in kinds], setup=setup)
            for kind, against in [*((kind, "full") for kind in kinds[1:-1]), ("mixed", LONGEST)]:
                if kind in kinds:
                    note = f"batch {setup.batch}"
                    self._compare("train_step", kind, against, n, samples, peaks, training_gflop, note, setup)
            note = f"peak of a training step at batch {setup.batch}, caches and weights included"
            jobs = ("span2pct", n), ("full", n)
            self._memory(f"memory/{n}/span2pct/vs_full", jobs, samples, peaks, note, build)

    def _eval_latency(self) -> None:
        """A block after many tokens against one after few: a byte costs the same wherever it stands."""
        few, many = self.streams
        for kind in ("span2pct", "full"):
            jobs = (f"{kind}@{many}", self.eval_size), (f"{kind}@{few}", self.eval_size)
            samples, _ = self._turns("eval_latency", evaluate, list(jobs), memory=False, more=2)
            name = f"eval_latency/{many}/{kind}/vs_{few}"
            note = f"{self.setup.block} tokens after so many; S = {self.eval_size:,}"
            self._versus(name, jobs, samples, {}, at_most=True, note=note)

    def _decode(self) -> None:
        """One token at a time with full caches."""
        for n in self.sizes:
            jobs = [("span2pct", n), ("mixed", n), ("full", n)]
            samples, _ = self._turns("decode", decode, jobs, memory=False)
            for kind in ("span2pct", "mixed"):
                lines = LINES[kind], "full span"
                pair = (kind, n), ("full", n)
                name = f"decode/{n}/{kind}/vs_full"
                self._versus(name, pair, samples, {}, steps=DECODED, note="one token", lines=lines)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _compare(
        self,
        what: str,
        kind: str,
        against: str,
        n: int,
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        gflop: Callable[[str, int, Setup], float],
        note: str,
        setup: Setup | None = None,
    ) -> None:
        jobs = (kind, n), (against, n)
        setup = setup or self.setup
        baseline = "sdpa" if against.startswith(SDPA) else against
        name = f"{what}/{n}/{kind}/vs_{baseline}"
        drawn = (LINES[kind], "full span") if baseline == "full" and kind in LINES else NOT_DRAWN
        tokens = setup.batch * setup.block
        self._versus(name, jobs, samples, peaks, gflop, tokens, setup, note=note, lines=drawn)
