"""Where things are in a quality run of language models, and the flags that decide what is learned."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_parts.language_models.plan import ADAM, LanguageModelPlan, corpus_flags
from experiment_parts.runs import SAVING, SeededRun
from fairseq_efficient.errors import UserError

MODELS: dict[str, list[str]] = {  # name -> architecture and what else it takes
    "vanilla": ["vanilla"],
    "fixed2": ["fixed", "--fixed-sf", "2"],
    "fixed3": ["fixed", "--fixed-sf", "3"],
    "fixed4": ["fixed", "--fixed-sf", "4"],
    "whitespaces": ["whitespaces"],
    "unigram": ["unigram"],
    "entropy": ["entropy"],
    "gumbel": ["gumbel"],
}
SPACES = "▁ <0x0A>"  # end a segment of whitespaces; data without newlines has no such symbol
TRAIN_FLAGS = ["--criterion", "dynamic_pooling_cross_entropy", *ADAM, "--log-format", "json", *SAVING]


def layers(text: str) -> tuple[int, int, int]:
    """``"1-3-1"`` -> (1, 3, 1); UserError for another form or a part without layers."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)", text)
    if not found or "0" in found.groups():
        raise UserError(f"--layers {text}: expected three numbers above 0, such as 1-3-1")
    pre, shortened, post = map(int, found.groups())
    return pre, shortened, post


@dataclass(frozen=True)
class Plan(LanguageModelPlan):
    """What is the same for all runs."""

    @property
    def context(self) -> int:
        given = self.args.context_window
        return int(self.args.tokens_per_sample // 2 if given is None else given)

    @property
    def name(self) -> str:
        if self.args.name:
            return str(self.args.name)
        options = self.prepared.get("options", {})
        if options.get("symbols") == "bytes":
            return f"{self.source}, bytes"
        clean = options.get("clean", "none")
        return f"{self.source}, characters" if clean == "none" else f"{self.source}, {clean} characters"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model, seed and data."""
        args = self.args
        names = (
            "layers", "dim", "ffn", "heads", "position_encoding", "dropout", "attention_dropout", "prior", "updates",
            "batch_size", "tokens_per_sample", "lr", "warmup", "clip_norm", "device", "precision", "threads",
        )  # fmt: skip
        return {**{name: getattr(args, name) for name in names}, "context_window": self.context}

    def run(self, model: str, seed: int, updates: int, timed: bool = False) -> "Run":
        return Run(self, model, seed, updates, timed and model != "vanilla", "time" if timed else "updates")


@dataclass(frozen=True)
class Run(SeededRun):
    """One model with one seed. ``timed``: trained for as long as vanilla took; ``setting``: what it is compared at."""

    package = "dynamic_pooling"

    timed: bool
    setting: str

    @property
    def name(self) -> str:
        return super().name + (", equal time" if self.timed else "")

    @property
    def pooled(self) -> bool:
        return self.model != "vanilla"

    @property
    def folder(self) -> Path:
        found = super().folder
        return found.with_name(f"{found.name}-time") if self.timed else found

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        args = self.plan.args
        pre, shortened, post = layers(args.layers)
        arch, *more = MODELS[self.model]
        config = f"[{pre}, ({shortened},), {post}]" if self.pooled else f"[{pre + shortened + post}, (0,), 0]"
        flags = ["--task", "dynamic_pooling_lm", "--arch", f"dynamic_pooling_lm_{arch}", *more]
        for flag, value in (
            ("model-config", config), ("decoder-embed-dim", args.dim), ("decoder-ffn-embed-dim", args.ffn),
            ("decoder-attention-heads", args.heads),
            ("position-encoding", args.position_encoding), ("dropout", args.dropout),
            ("activation-dropout", args.dropout), ("attention-dropout", args.attention_dropout), ("prior", args.prior),
            ("whitespace-symbols", SPACES), ("tokens-per-sample", args.tokens_per_sample),
            ("batch-size", args.batch_size), ("lr", args.lr), ("clip-norm", args.clip_norm), ("seed", self.seed),
            ("warmup-updates", round(args.warmup * self.updates)), ("max-update", self.updates),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        return [*flags, *self.plan.precision_flags, *TRAIN_FLAGS, *self.plan.device_flags]


def prepare_flags(args: argparse.Namespace) -> list[str]:
    """Arguments of scripts/prepare_lm.py."""
    clean = args.clean or ("none" if args.symbols == "bytes" else "text8")
    newlines = args.newlines or ("space" if clean == "text8" else "keep")
    flags = ["--symbols", args.symbols, "--clean", clean, "--lang", args.lang, "--newlines", newlines]
    return [*flags, "--unigram-vocab", str(args.unigram_vocab), *corpus_flags(args)]
