"""What the Pyramidion benchmark measures, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bench_parts.deep_pyramidion.models import (
    BLOCKWISE,
    PYRAMIDION,
    PYRAMIDION_BF16,
    STOCK,
    STOCK_DECODER,
    encoder_forward,
    generate,
    gflop,
    pool_once,
    train_step,
)
from fairseq_efficient.bench.memory import Peak
from fairseq_efficient.bench.session import Job, Session
from fairseq_efficient.bench.timing import Pair, Sample

# (what, size, variant, baseline) -> how many times faster we want to be
GOALS = {
    ("encoder_forward", 8192, "", BLOCKWISE): 3.1,
    ("encoder_forward", 8192, "", STOCK): 9.2,
    ("encoder_forward", 16384, "", STOCK): 14.8,
    ("encoder_forward", 8192, "bf16", STOCK): 20.0,
    ("train_step", 8192, "", BLOCKWISE): 3.3,
    ("train_step", 8192, "", STOCK): 11.0,
    ("train_step", 8192, "bf16", STOCK): 27.0,
    ("generate", 8192, "beam16", BLOCKWISE): 13.0,
    ("generate", 8192, "beam16", STOCK): 15.0,
    ("decode", 8192, "beam16", BLOCKWISE): 13.0,
    ("decode", 8192, "beam16", STOCK): 15.0,
    ("decode", 512, "beam16", STOCK): 1.5,
}
# (what, size, smaller size) -> at most so many times slower
LINEAR = {
    ("encoder_forward", 16384, 4096): 4.4,
    ("train_step", 16384, 4096): 4.4,
    ("encoder_forward", 8192, 4096): 2.3,
}
POOLING_PERCENT = 5.0
POOLED_DECODE = 1.3
ROWS = ("encoder_forward", "train_step", "linearity", "pooling", "generate", "decode")
WORK = {"encoder_forward": encoder_forward, "train_step": train_step, "generate": generate}


@dataclass
class Bench(Session):
    """The Pyramidion rows; sizes are source tokens."""

    precisions: tuple[str, ...] = ("fp32", "bf16")
    generate_size: int = 8192
    short_size: int = 512  # the source of decode/512

    # --- the rows ----------------------------------------------------------------------------------------------------

    def _encoder_forward(self) -> None:
        for n in self.sizes:
            self._model_rows("encoder_forward", n)

    def _train_step(self) -> None:
        for n in self.sizes:
            self._model_rows("train_step", n)

    def _model_rows(self, what: str, n: int) -> None:
        """Ours against stock and blockwise; on the CPU also with --cpu-bf16 against stock in fp32 (its only choice)."""
        mixed = self.setup.place.type == "cpu" and "bf16" in self.precisions
        plain = self.setup.place.type != "cpu" or "fp32" in self.precisions
        kinds = [STOCK, *([BLOCKWISE, PYRAMIDION] if plain else []), *([PYRAMIDION_BF16] if mixed else [])]
        samples, peaks = self._turns(what, WORK[what], [(kind, n) for kind in kinds])
        wanted = [(PYRAMIDION, STOCK), (PYRAMIDION, BLOCKWISE), (PYRAMIDION_BF16, STOCK)]
        for ours, baseline in wanted:
            reduced = ours == PYRAMIDION_BF16 or self.setup.dtype == "bf16"
            self._compare(what, n, "bf16" if reduced else "", (ours, n), (baseline, n), samples, peaks)

    def _linearity(self) -> None:
        """Ours at a size against ours at a smaller one."""
        for (what, n, smaller), goal in LINEAR.items():
            if n not in self.sizes or smaller not in self.sizes:
                continue
            samples, _ = self._turns(what, WORK[what], [(PYRAMIDION, n), (PYRAMIDION, smaller)], memory=False)
            self._scaling(what, n, "linearity", smaller, goal, samples, gflop=partial(gflop, what))

    def _pooling(self) -> None:
        """The pools' share of the encoder, and one pool against the bare weighted sum of fixed pairs."""
        n = 8192 if 8192 in self.sizes else max(self.sizes)
        samples, _ = self._turns("encoder_forward", encoder_forward, [(PYRAMIDION, n)], memory=False)
        runs = samples[PYRAMIDION, n]
        share = 100 * median(sample.of("pooling") / sample.seconds for sample in runs)
        pair = Pair.of(runs, runs, "pooling")
        self._ceiling(f"pooling/{n}/vs_encoder", pair, share, unit="%", goal=POOLING_PERCENT)
        jobs = [(PYRAMIDION, n), ("embedding_bag", n)]
        samples, _ = self._turns("pooling", pool_once, jobs, memory=False, more=4)
        note = "one halving with its ranking"
        self._versus(f"pooling/{n}/vs_embedding_bag", jobs, samples, {}, at_most=True, note=note)

    def _generate(self) -> None:
        """Total and decoding time (without the encoder) against blockwise on fairseq's decoder, and against stock."""
        n = self.generate_size
        ours = (PYRAMIDION, n)
        samples, peaks = self._turns("generate", generate, [ours, (STOCK_DECODER, n), (STOCK, n)])
        variant = f"beam{self.setup.beam}"
        for what, part in (("generate", ""), ("decode", "decode")):
            for baseline in (STOCK_DECODER, STOCK):
                self._compare(what, n, variant, ours, (baseline, n), samples, peaks, part)

    def _decode(self) -> None:
        """One step of ours against stock from a short source, and of ours from a long one against a short one."""
        short, long = self.short_size, self.generate_size
        jobs = [(PYRAMIDION, short), (STOCK, short), (PYRAMIDION, long)]
        samples, _ = self._turns("generate", generate, jobs, memory=False)
        steps, variant = self.setup.tokens + 1, f"beam{self.setup.beam}"
        self._versus(
            f"decode/{short}/{variant}/vs_stock",
            jobs[:2],
            samples,
            {},
            partial(gflop, "decode"),
            part="decode",
            steps=steps,
            goal=GOALS.get(("decode", short, variant, STOCK)),
            note="one step",
        )
        self._scaling("decode", long, variant, short, POOLED_DECODE, samples, part="decode", steps=steps)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _compare(
        self,
        what: str,
        n: int,
        variant: str,
        ours: Job,
        baseline: Job,
        samples: Mapping[Job, list[Sample]],
        peaks: Mapping[Job, Peak],
        part: str = "",
    ) -> None:
        """Add one row: ours against a model, unless one of them could not run."""
        if ours not in samples or baseline not in samples:
            return
        against = BLOCKWISE if baseline[0] == STOCK_DECODER else baseline[0]
        notes = []
        if baseline[0] == STOCK_DECODER:
            notes.append("fairseq's decoder")
        if min(len(samples[ours]), len(samples[baseline])) == 1 and self.runs > 1:
            notes.append(f"{against} timed once")
        name = "/".join([what, str(n), *([variant] if variant else []), f"vs_{against}"])
        more: dict[str, Any] = {"goal": self._goal(what, n, variant, against), "note": "; ".join(notes)}
        tokens = self.setup.batch * n if what == "train_step" else None
        self._versus(name, (ours, baseline), samples, peaks, partial(gflop, what), tokens, part=part, **more)

    def _goal(self, what: str, n: int, variant: str, against: str) -> float | None:
        """On CUDA every variant is bf16, and the goals are those of equal precision."""
        if self.setup.place.type == "cuda" and variant == "bf16":
            variant = ""
        return GOALS.get((what, n, variant, against))

    def _scaling(
        self,
        what: str,
        n: int,
        variant: str,
        smaller: int,
        goal: float,
        samples: Mapping[Job, list[Sample]],
        **more: Any,
    ) -> None:
        """Add one row: ours at n tokens against ours at fewer; its value is how many times longer it takes."""
        jobs = (PYRAMIDION, n), (PYRAMIDION, smaller)
        note = f"time({n}) / time({smaller})"
        name = f"{what}/{n}/{variant}/vs_{smaller}"
        self._versus(name, jobs, samples, {}, at_most=True, goal=goal, note=note, **more)
