"""A trained model as one safetensors file: the weights, and in its header what fairseq needs to build the model.

Wherever fairseq takes a checkpoint (``--path``, ``--restore-file``, ``--finetune-from-model``) it takes such a file.
Nothing in it can run. Dictionary and tokenizer stand beside it, so its folder is the model's data unless other data is
given.
"""

import argparse
import hashlib
import io
import json
import os
import re
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import parse_json

SUFFIX = ".safetensors"
KEY, VERSION = "fairseq_efficient", 1
SECTIONS = ("model", "task", "criterion", "bpe", "tokenizer")  # of the configuration; the rest is about a machine
PATHS = frozenset({  # options that name places of the machine that trained the model
    "data", "plasma_path", "skim_teacher", "latency_table", "encoder_embed_path", "decoder_embed_path",
    "sentencepiece_model", "sentencepiece_model_path", "wordpiece_vocab", "bpe_codes", "bpe_vocab", "bpe_vocab_file",
    "bpe_merges",
})  # fmt: skip
SYMBOLS = frozenset({"whitespace_symbols"})  # options whose value may look like a path
TOKENIZERS = {  # a --bpe -> the option that names its file, and that file's name beside a model
    "sentencepiece": ("sentencepiece_model", "spm.model"), "wordpiece": ("wordpiece_vocab", "tokenizer.json"),
}  # fmt: skip
PRECISION = frozenset({"cpu_bf16"})  # it was trained so; whoever loads it decides anew
SMALL = 1024  # numbers; what is smaller keeps its precision
_PLACE = re.compile(r"""(^|[\s"'=:,;])(/\w|~[\w/]|[A-Za-z]:[\\/](?!/)|\\\\\w|file:)""")  # in a text: an absolute path


def settings(config: Any) -> dict[str, Any]:
    """The sections of a checkpoint's ``cfg`` that describe a model, as plain JSON without paths and precision.

    Raises:
        UserError: a section holds what JSON cannot (an old ``Namespace`` inside, a tensor).
    """
    found: dict[str, Any] = {}
    for name in SECTIONS:
        section = config.get(name)
        if section is None:
            continue
        section = vars(section) if isinstance(section, argparse.Namespace) else section
        if not isinstance(section, dict):
            found[name] = section if isinstance(section, str) else {}
            continue
        kept = without_private(section)
        lost = len(kept) < len(section) and section.get("_name") not in TOKENIZERS
        if not (lost and name in ("bpe", "tokenizer")):  # they are of no use without their files
            found[name] = kept
    try:
        plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    except (TypeError, ValueError) as err:
        raise UserError(f"its configuration is not plain data: {err}") from None
    return plain


def without_private(section: dict[str, Any]) -> dict[str, Any]:
    """Options without those that are places of a machine, by their names or because they hold an absolute path, and
    without its precision; fairseq takes its default instead."""
    found = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found[name] = without_private(value)
        elif name not in PATHS | PRECISION and (name in SYMBOLS or not _tells_a_place(value)):
            found[name] = value
    return found


def _tells_a_place(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_tells_a_place, value))
    return isinstance(value, (str, os.PathLike)) and bool(_PLACE.search(str(value)))


