"""The models of a quality run of summaries, and the flags that decide what is learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_parts.runs import SAVING, ExperimentPlan, SeededRun, split_size

SEED = 1
SPLIT = "{}.src-tgt.src"  # where the data keep a split's documents
MODELS = {
    "full": ["--encoder-pooling", "lambda", "--use-sparse-attn", "pooler_no_block"],
    "blockwise": ["--encoder-pooling", "lambda", "--use-sparse-attn", "only_blockwise"],
    "pyramidion": [],  # pyramidion_tiny itself: topk, 4,096 -> 2,048 -> 1,024 -> 512 -> 256
}
LANGUAGES = ["--task", "long_summarization", "--source-lang", "src", "--target-lang", "tgt"]
TRAIN_FLAGS = [
    *LANGUAGES, "--arch", "pyramidion_tiny", "--max-target-positions", "512", "--optimizer", "adam", "--adam-betas",
    "(0.9, 0.98)", "--lr", "1e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100", "--clip-norm", "1.0",
    "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--update-epoch-batch-itr", "True",
    "--seed", str(SEED), "--log-format", "json", *SAVING,
]  # fmt: skip
GENERATE_FLAGS = [
    *LANGUAGES, "--gen-subset", "valid", "--beam", "4", "--max-len-b", "400", "--no-repeat-ngram-size", "3",
    "--lenpen", "1.0", "--scoring", "rouge", "--bpe", "sentencepiece", "--log-format", "simple", "--log-interval", "4",
]  # fmt: skip


@dataclass(frozen=True)
class Plan(ExperimentPlan):
    """What is the same for all runs."""

    data: Path

    @property
    def name(self) -> str:
        """Of the corpus."""
        args = self.args
        return f"{args.name}, first {args.docs:,} documents" if args.docs else str(args.name)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model and data."""
        args = self.args
        return {
            "batch size": args.batch_size, "decoding batch size": args.generate_batch_size, "precision": args.precision,
            "types": len((self.data / "dict.src.txt").read_text(encoding="utf-8").splitlines()) + 4,
            "train": " ".join(TRAIN_FLAGS), "generate": " ".join(GENERATE_FLAGS),
        }  # fmt: skip

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells other data from these."""
        return {split: list(split_size(self.data / SPLIT.format(split))) for split in ("train", "valid")}

    def run(self, model: str) -> "Run":
        return Run(self, model, SEED, self.args.updates)


@dataclass(frozen=True)
class Run(SeededRun):
    """One model."""

    package = "deep_pyramidion"

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        args = self.plan.args
        sizes = ["--max-source-positions", str(args.max_source_positions), "--batch-size", str(args.batch_size)]
        flags = [*TRAIN_FLAGS, *sizes, "--max-update", str(self.updates), *MODELS[self.model]]
        return [*flags, *self.plan.device_flags, *self.plan.precision_flags]
