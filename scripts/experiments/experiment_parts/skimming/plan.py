"""Data sets of a quality run of skimming, where things are, and the flags that decide what is learned."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment_parts.runs import SAVING, ExperimentPlan, split_size
from experiment_parts.stages import ROOT, fairseq
from fairseq_efficient.errors import UserError
from fairseq_efficient.report.speed_quality import DENSE, LONGER

PREDICTOR = 64  # width of the predictors
TRAIN_FLAGS = [
    "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-6", "--weight-decay", "0.01",
    "--clip-norm", "1.0", "--lr-scheduler", "polynomial_decay", "--required-batch-size-multiple", "1",
    "--log-format", "json", *SAVING, "--update-epoch-batch-itr", "True",
]  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A data set that the run knows. ``holdout``: texts taken out of train to be reported on, where it is one file."""

    title: str
    built_in: bool = False
    glue: str = ""
    holdout: int = 0
    metric: str = "accuracy"
    squad: bool = False


CORPORA = {
    "imdb": Corpus("IMDB", holdout=2500),
    "sst2": Corpus("SST-2", glue="SST-2", holdout=2000),
    "wiki-topics": Corpus("wiki-topics", built_in=True),
    "spam-assassin": Corpus("spam-assassin", built_in=True),
    "vader-movies": Corpus("vader-movies", built_in=True),
    "squad": Corpus("SQuAD", metric="f1", squad=True),
    "squad-answerable": Corpus("SQuAD, answerable questions", metric="f1", squad=True),
    "sts-b": Corpus("STS-B", glue="STS-B", metric="pearson"),
    **{name.lower(): Corpus(name, glue=name) for name in ("MRPC", "QQP", "RTE", "QNLI", "MNLI", "WNLI", "CoLA")},
}
METRICS = {"accuracy": "accuracy, %", "f1": "F1, %", "pearson": "Pearson correlation, %"}


# --- input: what prepare_classification.py is told -------------------------------------------------------------------


def inputs(name: str, path: Path | None) -> list[str]:
    """Flags of scripts/prepare_classification.py for a data set; UserError for a path that is not what it needs."""
    corpus = CORPORA[name]
    if corpus.built_in:
        if path is not None:
            raise UserError(f"--data {name}={path}: is built in, or give a folder that prepare_classification.py made")
        return ["--corpus", name]
    if path is None:
        raise UserError(f"--data {name}: give its place, {name}=PATH")
    if not path.exists():
        raise UserError(f"--data {name}={path}: no such file or folder")
    if corpus.squad:
        return ["--format", "squad", "--split", f"train={_one(path, 'train*.json*')}", "--split",
                f"valid={_one(path, 'dev*.json*', 'valid*.json*')}",
                *(["--answerable-only"] if name == "squad-answerable" else [])]  # fmt: skip
    held = ["--holdout", str(corpus.holdout)] if corpus.holdout else []
    if name == "imdb" and path.is_dir():
        return ["--imdb", str(path), *held]
    if not held and path.is_dir():
        return ["--glue", str(path), "--glue-task", corpus.glue]
    if not held:
        raise UserError(f"--data {name}={path}: give the task's folder")
    if name == "sst2":
        file = _one(path, "train.tsv*") if path.is_dir() else path
        return ["--split", f"train={file}", "--text-field", "sentence", *held]
    return ["--split", f"train={path}", "--format", "jsonl", *held]


def _one(folder: Path, *names: str) -> Path:
    found = sorted(file for name in names for file in folder.glob(name))
    if len(found) != 1:
        raise UserError(f"{folder}: {len(found)} files {' or '.join(names)} inside, not one")
    return found[0]


