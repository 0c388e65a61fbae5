"""The tables of GLUE, as its download script lays them out: columns, classes, and which files are which splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.classification.read import Fields, Labelled, Row, read_table, tsv_rows
from fairseq_efficient.text.reading import Bad

ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """``classes`` in the order of their numbers; none for a score from 0 to ``top``."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ("0", "1")
    top: float | None = None
    matched: bool = False  # two development and two test sets
    bare: tuple[str, ...] = ()  # columns of the files that have no header


TASKS = {
    "CoLA": GlueTask(("sentence",), "label", bare=("source", "label", "mark", "sentence")),
    "SST-2": GlueTask(("sentence",), "label"),
    "MRPC": GlueTask(("#1 String", "#2 String"), "Quality"),
    "QQP": GlueTask(("question1", "question2"), "is_duplicate"),
    "STS-B": GlueTask(("sentence1", "sentence2"), "score", classes=(), top=5.0),
    "MNLI": GlueTask(
        ("sentence1", "sentence2"), "gold_label", classes=("entailment", "neutral", "contradiction"), matched=True
    ),
    "QNLI": GlueTask(("question", "sentence"), "label", classes=ENTAILMENT),
    "RTE": GlueTask(("sentence1", "sentence2"), "label", classes=ENTAILMENT),
    "WNLI": GlueTask(("sentence1", "sentence2"), "label"),
}


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


def glue_task(folder: Path, name: str | None) -> str:
    """The task's name in :data:`TASKS`: given, or the folder's. UserError if there is none of that name."""
    found = {_plain(task): task for task in TASKS}.get(_plain(name or folder.resolve().name))
    if found is None:
        flag = f"--glue-task {name}" if name else f"--glue {folder}"
        raise UserError(f"{flag}: not a task of GLUE (give --glue-task); there are {', '.join(TASKS)}")
    return found


def glue_files(folder: Path, task: str) -> dict[str, Path]:
    """Splits and their files, plain or compressed; UserError if there is none. MNLI's second development set is
    ``valid_mismatched``."""
    if not folder.is_dir():
        raise UserError(f"--glue {folder}: not a folder")
    names = {"train": "train", "valid": "dev", "test": "test"}
    if TASKS[task].matched:
        names = {"train": "train"}
        for split, stem in (("valid", "dev"), ("test", "test")):
            names.update({split: f"{stem}_matched", f"{split}_mismatched": f"{stem}_mismatched"})
    found: dict[str, Path] = {}
    for split, stem in names.items():
        for suffix in ("", ".xz", ".gz", ".bz2"):
            if (folder / f"{stem}.tsv{suffix}").is_file():
                found.setdefault(split, folder / f"{stem}.tsv{suffix}")
    if not found:
        raise UserError(f"--glue {folder}: no train.tsv or dev.tsv inside (nor .xz, .gz, .bz2)")
    return found


def _with_header(rows: Iterator[Row | Bad], task: GlueTask) -> Iterator[Row | Bad]:
    """Rows below a header, also of a file that has none (CoLA's train and dev)."""
    begun = False
    for row in rows:
        if not begun and not isinstance(row, Bad):
            begun = True
            if task.texts[0] not in row[1]:
                yield "", list(task.bare)
        yield row


def read_glue(path: Path, name: str) -> Iterator[Labelled | Bad]:
    """Texts and labels of a file of task ``name``. Quotation marks are text, as the data's makers have it."""
    task = TASKS[name]
    rows = tsv_rows(path)
    if task.bare:
        rows = _with_header(rows, task)
    return read_table(path, rows, Fields(task.texts, task.label))