def smaller(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Large matrices of floating point in ``dtype``; small ones, and what would overflow, stay as they are."""
    found = {}
    for name, weight in weights.items():
        large = weight.is_floating_point() and weight.dim() > 1 and weight.numel() > SMALL
        short = weight.to(dtype) if large else weight
        found[name] = short if bool(short.isfinite().all()) else weight
    return found


def tensor_file(state: dict[str, Any], dtype: torch.dtype = torch.float32) -> bytes:
    """The file for a training state (``cfg`` and ``model``); matrices in ``dtype``. Tied weights are stored once.

    Raises:
        UserError: the state stores no ``cfg``, or one that is not plain data.
    """
    config = state.get("cfg")
    if not isinstance(config, dict) or not isinstance(state.get("model"), dict):
        raise UserError("it stores no cfg and model (written by fairseq before 0.11?)")
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    places: dict[Any, str] = {}
    for name, weight in state["model"].items():
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype) if weight.numel() else name
        if place in places:
            tied[name] = places[place]
        else:
            places[place] = name
            kept[name] = weight.detach().cpu().contiguous()
    kept = {name: weight.clone() for name, weight in smaller(kept, dtype).items()}  # no memory is shared any more
    history = state.get("optimizer_history") or [{}]
    about = {
        "version": VERSION,
        "cfg": settings(config),
        "num_updates": int(history[-1].get("num_updates", 0)),
        "tied": tied,
    }
    about["sha256"] = _digest(io.BytesIO(save(kept)), about)
    return save(kept, {"format": "pt", KEY: json.dumps(about, sort_keys=True)})


def read_tensor_file(path: str) -> dict[str, Any]:
    """The training state in a file of :func:`tensor_file`; floats come in fp32, ``task.data`` is the file's folder,
    whose tokenizer is the one of the configuration.

    Raises:
        UserError: damaged, or not written by :func:`tensor_file`.
        OSError: as opening the file raises it.
    """
    with open(path, "rb") as file:
        try:
            with safe_open(path, framework="pt") as tensors:
                header = (tensors.metadata() or {}).get(KEY)
                weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, ValueError, RuntimeError, MemoryError) as err:
            raise UserError(f"checkpoint {path} cannot be read: it is damaged, or not safetensors ({err})") from None
        about = _about(header, path)
        if _digest(file, about) != about["sha256"]:
            raise UserError(f"checkpoint {path} cannot be read: a byte was altered (wrong checksum)")
    weights = {name: weight.float() if weight.is_floating_point() else weight for name, weight in weights.items()}
    for name, other in about["tied"].items():
        if other not in weights:
            raise UserError(f"checkpoint {path} refused: it ties {name} to {other}, which it does not hold")
        weights[name] = weights[other]
    config = about["cfg"]
    folder = os.path.dirname(os.path.abspath(path))
    if isinstance(config.get("task"), dict):
        config["task"]["data"] = folder
    _use_the_tokenizer_beside(config, folder)
    last = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": about["num_updates"]}
    return {
        "cfg": config,
        "args": None,
        "model": weights,
        "optimizer_history": [last],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _use_the_tokenizer_beside(config: dict[str, Any], folder: str) -> None:
    """``bpe`` reads the file in ``folder``; without one it is none."""
    section = config.get("bpe")
    name = section.get("_name") if isinstance(section, dict) else section
    if not isinstance(name, str) or name not in TOKENIZERS:
        return
    option, file = TOKENIZERS[name]
    given = section if isinstance(section, dict) else {"_name": name}
    found = os.path.join(folder, file)
    config["bpe"] = {**given, option: found} if os.path.isfile(found) else None


def _digest(file: Any, about: dict[str, Any]) -> str:
    """sha256 of all that is in a (valid) file: names, shapes and places of its tensors, ``about``, and the numbers,
    which are read by the megabyte."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    rest = {key: value for key, value in about.items() if key != "sha256"}
    found = hashlib.sha256(json.dumps([header, rest], sort_keys=True).encode())
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def _about(header: str | None, path: str) -> dict[str, Any]:
    """The checked header; UserError if there is none, or another version's."""
    try:
        about = parse_json(header or "null")
    except ValueError:
        about = None
    shape: dict[str, Any] = {"version": int, "cfg": dict, "num_updates": int, "tied": dict, "sha256": str}
    if not isinstance(about, dict) or not all(isinstance(about.get(key), kind) for key, kind in shape.items()):
        raise UserError(f"checkpoint {path} refused: its header has no configuration of fairseq-efficient "
                        "(a file of Hugging Face is read by scripts/convert/from_huggingface.py)")  # fmt: skip
    if about["version"] > VERSION:
        raise UserError(f"checkpoint {path} was written by a newer version (format {about['version']}, not {VERSION})")
    about["num_updates"] = max(about["num_updates"], 0)
    return about
