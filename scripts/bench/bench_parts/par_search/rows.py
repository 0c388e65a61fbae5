"""What the PAR benchmark measures, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from bench_parts.par_search.models import KEYS, Setup, decode, evaluation, layout_of, recompute, shape, train_step
from bench_parts.par_search.ops import (
    ADDITIVE,
    EINSUM,
    FULL,
    MATMUL,
    OPTIMAL,
    RELATIVE,
    RULE,
    attention_forward,
    attention_gflop,
    attention_training,
    cutoffs,
    softmax_gflop,
    softmax_step,
)
from fairseq_efficient.bench.rows import NOT_DRAWN
from fairseq_efficient.bench.session import Session
from fairseq_efficient.bench.timing import Pair
from par_search.costs import flop_costs
from par_search.layout import counts

ROWS = ("attention", "latency", "predicted", "supernet", "softmax", "decode", "generate")
SHAPES = ((64, 640), (192, 192), (512, 512))  # tokens, remembered
VOCABULARIES = (12_000, 50_000, 267_744)
SMALL = {"types": 12_000, "cutoffs": "250,2500", "factor": 4.0}  # where blocks matter, not the softmax
CHAIN = 8  # blocks of the supernet
COPIES = 16  # of a block whose time is taken: as many as the interleaved net has, so that caches do not hold them
# row -> how many times faster we want to be
GOALS = {
    "eval_latency/64/mem640-batch1-par/vs_interleaved": 1.5,
    **{f"softmax/{types}/optimal/vs_{other}": 1.0 for types in VOCABULARIES for other in (FULL, RULE)},
    "generate/256/batch8-par/vs_recompute": 10.0,
}
# row -> at most so many times as long as the baseline, or percent away from it
CEILINGS = {
    **{
        f"attention/{tokens}/mem{memory}-batch{batch}-{how}/vs_{ADDITIVE}": 1.3
        for tokens, memory in SHAPES
        for batch in (1, 8)
        for how in ("forward", "training")
    },
    **{
        f"eval_latency/64/mem640-batch1-{layout}{cache}/vs_predicted": 10.0
        for layout in ("interleaved", "par")
        for cache in ("", KEYS)
    },
    "train_step/192/mem192-batch4-supernet/vs_branches": 1.15,
}


@dataclass
class Bench(Session):
    """The PAR rows; sizes are tokens of a step, or types of a vocabulary."""

    goals, ceilings = GOALS, CEILINGS

    setup: Setup
    shapes: Sequence[tuple[int, int]] = SHAPES
    batches: Sequence[int] = (1, 8)
    passes: Sequence[str] = ("forward", "training")
    latency_batches: Sequence[int] = (1, 32)
    caches: Sequence[str] = ("", KEYS)
    chain: int = CHAIN
    copies: int = COPIES
    supernet_batch: int = 4
    vocabularies: Sequence[int] = VOCABULARIES
    states: int = 512  # of a softmax step
    decode_size: int = 256
    decode_batches: Sequence[int] = (1, 8)

    def _attention(self) -> None:
        """A whole attention layer over memory, against the same layer with SDPA under an additive mask."""
        for tokens, memory in self.shapes:
            for batch in self.batches:
                setup = replace(self.setup, batch=batch, memory=memory)
                for how in self.passes:
                    training = how == "training"
                    work = attention_training if training else attention_forward
                    jobs = [(kind, tokens) for kind in (RELATIVE, ADDITIVE, EINSUM)]
                    samples, peaks = self._turns("attention", work, jobs, more=3, setup=setup)
                    for baseline in (ADDITIVE, EINSUM):
                        name = f"attention/{tokens}/mem{memory}-batch{batch}-{how}/vs_{baseline}"
                        pair, gflop = ((RELATIVE, tokens), (baseline, tokens)), partial(attention_gflop, training)
                        more: dict[str, Any] = {"at_most": baseline == ADDITIVE, "lines": NOT_DRAWN}
                        self._versus(name, pair, samples, peaks, gflop, setup=setup, **more)

    # --- whole nets in evaluation ------------------------------------------------------------------------------------

    def _latency(self) -> None:
        """The PAR rule against a Transformer-XL of as many blocks, memory as hidden states and as keys; first with few
        types, where blocks are nearly all of the work, then with all."""
        tokens, memory = self.shapes[0]
        for batch in self.latency_batches:
            for cache in self.caches:
                setup = replace(self.setup, batch=batch, memory=memory)
                small = self._small(batch=batch, memory=memory)
                self._latency_row(small, cache, tokens, f"mem{memory}-batch{batch}")
                if setup != small:
                    self._latency_row(setup, cache, tokens, f"mem{memory}-batch{batch}-types{setup.types}")

    def _latency_row(self, setup: Setup, cache: str, tokens: int, where: str) -> None:
        jobs = [(f"{layout}{cache}", tokens) for layout in ("par", "interleaved")]
        samples, peaks = self._turns("evaluation", evaluation, jobs, more=2, setup=setup)
        have = counts(layout_of("par", setup.blocks))["a"]
        name = f"eval_latency/{tokens}/{where}-par{cache}/vs_interleaved{cache}"
        note = f"{setup.blocks} blocks, {have} of them attention; {setup.types:,} types"
        more: dict[str, Any] = {"note": note, "lines": NOT_DRAWN}
        self._versus(name, jobs, samples, peaks, self._gflop, setup.batch * tokens, setup, **more)

    def _gflop(self, kind: str, tokens: int, setup: Setup) -> float:
        """Of the blocks, positions prepared."""
        sizes = shape(kind, tokens, setup)
        attention, feed_forward, _ = flop_costs(sizes, prepared=True).blocks
        found = counts(layout_of(kind, setup.blocks))
        return setup.batch * (found["a"] * attention + found["f"] * feed_forward)

    def _predicted(self) -> None:
        """What the sum of single blocks' times says of a net, against its own time."""
        tokens, memory = self.shapes[0]
        setup = self._small(batch=1, memory=memory)
        for cache in self.caches:
            whole = [f"{layout}{cache}" for layout in ("interleaved", "par")]
            single = [f"{kind * self.copies}{cache}" for kind in "af"]
            jobs = [(kind, tokens) for kind in ("none", *single, *whole)]
            samples, _ = self._turns("evaluation", evaluation, jobs, memory=False, more=3, setup=setup)
            rest, *blocks = (median(s.seconds for s in samples[job]) for job in jobs[:3])
            each = [max(0.0, one - rest) / self.copies for one in blocks]
            for kind in whole:
                found = counts(layout_of(kind, setup.blocks))
                predicted = rest + found["a"] * each[0] + found["f"] * each[1]
                pair = Pair([s.seconds for s in samples[kind, tokens]], [predicted])
                name = f"eval_latency/{tokens}/mem{memory}-batch1-{kind}/vs_predicted"
                note = f"attention {1000 * each[0]:.2f} ms, feed-forward {1000 * each[1]:.2f}, rest {1000 * rest:.2f}"
                value = 100 * abs(pair.ratio - 1)
                self._ceiling(name, pair, value, unit="%", note=note, lines=NOT_DRAWN)

    # --- training ----------------------------------------------------------------------------------------------------

    def _supernet(self) -> None:
        """A step of the supernet against the sum of its branches', each as a net of that kind alone."""
        tokens, memory = self.shapes[1]
        setup = self._small(batch=self.supernet_batch, memory=memory, blocks=self.chain)
        kinds = ("supernet", "a" * self.chain, "f" * self.chain, "none")
        jobs = [(kind, tokens) for kind in kinds]
        samples, _ = self._turns("train_step", train_step, jobs, memory=False, setup=setup)
        turns = zip(*(samples[job] for job in jobs[1:]), strict=False)
        each = ([sample.seconds for sample in turn] for turn in turns)
        branches = [
            max(attention + feed_forward - rest, attention, feed_forward) for attention, feed_forward, rest in each
        ]
        pair = Pair([s.seconds for s in samples[jobs[0]]], branches)
        name = f"train_step/{tokens}/mem{memory}-batch{setup.batch}-supernet/vs_branches"
        note = f"{self.chain} blocks; embedding and softmax once"
        self._ceiling(name, pair, note=note, lines=NOT_DRAWN)

    def _softmax(self) -> None:
        """Loss and gradients of an adaptive softmax with optimal cutoffs, against all types, and other cutoffs."""
        setup = replace(self.setup, memory=self.states)
        for types in self.vocabularies:
            jobs = [(kind, types) for kind in (OPTIMAL, MATMUL, RULE, FULL)]
            samples, peaks = self._turns("softmax", softmax_step, jobs, setup=setup)
            for baseline in (FULL, RULE, MATMUL):
                name = f"softmax/{types}/optimal/vs_{baseline}"
                kinds = (OPTIMAL,) if baseline == FULL else (OPTIMAL, baseline)
                told = "; ".join(",".join(map(str, cutoffs(kind, types, setup))) for kind in kinds)
                note = f"{self.states} states; cutoffs {told}"
                pair, lines = (jobs[0], (baseline, types)), ("optimal", baseline)
                self._versus(name, pair, samples, peaks, softmax_gflop, setup=setup, note=note, lines=lines)

    # --- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Cached decoding, a token of each row: the PAR rule against a Transformer-XL."""
        n = self.decode_size
        for batch in self.decode_batches:
            setup = self._decoding(batch)
            jobs = [(kind, n) for kind in ("par", "interleaved")]
            samples, _ = self._turns("decode", decode, jobs, memory=False, setup=setup)
            name = f"decode/{n}/batch{batch}-par/vs_interleaved"
            self._versus(name, jobs, samples, {}, tokens=batch, steps=n, note="one step", lines=NOT_DRAWN)

    def _generate(self) -> None:
        """Cached decoding against recomputing each prefix."""
        n, batch = self.decode_size, max(self.decode_batches)
        setup = self._decoding(batch)
        for kind in ("par", "interleaved"):
            name = f"generate/{n}/batch{batch}-{kind}/vs_recompute"
            self._cached(name, (kind, n), (decode, recompute), setup, batch * n, "tokens")

    def _decoding(self, batch: int) -> Setup:
        """Memory holds all that is decoded, so that both ways give the same."""
        return self._small(batch=batch, memory=self.decode_size)

    def _small(self, **more: Any) -> Setup:
        small = SMALL if self.setup.types > SMALL["types"] else {}  # type: ignore[operator]
        return replace(self.setup, **{**small, **more})
