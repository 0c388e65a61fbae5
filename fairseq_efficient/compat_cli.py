"""The command line's part of :mod:`fairseq_efficient.compat`: mistakes are found early and shown as one line, exit status 2."""

import argparse
import functools
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from fairseq_efficient.errors import UserError

_PRECISION_FLAGS = ("memory_efficient_fp16", "memory_efficient_bf16", "fp16", "bf16", "amp")
_NOT_NEGATIVE = (
    "lr", "warmup_updates", "warmup_init_lr", "weight_decay", "clip_norm", "num_workers", "label_smoothing", "save_interval_updates",
)  # fmt: skip
_POSITIVE = ("update_freq", "batch_size", "max_tokens", "beam", "nbest", "log_interval", "required_batch_size_multiple")
_BELOW_ONE = ("label_smoothing",)  # and every *dropout, *layerdrop


def present_errors() -> None:
    """A :class:`UserError` that ends a fairseq command is the user's to mend: one line, no traceback, exit status 2.

    Not all commands go through ``distributed.utils.call_main`` (generate does not), and a plugin's import can fail before any; so this
    is an ``excepthook``, and for ``fairseq-hydra-train``, where hydra catches all, a property of hydra's result.
    """
    from hydra.core.utils import JobReturn, JobStatus

    if not getattr(sys.excepthook, "_fairseq_efficient", False):
        hook = functools.partial(_excepthook, sys.excepthook)
        hook._fairseq_efficient = True  # type: ignore[attr-defined]
        sys.excepthook = hook
    stock: Any = JobReturn.return_value
    if getattr(stock.fget, "_fairseq_efficient", False):
        return

    def return_value(self: Any) -> Any:
        if self.status == JobStatus.FAILED:
            _exit_if_user_error(self._return_value)
        return stock.fget(self)

    return_value._fairseq_efficient = True  # type: ignore[attr-defined]
    JobReturn.return_value = property(return_value, stock.fset)  # type: ignore[assignment,method-assign]


def _excepthook(previous: Any, kind: type[BaseException], err: BaseException, trace: types.TracebackType | None) -> None:
    if any(os.sep + "fairseq_cli" + os.sep in name for name in _files(trace)):
        _exit_if_user_error(err)
    previous(kind, err, trace)


