"""The command that trains a derived layout from scratch, with all else as in the search."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import (
    CheckpointConfig,
    CommonConfig,
    DatasetConfig,
    DistributedTrainingConfig,
    OptimizationConfig,
)
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_DATACLASS_REGISTRY

from fairseq_efficient.plugin.segment_lm import SegmentLMConfig
from par_search.config import ParLMConfig

_LEFT_OUT = {  # of the search, of its place, or said otherwise
    "model": {"layout", "layout_rule", "par_ratio", "sandwich_coefficient", "decoder_blocks"},
    "task": {"data"},
    "optimizer": {"arch_lr", "arch_weight_decay"},
    "common": {"user_dir", "tensorboard_logdir", "log_file", "wandb_project"},
    "dataset": {"gen_subset"},
}
_ONLY = {  # of sections whose other flags are of one run
    "checkpoint": {
        "save_interval", "save_interval_updates", "keep_interval_updates", "keep_interval_updates_pattern",
        "keep_last_epochs", "keep_best_checkpoints", "no_save", "no_epoch_checkpoints", "no_last_checkpoints",
        "no_save_optimizer_state", "best_checkpoint_metric", "maximize_best_checkpoint_metric", "patience",
    },
    "distributed_training": {"ddp_backend", "find_unused_parameters"},
}  # fmt: skip


def retrain_command(cfg: Mapping[str, Any], layout: str, save_dir: str | Path) -> str:
    """For a shell, on one line; ``cfg``: the configuration that a checkpoint of the search holds, as plain values."""
    optimizer, scheduler = str(cfg["optimizer"]["_name"]), str(cfg["lr_scheduler"]["_name"])
    words = ["fairseq-train", str(cfg["task"]["data"]), "--user-dir", str(cfg["common"]["user_dir"])]
    words += ["--task", "segment_lm", "--arch", "par_lm", "--layout", layout, "--criterion", "par_search"]
    words += ["--optimizer", optimizer, "--lr-scheduler", scheduler, "--save-dir", str(save_dir)]
    parts: list[tuple[str, Any]] = [
        ("model", ParLMConfig),
        ("task", SegmentLMConfig),
        ("optimization", OptimizationConfig),
        ("dataset", DatasetConfig),
        ("optimizer", OPTIMIZER_DATACLASS_REGISTRY.get(optimizer)),
        ("lr_scheduler", LR_SCHEDULER_DATACLASS_REGISTRY.get(scheduler)),
        ("common", CommonConfig),
        ("checkpoint", CheckpointConfig),
        ("distributed_training", DistributedTrainingConfig),
    ]
    for section, dataclass in parts:
        if dataclass is not None:
            words += _flags(section, dataclass(), cfg)
    return shlex.join(words)


def _flags(section: str, defaults: Any, cfg: Mapping[str, Any]) -> Iterator[str]:
    """Flags of the values of ``section`` that are not their default, which may be another flag's value (``${...}``)."""
    values = cfg.get(section) or {}
    for one in dataclasses.fields(defaults):
        default = _followed(getattr(defaults, one.name), values.get(one.name), cfg)
        if one.name in _LEFT_OUT.get(section, ()) or one.name.startswith("_") or one.name not in values:
            continue
        if one.name not in _ONLY.get(section, {one.name}):
            continue
        value = values[one.name]
        default = getattr(default, "value", default)  # of a choice
        if value is None or value == default or str(value) == str(default):
            continue
        flag = f"--{one.name.replace('_', '-')}"
        if isinstance(default, bool):
            yield flag
        else:
            yield from (flag, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def _followed(default: Any, value: Any, cfg: Mapping[str, Any]) -> Any:
    """``default``, or the value that it names: ``${dataset.batch_size}``; ``value`` where there is no such one."""
    if not (isinstance(default, str) and default.startswith("${")) or value == default:
        return default
    section, _, name = default[2:-1].rpartition(".")
    return (cfg.get(section) or {}).get(name, value)