@dataclass(frozen=True)
class Data:
    """A prepared data set."""

    name: str
    folder: Path

    @property
    def corpus(self) -> Corpus:
        return CORPORA[self.name]

    @property
    def squad(self) -> bool:
        return self.corpus.squad

    @cached_property
    def report(self) -> dict[str, Any]:
        """prepare.json. UserError for data that something else, or an older version, made."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "prepare.json").read_text(encoding="utf-8"))
            shlex.split(found["flags"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{self.folder}: not prepared by this version of prepare_classification.py") from None
        return found

    @cached_property
    def subset(self) -> str:
        """The split that is reported: what was held out of train, else test, else valid. Nothing is chosen by it."""
        for name in ("valid",) if self.corpus.holdout else ("test", "valid"):
            if any((self.folder / "label" / f"{name}{end}").exists() for end in (".idx", ".label", ".jsonl")):
                return name
        raise UserError(f"{self.folder}: no labelled split test or valid to report on")

    def size(self, split: str) -> tuple[int, float]:
        """Items of a split, and the mean of their tokens (of a question: its own and a paragraph's)."""
        found = [split_size(self.folder / "input0" / split)]
        if self.squad or self.report["inputs"] == 2:
            found.append(split_size(self.folder / "input1" / split))
        return found[0][0], sum(tokens / max(items, 1) for items, tokens in found)

    @property
    def separator(self) -> bool:
        return bool(self.report["separator"])


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """``dense``; ``dense-longer``: it, trained on as skimmed ones are; ``lambdaX``: the price of a kept token is X;
    ``targetX``: a share of X is to be kept."""

    name: str
    price: float | None = None
    target: float | None = None

    @property
    def dense(self) -> bool:
        return self.price is None and self.target is None


def parse_model(name: str) -> Model:
    if name in (DENSE, LONGER):
        return Model(name)
    found = re.fullmatch(r"(lambda|target)(\d*\.?\d+)", name)
    value = float(found[2]) if found else 0.0
    if not found or not value or (found[1] == "target" and value >= 1):
        kinds = f"{DENSE}, {LONGER}, lambdaX or targetX"
        raise UserError(f"--models {name}: expected {kinds}, such as lambda0.5 or target0.3")
    return Model(name, price=value) if found[1] == "lambda" else Model(name, target=value)


@dataclass(frozen=True)
class Plan(ExperimentPlan):
    """What is the same for all runs."""

    start: Path  # the converted checkpoint's folder
    models: Sequence[Model] = ()  # in the order of their training, dense first

    @cached_property
    def converted(self) -> dict[str, Any]:
        """convert.json of the checkpoint to start from."""
        try:
            found: dict[str, Any] = json.loads((self.start / "convert.json").read_text(encoding="utf-8"))
            shlex.split(found["flags"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--model {self.start}: not made by this version of convert/from_huggingface.py") from None
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number of the results, but data, model and seed."""
        names = ("train_examples", "skim_examples", "batch_size", "attention_dropout", "lr", "skim_lr", "skim_lr_scale",
                 "warmup", "skim_noise", "skim_noise_share", "skim_init_bias", "target_weight", "distill_weight",
                 "start", "device", "precision", "threads")  # fmt: skip
        model = self.args.model_name or self.start.name
        return {"model": model, **{name: getattr(self.args, name) for name in names}}

    def run(self, data: Data, model: Model, seed: int) -> "Run":
        return Run(self, data, model, seed)


@dataclass(frozen=True)
class Run:
    """One model on one data set with one seed; see runs.Run."""

    plan: Plan
    data: Data
    kind: Model
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data.name}, {self.kind.name}, seed {self.seed}"

    @property
    def model(self) -> str:
        return f"{self.data.name} {self.kind.name}"

    @property
    def folder(self) -> Path:
        return Path(self.plan.args.out, self.data.name, self.kind.name, f"seed{self.seed}")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint_last.pt"

    @property
    def env(self) -> dict[str, str]:
        return self.plan.env

    @property
    def device_flags(self) -> list[str]:
        return self.plan.device_flags

    @cached_property
    def origin(self) -> "Run | None":
        """The trained model that it starts from; None: the converted checkpoint."""
        start = "dense" if self.kind.name == LONGER else self.plan.args.start
        if self.kind.name == DENSE or start == "model":
            return None
        chain = [model for model in self.plan.models if model.name != LONGER]
        before = Model(DENSE) if start == "dense" else chain[chain.index(self.kind) - 1]
        return self.plan.run(self.data, before, self.seed)

    @property
    def dense(self) -> "Run":
        return self.plan.run(self.data, Model(DENSE), self.seed)

    @property
    def order_seed(self) -> int:
        """fairseq's seed, which also orders the texts: another for each that goes on from a skimmed model, or all would
        be trained on the same first texts of the split."""
        origin = self.origin
        return self.seed if origin is None or origin.kind.dense else origin.order_seed + 1000

    @cached_property
    def examples(self) -> int:
        """Training texts that it reads: distinct ones until all were read. Of ``dense-longer`` as many as the last of
        the skimmed ones read after the dense model."""
        args = self.plan.args
        if self.kind.name == DENSE:
            return int(args.train_examples)
        steps = sum(not model.dense for model in self.plan.models)
        chained = self.kind.name == LONGER and args.start == "previous"
        return int(args.skim_examples * (max(steps, 1) if chained else 1))

    @property
    def updates(self) -> int:
        return max(math.ceil(self.examples / self.plan.args.batch_size), 1)

    @property
    def fingerprint(self) -> dict[str, Any]:
        sizes = {split: list(split_size(self.data.folder / "input0" / split)) for split in ("train", self.data.subset)}
        origin = self.origin
        start = [*origin.train_flags, origin.fingerprint] if origin else [self.plan.start.name]
        return {**sizes, "start": start, "teacher": self.dense.train_flags if self.taught else None}

    @property
    def taught(self) -> bool:
        """Whether the dense model teaches it."""
        return not self.kind.dense and self.plan.args.distill_weight > 0

    @property
    def architecture(self) -> list[str]:
        """Flags of data and model, in this order: the model's longest row is that of its weights."""
        flags = shlex.split(self.data.report["flags"])
        if self.data.squad:
            longest = min(384, self.plan.args.max_tokens, self.plan.converted["model"]["max_positions"])
            flags += ["--max-seq-length", str(longest), "--doc-stride", str(longest // 3), "--max-query-length",
                      str(longest // 6)]  # fmt: skip
        return [*flags, *shlex.split(self.plan.converted["flags"])]

    @property
    def train_flags(self) -> list[str]:
        args = self.plan.args
        flags = [*self.architecture, "--skim-predictor-dim", str(PREDICTOR), *self._price()]
        criterion = "skim_question_answering" if self.data.squad else "skim_sentence_prediction"
        for flag, value in (
            ("criterion", criterion), ("batch-size", args.batch_size), ("attention-dropout", args.attention_dropout),
            ("lr", args.lr if self.kind.name == DENSE else args.skim_lr),
            ("seed", self.order_seed), ("warmup-updates", round(args.warmup * self.updates)),
            ("total-num-update", self.updates), ("max-update", self.updates),
        ):  # fmt: skip
            flags += [f"--{flag}", str(value)]
        if self.taught:
            flags += ["--skim-distill-weight", str(args.distill_weight)]
        if self.data.corpus.metric == "pearson":
            flags += ["--report-pearson-and-spearman", "--best-checkpoint-metric", "loss"]
        return [*flags, *self.plan.precision_flags, *TRAIN_FLAGS, *self.device_flags]

    def _price(self) -> list[str]:
        """What the model's name says, as flags."""
        if self.kind.dense:
            return ["--skim-layers", "none", "--skim-lambda", "0"]
        args = self.plan.args
        flags = ["--skim-init-bias", str(args.skim_init_bias), "--skim-lr-scale", str(args.skim_lr_scale)]
        if args.skim_noise != 1:
            flags += ["--skim-noise", str(args.skim_noise)]
        if args.skim_noise_share:
            flags += ["--skim-noise-updates", str(round(args.skim_noise_share * self.updates))]
        if self.kind.target is None:
            return [*flags, "--skim-lambda", str(self.kind.price)]
        weight, target = str(self.plan.args.target_weight), str(self.kind.target)
        return [*flags, "--skim-lambda", weight, "--skim-target-ratio", target]

    @property
    def watch_flags(self) -> list[str]:
        args = self.plan.args
        every = min(args.valid_interval or max(self.updates // 5, 1), self.updates)
        log = min(args.log_interval or max(self.updates // 50, 1), self.updates)
        start = self.origin.checkpoint if self.origin else self.plan.start / "model.pt"
        flags = ["--finetune-from-model", str(start)]
        flags += ["--skim-teacher", str(self.dense.checkpoint)] if self.taught else []
        return [
            *flags, "--valid-subset", "valid", "--validate-interval-updates", str(every),
            "--save-interval-updates", str(every), "--max-valid-steps", str(args.valid_batches),
            "--batch-size-valid", "32", "--log-interval", str(log), *self.plan.workers,
        ]  # fmt: skip

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        return [*fairseq(tool), str(self.data.folder), "--user-dir", str(ROOT / "skimming"), *flags]


@dataclass(frozen=True)
class Variant:
    """A trained model at a threshold of inference."""

    run: Run
    threshold: float = 0.0

    @property
    def name(self) -> str:
        return self.run.kind.name + (f"@{self.threshold:g}" if self.threshold else "")