def _files(trace: types.TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next


def _exit_if_user_error(err: BaseException) -> None:
    message = user_message(err)
    if message is not None:
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def user_message(err: BaseException | None) -> str | None:
    """The line of the :class:`UserError` that ``err`` is, was raised from, or reports from a worker process; else None."""
    while err is not None:
        from_worker = re.findall(r"^(?:fairseq_efficient\.errors\.)?UserError: (.*)$", str(err), re.MULTILINE)
        if from_worker:  # torch.multiprocessing and DataLoader report a traceback as text
            return str(from_worker[-1])
        if isinstance(err, UserError):
            return str(err)
        err = err.__cause__ or (err.__context__ if type(err) is Exception else None)  # the trainer raises a bare Exception
    return None


def check_commands(patch: Callable[[Any, str, Callable[[Any], Any]], None]) -> None:
    """Stock ends in a traceback deep inside (``--fp16 --cpu``), trains twice into one folder (torchrun on CPU) or "is done" after no
    update (``--lr -1``). Look at the values where the command line has been parsed, and again where hydra's reach the trainer."""
    from fairseq import options, tasks
    from fairseq.trainer import Trainer

    def make_parse(stock: Any) -> Any:
        def parse_args_and_arch(*args: Any, **kwargs: Any) -> Any:
            parsed = stock(*args, **kwargs)
            check_arguments(parsed[0] if isinstance(parsed, tuple) else parsed)
            return parsed

        return parse_args_and_arch

    def make_trainer(stock: Any) -> Any:
        def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
            check_config(cfg)
            stock(self, cfg, *args, **kwargs)

        return __init__

    def make_setup(stock: Any) -> Any:
        def setup_task(cfg: Any, **kwargs: Any) -> Any:
            if not kwargs.get("from_checkpoint"):
                check_data(getattr(cfg, "data", None))
            return stock(cfg, **kwargs)

        return setup_task

    patch(options, "parse_args_and_arch", make_parse)
    patch(Trainer, "__init__", make_trainer)
    patch(tasks, "setup_task", make_setup)


def check_arguments(args: argparse.Namespace) -> None:
    """Check a parsed command line, and undo stock's "bf16 means TPU" where there is no TPU library (it broke ``--bf16`` on GPUs)."""
    if getattr(args, "bf16", False) and getattr(args, "tpu", False) and importlib.util.find_spec("torch_xla") is None:
        args.tpu = False
    training = hasattr(args, "restore_file") and hasattr(args, "optimizer")
    check_values(vars(args).items())
    if getattr(args, "tpu", False):
        return
    check_precision(args, training)
    if training:
        check_world(args, args)


def check_config(cfg: Any) -> None:
    """The same for the nested configuration of a training started by hydra or by a program."""
    if isinstance(cfg, argparse.Namespace):
        return check_arguments(cfg)
    for section in ("optimization", "dataset", "model", "criterion"):
        part = cfg.get(section)
        if part is not None and not isinstance(part, (str, argparse.Namespace)):
            check_values((name, part[name]) for name in part)
    if not cfg.common.tpu:
        check_precision(cfg.common, training=True)
        check_world(cfg.distributed_training, cfg.common)


def check_values(values: Iterable[tuple[Any, Any]]) -> None:
    """Raises UserError for a number that makes no sense: a negative learning rate, a dropout of 1.5 ..."""
    for name, value in values:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, bool) or not isinstance(one, (int, float)):
                continue
            flag = f"--{str(name).replace('_', '-')} {one}"
            if name in _NOT_NEGATIVE and not one >= 0:
                raise UserError(f"{flag}: must not be negative")
            if name in _POSITIVE and not one > 0:
                raise UserError(f"{flag}: must be positive")
            if (name in _BELOW_ONE or str(name).endswith(("dropout", "layerdrop"))) and not 0 <= one < 1:
                raise UserError(f"{flag}: must be at least 0 and below 1")


def check_precision(common: Any, training: bool) -> None:
    """Raises UserError for half precision on the CPU, where stock crashes in CUDA or TPU code."""
    flag = next((name for name in _PRECISION_FLAGS if getattr(common, name, False)), None)
    if flag is None or not _on_cpu(common):
        return
    instead = "--cpu-bf16" if training else """--model-overrides "{'cpu_bf16': True}\""""
    raise UserError(f"--{flag.replace('_', '-')} needs a GPU; on the CPU leave it out, or use {instead} (bfloat16 autocast)")


def _on_cpu(common: Any) -> bool:
    return bool(getattr(common, "cpu", False)) or not torch.cuda.is_available()


def check_world(distributed: Any, common: Any) -> None:
    """Raises UserError for several processes that would not train together (stock: each trains alone, into the same folder)."""
    if distributed.distributed_init_method is not None:
        return
    started = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    started_size, size = int(started) if started.isdigit() else 1, distributed.distributed_world_size
    if _on_cpu(common) and max(started_size, size) > 1:
        world = max(started_size, size)
        why = f"{world} processes on the CPU would each train alone"
        raise UserError(
            f"{why}: start each of them as fairseq-train ... --cpu --distributed-world-size {world} --distributed-rank R "
            "--distributed-init-method tcp://127.0.0.1:PORT --distributed-backend gloo --distributed-no-spawn "
            f"--ddp-backend legacy_ddp with R from 0 to {world - 1} (or add --distributed-world-size 1 for one process)"
        )
    if started_size > 1 and size == 1:
        raise UserError(f"torchrun started {started_size} processes that would each train alone: add --distributed-world-size {started_size}")


def check_data(data: Any) -> None:
    """Raises UserError when no folder of a task's ``data`` (joined by ``:``) exists."""
    if isinstance(data, str) and data and "://" not in data and not any(os.path.exists(p) for p in data.split(os.pathsep)):
        raise UserError(f"data folder {data} does not exist")
