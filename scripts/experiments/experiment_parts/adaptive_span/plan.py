"""The models of a quality run of attention spans, of equal numbers of parameters, and the flags that decide what is
learned."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiment_parts.language_models.plan import ADAM, LanguageModelPlan, corpus_flags
from experiment_parts.runs import SAVING, SeededRun
from fairseq_efficient.flags import numbers

ALL_ATTENTION = "all-attention"
OPTIMIZERS: dict[str, tuple[float, float]] = {"adam": (2e-3, 0.25), "adagrad": (0.07, 0.03)}  # learning rate, clip


@dataclass(frozen=True)
class Kind:
    """What a model sees. ``penalty``: of learned spans up to ``span``; None: every head sees ``span`` tokens."""

    span: int
    penalty: float | None = None
    persistent: bool = False


def fixed(span: int) -> str:
    return f"fixed{span}"


def adaptive(penalty: float) -> str:
    return f"adaptive-{penalty:g}"


def kinds(args: argparse.Namespace) -> dict[str, Kind]:
    """All models that the flags describe; UserError for spans and penalties that make no sense."""
    spans = sorted(numbers("--spans", args.spans, least=1))
    penalties = sorted(numbers("--penalties", args.penalties, float))
    longest = max(spans)
    found = {fixed(span): Kind(span) for span in spans}
    found |= {adaptive(penalty): Kind(longest, penalty) for penalty in penalties}
    return {**found, ALL_ATTENTION: Kind(longest, middle(penalties), True)}


def middle(penalties: Sequence[float]) -> float:
    return sorted(penalties)[len(penalties) // 2]


@dataclass(frozen=True)
class Plan(LanguageModelPlan):
    """What is the same for all runs."""

    @property
    def kinds(self) -> dict[str, Kind]:
        return kinds(self.args)

    @property
    def longest(self) -> int:
        return max(kind.span for kind in self.kinds.values())

    @property
    def name(self) -> str:
        kind = self.prepared.get("options", {}).get("symbols", "bytes")
        return str(self.args.name or f"{self.source}, {kind}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model, seed and data."""
        names = (
            "layers", "dim", "ffn", "heads", "ramp", "init", "dropout", "optimizer", "updates", "batch_size",
            "tokens_per_sample", "lr", "warmup", "clip", "device", "precision", "threads",
        )  # fmt: skip
        found = {name: getattr(self.args, name) for name in names}
        return {**found, "longest": self.longest, "all_attention_penalty": self.kinds[ALL_ATTENTION].penalty}

    def run(self, model: str, seed: int) -> "Run":
        return Run(self, model, seed, self.args.updates)


@dataclass(frozen=True)
class Run(SeededRun):
    """One model with one seed."""

    package = "adaptive_span"

    @property
    def kind(self) -> Kind:
        found: Kind = self.plan.kinds[self.model]
        return found

    @property
    def ffn(self) -> int:
        """Feed-forward width: where the table of positions is shorter, the layers are as much wider."""
        args = self.plan.args
        spare = (self.plan.longest - self.kind.span) * (args.dim // args.heads)
        return int(args.ffn + round(spare / (args.layers * (2 * args.dim + 1))))

    @property
    def vectors(self) -> int:
        """Persistent vectors of a head that weigh as much as a feed-forward layer and its LayerNorm; 0 for none."""
        args = self.plan.args
        weights = args.ffn * (2 * args.dim + 1) + 3 * args.dim
        return round(weights / (2 * args.dim)) if self.kind.persistent else 0

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        args, kind = self.plan.args, self.kind
        flags = ["--task", "segment_lm", "--arch", "sequential_lm", "--criterion", "adaptive_span_loss"]
        for flag, value in (
            ("decoder-layers", args.layers), ("decoder-embed-dim", args.dim), ("decoder-ffn-embed-dim", self.ffn),
            ("decoder-attention-heads", args.heads), ("pers-mem-size", self.vectors), ("dropout", args.dropout),
            ("attn-span", kind.span), ("tokens-per-sample", args.tokens_per_sample), ("batch-size", args.batch_size),
            ("lr", args.lr), ("warmup-updates", round(args.warmup * self.updates)), ("max-update", self.updates),
            ("seed", self.seed),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        if kind.penalty is not None:
            flags += ["--adapt-span", "--adapt-span-cache", "--adapt-span-loss", str(kind.penalty)]
            flags += ["--adapt-span-ramp", str(args.ramp), "--adapt-span-init", str(args.init)]
        if args.optimizer == "adam":
            flags += [*ADAM, "--clip-norm", str(args.clip)]
        else:
            flags += ["--optimizer", "adagrad_with_grad_clip", "--adagrad-clip", str(args.clip)]
            flags += ["--lr-scheduler", "fixed"]
        return [*flags, *self.plan.precision_flags, *SAVING, "--log-format", "json", *self.plan.device_flags]

    @property
    def watch_flags(self) -> list[str]:
        """Validation in one lane: of several, those after the first read again what spans reach before they score, so
        that models of other spans would be validated on other tokens."""
        return [*super().watch_flags, "--batch-size-valid", "1"]


def prepare_flags(args: argparse.Namespace) -> list[str]:
    """Arguments of scripts/prepare_lm.py."""
    return ["--symbols", "bytes", *corpus_flags(args)]
