#!/usr/bin/env python
"""Turn a checkpoint of an original implementation into ours."""

import argparse
import dataclasses
import enum
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adaptive_span import original as adaptive_span
from deep_pyramidion import original as pyramidion
from dynamic_pooling import original as dynamic_pooling
from fairseq_efficient.checkpoints import atomic_save, exported, read_checkpoint
from fairseq_efficient.errors import UserError, run_main

EPILOG = """
deep_pyramidion, or pyramidion: a checkpoint of the original's fairseq fork (its model names, args or cfg inside);
--dict is its (joined) dictionary. The result loads with fairseq-generate --user-dir deep_pyramidion --task translation
and --restore-file.

dynamic_pooling: a checkpoint of PiotrNawrot/dynamic-pooling (args and model_state inside); --dict is a fairseq
dictionary with the original's characters in the order of their ids, which the original counts from its data (by
frequency): scripts/prepare_lm.py writes one. The result loads with --user-dir dynamic_pooling and its task.

adaptive_span: a checkpoint of facebookresearch/adaptive-span (its keys: iter_no, model, optimizer, logger); --dict is a
fairseq dictionary with the original's symbols in the order of their ids (<eos> among them, if it has one, becomes
fairseq's). The result loads with --user-dir adaptive_span --task segment_lm, and computes what the original does: its
mask after the softmax, its cache of zeros (--model-overrides "{'adapt_span_mask': 'exact', 'empty_cache': 'masked'}"
for ours).
"""
Converted = tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]  # model and task settings, weights, criterion


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=sorted(SYSTEMS), help="which original")
    parser.add_argument("checkpoint", type=Path, help="the original's .pt file")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--dict", type=Path, required=True, metavar="dict.txt", help="its dictionary")
    return parser


def main() -> None:
    from fairseq.data import Dictionary

    args = get_parser().parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists")
    if not args.dict.is_file():
        raise UserError(f"--dict {args.dict}: no such file")
    state = read_checkpoint(str(args.checkpoint))
    model, task, weights, criterion = SYSTEMS[args.system](state, Dictionary.load(str(args.dict)), args.checkpoint)
    atomic_save(exported(model, task, weights, criterion), str(args.output))
    print(f"wrote {args.output}: {sum(value.numel() for value in weights.values()):,} weights")


def convert_pyramidion(state: dict[str, Any], words: Any, path: Path) -> Converted:
    original = arguments(state, path)
    if "model" not in state:
        raise UserError(f"{path}: holds no model weights")
    model = pyramidion.build_from_original(original, words.symbols, state["model"], str(path))
    config = pyramidion.config_from_original(original)
    side = SimpleNamespace(**original)
    task = {
        "_name": "translation",
        "data": getattr(side, "data", None),
        "source_lang": getattr(side, "source_lang", None),
        "target_lang": getattr(side, "target_lang", None),
        "left_pad_source": True,
        "left_pad_target": False,
        "truncate_source": True,
        "max_source_positions": config.max_source_positions,
        "max_target_positions": config.max_target_positions,
    }
    return {**settings(config), "_name": "pyramidion"}, task, model.state_dict(), "cross_entropy"


def arguments(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The original's model arguments: fairseq 0.10 kept a Namespace, 1.0 a config with a Namespace or dict inside."""
    holder = state.get("args") or (state.get("cfg") or {}).get("model")
    if holder is None:
        raise UserError(f"{path}: neither args nor cfg inside, not a fairseq checkpoint")
    values = dict(holder) if isinstance(holder, dict) else vars(holder)
    arch = values.get("arch") or values.get("_name") or ""
    if not str(arch).startswith("pyramidion"):
        raise UserError(f"{path}: architecture {arch!r} is not a Pyramidion")
    return values


def convert_dynamic_pooling(state: dict[str, Any], words: Any, path: Path) -> Converted:
    if "model_state" not in state:
        raise UserError(f"{path}: holds no model_state, not a checkpoint of dynamic-pooling")
    args = state.get("args") or {}
    args = dict(args) if isinstance(args, dict) else vars(args)
    inner = state.get("model_config")
    args.update(inner if isinstance(inner, dict) else {})
    decoder = dynamic_pooling.model_from_original(args, state["model_state"], words, str(path))
    weights = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    task = {"_name": "dynamic_pooling_lm", "data": None, "tokens_per_sample": int(args.get("tgt_len") or 2048)}
    model = {**settings(dynamic_pooling.config_from_original(args)), "_name": "dynamic_pooling_lm"}
    return model, task, weights, "dynamic_pooling_cross_entropy"


def convert_adaptive_span(state: dict[str, Any], words: Any, path: Path) -> Converted:
    if not isinstance(state.get("model"), dict) or "iter_no" not in state:
        raise UserError(f"{path}: holds no model and iter_no, not a checkpoint of adaptive-span")
    decoder, config = adaptive_span.model_from_original(state["model"], words, str(path))
    weights = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    model = {**settings(config), "_name": "sequential_lm"}
    return model, {"_name": "segment_lm", "data": None, "tokens_per_sample": 512}, weights, "adaptive_span_loss"


SYSTEMS: dict[str, Callable[[dict[str, Any], Any, Path], Converted]] = {
    "adaptive_span": convert_adaptive_span,
    "deep_pyramidion": convert_pyramidion,
    "dynamic_pooling": convert_dynamic_pooling,
    "pyramidion": convert_pyramidion,
}


def settings(config: Any) -> dict[str, Any]:
    """A dataclass as plain values, without references to other options, which a checkpoint does not hold."""

    def plain(value: Any) -> Any:
        return value.value if isinstance(value, enum.Enum) else value

    found = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {name: value for name, value in found.items() if not (isinstance(value, str) and "${" in value)}


if __name__ == "__main__":
    run_main(main)
