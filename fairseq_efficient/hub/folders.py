"""A folder to give away: weights, dictionary, tokenizer and a model card."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.loading import DICTIONARIES
from fairseq_efficient.tensor_files import tensor_file
from fairseq_efficient.text.prepared import FORMAT, read_report, staging

WEIGHTS, CARD, REPORT = "model.safetensors", "README.md", "prepare.json"
BESIDE = (*DICTIONARIES, "dict.tgt.txt", "label/dict.txt", "spm.model", "tokenizer.json")
# what of prepare.json a model needs; the rest is about files of the machine that prepared the data
OPTIONS = ("symbols", "raw", "clean", "lang", "newlines", "lower_case", "eos", "normalization", "corpus")
FACTS = ("classes", "regression", "top", "inputs", "separator", "flags", "squad", "version2", "max_tokens", "tokenizer")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Card:
    """What people should know of a model. ``results``: (name, value) pairs."""

    title: str = ""
    trained_on: str = ""
    license: str = ""
    notes: str = ""
    results: tuple[tuple[str, str], ...] = ()


def export(
    checkpoint: Path,
    folder: Path,
    data: Path | None = None,
    precision: str = "fp32",
    card: Card | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write ``folder``; the card's facts. fairseq and the model's system must have been imported.

    Args:
        data: the prepared data that the model was trained on (default: what the checkpoint says).
        precision: of large matrices, one of :data:`PRECISIONS`.

    Raises:
        UserError: unreadable checkpoint, no dictionary in ``data``, ``folder`` exists.
    """
    _check_free(folder, overwrite)
    state = read_checkpoint(str(checkpoint))
    data = Path(data or _get(state, "task", "data") or ".")
    found = [name for name in BESIDE if (data / name).is_file()]
    if not set(found) & set(DICTIONARIES):
        raise UserError(f"{data}: no dictionary inside ({', '.join(DICTIONARIES)}); give the prepared data with --data")
    try:
        weights = tensor_file(state, PRECISIONS[precision])
    except UserError as err:
        raise UserError(f"checkpoint {checkpoint} cannot be exported: {err}") from None
    facts = _facts(state, folder, precision, len(weights), card or Card())
    try:
        render({**facts, "files": []}).encode()
    except UnicodeEncodeError:
        raise UserError("the model card's facts are not valid Unicode (--title, --result, --notes ...)") from None
    with staging(folder) as out:
        (out / WEIGHTS).write_bytes(weights)
        for name in found:
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(data / name, out / name)
        if (data / REPORT).is_file():
            (out / REPORT).write_text(_report(data / REPORT), encoding="utf-8")
            found.append(REPORT)
        (out / CARD).write_text(render({**facts, "files": found}), encoding="utf-8")
    return facts


def _check_free(folder: Path, overwrite: bool) -> None:
    """UserError if something would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: exists and is not a folder")
    inside = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir()}
    foreign = sorted(inside - {WEIGHTS, CARD, REPORT, *BESIDE})
    if foreign:
        raise UserError(f"{folder}: exists, and {foreign[0]} in it was not made by this script; choose another folder")
    if inside and not overwrite:
        raise UserError(f"{folder}: exists already (--overwrite replaces it)")


def _get(state: dict[str, Any], section: str, name: str) -> Any:
    part = (state.get("cfg") or {}).get(section)
    return part.get(name) if isinstance(part, dict) else getattr(part, name, None)


def _report(path: Path) -> str:
    whole = read_report(path.parent) or {}
    known = whole.get("options")
    if not isinstance(known, dict):
        raise UserError(f"{path}: damaged; prepare the data again")
    options = {name: known[name] for name in OPTIONS if name in known}
    kept = {"format": FORMAT, **{name: whole[name] for name in FACTS if name in whole}, "options": options}
    return json.dumps(kept, indent=1, sort_keys=True) + "\n"


def _facts(state: dict[str, Any], folder: Path, precision: str, size: int, card: Card) -> dict[str, Any]:
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

    name = str(_get(state, "model", "_name"))
    kind = ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
    if kind is None:
        raise UserError(f"its architecture {name!r} is not registered: is its system imported?")
    family = next(one for one in kind.__mro__ if hasattr(sys.modules[one.__module__], one.__name__))  # can be imported
    task = str(_get(state, "task", "_name"))
    examples = getattr(kind, "hub_examples", {})
    return {
        "title": card.title or name,
        "model": name,
        "package": family.__module__,
        "kind": family.__name__,
        "user_dir": kind.__module__.partition(".")[0],
        "task": task,
        "parameters": sum({one.data_ptr(): one.numel() for one in state["model"].values()}.values()),
        "updates": int((state.get("optimizer_history") or [{}])[-1].get("num_updates", 0)),
        "precision": precision,
        "size": size,
        "folder": folder.name,
        "example": examples.get(task) or getattr(kind, "hub_example", ""),
        "trained_on": card.trained_on,
        "license": card.license,
        "notes": card.notes,
        "results": card.results,
    }


def render(facts: dict[str, Any]) -> str:
    """The model card, Markdown."""
    folder = Path(__file__).with_name("templates")
    templates = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True)
    return templates.get_template("card.md").render(facts)
