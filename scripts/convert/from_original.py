#!/usr/bin/env python
"""Turn a checkpoint of an original implementation into ours.

pyramidion: a checkpoint of the original's fairseq fork (its model names, ``args`` or ``cfg`` inside). The result loads
with ``fairseq-generate --user-dir deep_pyramidion --task translation`` and with ``--restore-file``.
"""

import argparse
import dataclasses
import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq.data import Dictionary

from deep_pyramidion.original import build_from_original, config_from_original
from fairseq_efficient.checkpoints import atomic_save, read_checkpoint
from fairseq_efficient.errors import UserError, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=["pyramidion"], help="which original")
    parser.add_argument("checkpoint", type=Path, help="the original's .pt file")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--dict", type=Path, required=True, metavar="dict.src.txt", help="its (joined) dictionary")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists")
    if not args.dict.is_file():
        raise UserError(f"--dict {args.dict}: no such file")
    state = read_checkpoint(str(args.checkpoint))
    original = arguments(state, args.checkpoint)
    if "model" not in state:
        raise UserError(f"{args.checkpoint}: holds no model weights")
    model = build_from_original(original, Dictionary.load(str(args.dict)).symbols, state["model"])
    atomic_save(checkpoint(original, model.state_dict()), str(args.output))
    print(f"wrote {args.output}: {sum(p.numel() for p in model.parameters()):,} parameters")


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


def checkpoint(original: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """A fairseq checkpoint of plain values, without optimizer state."""
    config = config_from_original(original)
    model = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
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
    return {
        "cfg": {"model": {**model, "_name": "pyramidion"}, "task": task, "criterion": {"_name": "cross_entropy"}},
        "args": None,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


if __name__ == "__main__":
    run_main(main)
