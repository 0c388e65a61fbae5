"""Where things are in a quality run of layouts, and the flags that decide what is learned."""

import argparse
import importlib.util
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_parts.language_models.plan import ADAM, LanguageModelPlan, corpus_flags
from experiment_parts.runs import SAVING, SeededRun
from experiment_parts.stages import ROOT, StageFailed, read_json

LAYOUTS = ("interleaved", "par", "searched", "random")
ORIGINAL = "original"  # the published code's recipe: the supernet itself, trained all at once
MODELS = (*LAYOUTS, ORIGINAL)
ORIGINAL_UPDATES = 56_500
ORIGINAL_EPOCHS = 20
ORIGINAL_SIZES = [
    "--arch", "par_supernet_small", "--tau-start", "1.0", "--tau-end", "0.1", "--supernet-eval", "mixture",
    "--dropout", "0.1", "--tokens-per-sample", "32", "--batch-size", "32", "--lr", "1e-4",
]  # fmt: skip


@dataclass(frozen=True)
class Plan(LanguageModelPlan):
    """What is the same for all runs."""

    @property
    def subsets(self) -> list[str]:
        return list(dict.fromkeys(("valid", self.subset)))

    @property
    def name(self) -> str:
        case = ", lower case" if self.prepared.get("options", {}).get("lower_case") else ""
        made = f"{self.source}, sub-words{case}" if "subwords" in self.prepared else self.source
        return str(self.args.name or made)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model, seed and data."""
        names = (
            "blocks", "dim", "ffn", "heads", "mem_len", "dropout", "par_ratio", "updates", "batch_size",
            "tokens_per_sample", "lr", "warmup", "clip_norm", "device", "precision", "threads", "search_updates",
            "search_flags", "derive", "original_updates", "original_flags", "eval_tokens", "eval_mem_len",
        )  # fmt: skip
        return {**{name: getattr(self.args, name) for name in names}, "cutoffs": self.cutoffs}

    @property
    def cutoffs(self) -> str:
        """``--adaptive-softmax-cutoff``, as the stage found it; empty for a full softmax."""
        if self.args.cutoffs == "none":
            return ""
        if self.args.cutoffs != "optimal":
            return str(self.args.cutoffs)
        return Path(self.args.out, "cutoffs.txt").read_text(encoding="utf-8").strip()

    @property
    def sizes(self) -> list[str]:
        """Flags of the sizes that all nets, and the supernet, have."""
        args = self.args
        flags = []
        for flag, value in (
            ("decoder-blocks", args.blocks), ("decoder-embed-dim", args.dim), ("decoder-ffn-embed-dim", args.ffn),
            ("decoder-attention-heads", args.heads), ("mem-len", args.mem_len), ("dropout", args.dropout),
            ("tokens-per-sample", args.tokens_per_sample), ("batch-size", args.batch_size),
            ("clip-norm", args.clip_norm),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        if self.cutoffs:
            flags += ["--adaptive-softmax-cutoff", self.cutoffs, "--adaptive-input", "--tie-adaptive-weights"]
        return [*flags, *self.precision_flags, *self.device_flags]

    def search_folder(self, seed: int) -> Path:
        return Path(self.args.out, "search", f"seed{seed}")

    @property
    def search_words(self) -> list[str]:
        """Arguments of fairseq-train that scripts/search_layout.py is given."""
        args, updates = self.args, self.args.search_updates
        flags = ["--task", "par_search", "--arch", "par_supernet", *self.sizes, "--criterion", "par_search"]
        for flag, value in (
            ("optimizer", "par_search"), ("lr", args.lr), ("lr-scheduler", "cosine"),
            ("warmup-updates", round(args.warmup * updates)), ("max-update", updates),
            ("arch-warmup-updates", round(args.search_warmup * updates)), ("log-interval", max(updates // 100, 1)),
            ("validate-interval-updates", max(updates // 10, 1)), ("save-interval-updates", max(updates // 10, 1)),
            ("max-valid-steps", args.valid_batches),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        return [str(self.data), *flags, *SAVING, *self.workers, *args.search_flags.split()]

    def found(self, seed: int) -> str:
        """The layout of a search, identity blocks included. StageFailed if there is none yet."""
        path = self.search_folder(seed) / "layout.json"
        if not path.exists():
            raise StageFailed(f"{path}: not there; the search has not ended")
        return str(read_json(path)["with_identity"])

    def layout(self, model: str, seed: int) -> str:
        """What each block of a model is."""
        blocks, ratio = self.args.blocks, self.args.par_ratio
        if model == "interleaved":
            return str(RULES.rule_layout("interleaved", blocks))
        if model == "par":
            return str(RULES.rule_layout("par", blocks, ratio))
        searched = self.found(seed)
        if model == "searched":
            return searched.replace("i", "")
        known = {searched, self.layout("interleaved", seed), self.layout("par", seed)}
        return shuffled(searched, seed, known).replace("i", "")

    def run(self, model: str, seed: int) -> "Run":
        return Run(self, model, seed, self.args.original_updates if model == ORIGINAL else self.args.updates)


def _rules() -> Any:
    """par_search/layout.py alone: its package would import torch, see stages.run."""
    spec = importlib.util.spec_from_file_location("par_layout", ROOT / "par_search" / "layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = _rules()


def shuffled(layout: str, seed: int, known: set[str]) -> str:
    """As many blocks of each kind in an order drawn by the seed, another one than ``known`` if there is one."""
    draw = random.Random(f"layout {seed}")
    for _ in range(100):
        found = "".join(draw.sample(layout, len(layout)))
        if found not in known:
            break
    return found


@dataclass(frozen=True)
class Run(SeededRun):
    """One model with one seed."""

    package = "par_search"

    @property
    def layout(self) -> str:
        """Empty for a supernet."""
        return "" if self.model == ORIGINAL else self.plan.layout(self.model, self.seed)

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        args, layout = self.plan.args, self.layout
        if self.model == ORIGINAL:
            warmup = round(4000 * self.updates / ORIGINAL_UPDATES)
            flags = [*ORIGINAL_SIZES, *self.plan.precision_flags, *self.plan.device_flags]
            flags += args.original_flags.split()
        else:
            warmup = round(args.warmup * self.updates)
            sizes = dict_flags(self.plan.sizes, {"--decoder-blocks": str(len(layout))})
            flags = ["--arch", "par_lm", "--layout", layout, *sizes, "--lr", str(args.lr)]
        flags += ["--warmup-updates", str(warmup), "--max-update", str(self.updates), "--seed", str(self.seed)]
        return ["--task", "segment_lm", "--criterion", "par_search", *flags, *ADAM, *SAVING, "--log-format", "json"]

    @property
    def watch_flags(self) -> list[str]:
        """Of the original: validated after each epoch, as its table has them."""
        epoch = str(max(self.updates // ORIGINAL_EPOCHS, 1))
        intervals = dict.fromkeys(("--validate-interval-updates", "--save-interval-updates"), epoch)
        return dict_flags(super().watch_flags, intervals if self.model == ORIGINAL else {})


def dict_flags(flags: list[str], changed: Mapping[str, str]) -> list[str]:
    """The flags with other values for some."""
    found = list(flags)
    for flag, value in changed.items():
        found[found.index(flag) + 1] = value
    return found


def prepare_flags(args: argparse.Namespace) -> list[str]:
    """Arguments of scripts/prepare_lm.py."""
    case = [] if args.keep_case else ["--lower-case"]
    return ["--symbols", "subwords", "--vocab-size", str(args.vocab_size), *case, *corpus_flags(args)]
