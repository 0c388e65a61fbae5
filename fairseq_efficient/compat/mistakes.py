"""Mistakes in what was typed: found early, shown as one line. Nothing here changes fairseq (``commands`` does)."""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import math
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq_efficient.checkpoint_rules import is_literal
from fairseq_efficient.errors import CannotWrite, UserError
from fairseq_efficient.text.prepared import read_file
from fairseq_efficient.text.spm import load_model

_PRECISION_FLAGS = ("memory_efficient_fp16", "memory_efficient_bf16", "fp16", "bf16", "amp")
_NOT_NEGATIVE = (
    "lr", "warmup_updates", "weight_decay", "clip_norm", "num_workers", "save_interval_updates", "seed", "max_epoch",
    "max_update", "max_valid_steps", "stop_time_hours", "prefix_size", "no_repeat_ngram_size", "context_window",
    "curriculum", "max_len_b", "min_len", "shard_id",
)  # fmt: skip
_POSITIVE = (
    "update_freq", "batch_size", "max_tokens", "beam", "nbest", "log_interval", "required_batch_size_multiple",
    "required_seq_len_multiple", "validate_interval", "save_interval", "decoder_output_dim", "softmax_batch",
    "num_shards", "max_tokens_valid",
)  # fmt: skip
_CHECKS = (AssertionError, Exception, RuntimeError, ValueError)  # what fairseq raises for flags
MOST_WORKERS = 16 * (os.cpu_count() or 4)
_PROBABILITIES = ("label_smoothing", "dropout", "layerdrop")  # ends of names
_DICTS = ("model_overrides", "optimizer_overrides")


def install_excepthook() -> None:
    """Let Python end a fairseq command that raised a :class:`UserError` with one line and exit status 2, and one that
    was interrupted, or could not go on, with one line."""
    if not isinstance(sys.excepthook, functools.partial) or sys.excepthook.func is not _excepthook:
        sys.excepthook = functools.partial(_excepthook, sys.excepthook)


def _excepthook(before: Any, kind: type[BaseException], err: BaseException, trace: types.TracebackType | None) -> None:
    if any(os.sep + "fairseq_cli" + os.sep in file for file in _files(trace)):
        exit_if_user_error(err)
        if isinstance(err, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            return
        line = _failure(err)
        if line is not None:
            sys.stdout.flush()
            print(f"error: {line}", file=sys.stderr)
            return
    before(kind, err, trace)


def _failure(err: BaseException) -> str | None:
    """What is said of a training that nobody typed wrong, but that cannot go on; None for errors of programs."""
    if isinstance(err, FloatingPointError) and "Nan/Inf" in str(err):
        return (
            f"{err}: the warnings above name the layer, crash.pt in --save-dir holds the weights before this update; a "
            "smaller --lr, a --clip-norm or more --warmup-updates may help"
        )
    return str(err) if isinstance(err, (CannotWrite, FloatingPointError)) else None


def _files(trace: types.TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next


def exit_if_user_error(err: BaseException) -> None:
    """Print ``error: <line>`` and raise ``SystemExit(2)`` if there is a :class:`UserError` behind ``err``."""
    message = user_message(err)
    if message is not None:
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def user_message(err: BaseException | None) -> str | None:
    """The line of the UserError that ``err`` is, was raised from, or reports from a worker process, or of fairseq's own
    check of flags; else None."""
    while err is not None:
        # torch.multiprocessing and DataLoader report a child's traceback as text
        reported = re.findall(r"^fairseq_efficient\.errors\.UserError: (.*)$", str(err), re.MULTILINE)
        if reported:
            return str(reported[-1])
        if isinstance(err, UserError):
            return str(err)
        if type(err) in _CHECKS and re.search(r"(^|[ `'(])--[a-z][a-z-]+", str(err)):
            return " ".join(str(err).split())  # fairseq checks flags by exceptions that name them
        known = _known(err)
        if known is not None:
            return known
        missing = re.fullmatch(r"Dataset not found: (\S*) \((.*)\)", str(err))
        if isinstance(err, FileNotFoundError) and missing:
            return f"{missing[2]}: no split {missing[1]!r} (--train-subset, --valid-subset, --gen-subset)"
        if isinstance(err, AssertionError) and str(err) == "Source and target must contain the same number of examples":
            return "source and target of a split have not as many examples; prepare the data again"
        if type(err) is Exception and str(err).startswith("The dataset is empty."):
            return "nothing is left of the data: every example is longer than --max-tokens, or than model and task take"
        context = err.__context__ if type(err) is Exception else None  # fairseq's trainer raises a bare Exception
        err = err.__cause__ or context
    return None


def _known(err: BaseException) -> str | None:
    """What stock says of a wrong flag without naming it."""
    text = str(err)
    longest = re.match(r"Sentences? lengths? should not exceed max_tokens=(\d+)", text)
    if isinstance(err, AssertionError) and longest:
        return f"--max-tokens {longest[1]}: an example has more tokens; raise it, or say --batch-size alone"
    if isinstance(err, AssertionError) and text.startswith("min_len cannot be larger than max_len"):
        return "--min-len: longer than --max-len-a and --max-len-b let a hypothesis be"
    if isinstance(err, NotImplementedError) and text.startswith("Unknown post_process_symbol: "):
        return f"--post-process {text.partition(': ')[2]}: unknown"
    if isinstance(err, ValueError) and text.startswith("Unsupported language modeling target"):
        return f"--path: no model of this task ({text[0].lower()}{text[1:]})"
    return None


def check_arguments(args: argparse.Namespace) -> None:
    """Check a parsed command line.

    Stock takes ``--bf16`` for a TPU, which broke it on GPUs; that is undone where no TPU library is installed.
    """
    if getattr(args, "bf16", False) and importlib.util.find_spec("torch_xla") is None:
        args.tpu = False
    training = hasattr(args, "max_update")
    if not training:
        name_fitting_criterion(args)
    check_values(vars(args).items())
    if training:
        check_decay(vars(args).get("lr_scheduler"), vars(args))
    check_decoding(args)
    if not getattr(args, "tpu", False):
        check_precision(args, training)
        if training:
            check_world(args, args)
    make_log_folders(args)


def check_decay(scheduler: Any, values: Mapping[Any, Any]) -> None:
    """UserError where nothing says when ``polynomial_decay`` ends, or ``inverse_sqrt`` begins."""
    total, warmup = values.get("total_num_update"), values.get("warmup_updates")
    if scheduler == "polynomial_decay" and (total in (None, "???") or (isinstance(total, (int, float)) and total < 1)):
        raise UserError("--lr-scheduler polynomial_decay needs --total-num-update, the update at which it ends")
    if scheduler == "inverse_sqrt" and warmup == 0:
        raise UserError("--lr-scheduler inverse_sqrt falls with the root of --warmup-updates: say at least 1")


def check_decoding(args: argparse.Namespace) -> None:
    """UserError for what fairseq-generate, -interactive and -eval-lm would find out late, or not at all."""
    shards, beam = getattr(args, "num_shards", 1), getattr(args, "beam", None)
    if not getattr(args, "shard_id", 0) < shards:
        raise UserError(f"--shard-id {args.shard_id}: must be below --num-shards {shards}")
    if beam is not None and shards > 1 and hasattr(args, "gen_subset"):
        raise UserError("--num-shards: fairseq-generate would give each shard the whole split; cut the text instead")
    if beam is not None and getattr(args, "nbest", 1) > beam:
        raise UserError(f"--nbest {args.nbest}: must be at most --beam {beam}")
    if getattr(args, "bpe", None) == "sentencepiece":
        model = getattr(args, "sentencepiece_model", None)
        if model in (None, "", "???"):
            raise UserError("--bpe sentencepiece needs --sentencepiece-model")
        if "://" not in model:
            load_model(read_file(Path(model)), f"--sentencepiece-model {model}")


def name_fitting_criterion(args: argparse.Namespace) -> None:
    """``fairseq-validate --task sentence_prediction`` ends in an interpolation error of its configuration: the task
    reads values of a criterion of its own, and the command line, which names none, has cross_entropy. The checkpoint's
    is used in the end, so any that has these values will do.
    """
    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    if not (hasattr(args, "task") and hasattr(args, "criterion")):
        return
    values = vars(TASK_DATACLASS_REGISTRY[args.task]()).values() if args.task in TASK_DATACLASS_REGISTRY else ()
    texts = [str(value) for value in values if isinstance(value, str)]
    wanted = {found[1] for text in texts if (found := re.fullmatch(r"\$\{criterion\.(\w+)\}", text))}
    if not wanted:
        return
    for name in (args.criterion, args.task, *sorted(CRITERION_DATACLASS_REGISTRY)):
        has = CRITERION_DATACLASS_REGISTRY.get(name)
        if has is not None and wanted <= {one.name for one in dataclasses.fields(has)}:
            args.criterion = name
            return


def check_config(cfg: Any) -> None:
    """The same for the nested configuration of a training that hydra or a program started."""
    from omegaconf import OmegaConf

    if isinstance(cfg, argparse.Namespace):
        return check_arguments(cfg)
    for section in ("optimization", "dataset", "model", "criterion", "optimizer", "lr_scheduler"):
        part = cfg.get(section)
        values = OmegaConf.to_container(part) if OmegaConf.is_dict(part) else None
        values = values if isinstance(values, dict) else {}
        check_values(values.items())
        check_decay(values.get("_name"), values)
    if not cfg.common.tpu:
        check_precision(cfg.common, training=True)
        check_world(cfg.distributed_training, cfg.common)
    make_log_folders(cfg.common)


def make_log_folders(common: Any) -> None:
    """fairseq opens ``--log-file`` before it makes any folder, and finds out late that tensorboard's cannot be made.
    Raises UserError if one cannot."""
    for name in ("log_file", "tensorboard_logdir", "results_path"):
        path = getattr(common, name, None)
        if path:
            folder = path if name != "log_file" else os.path.dirname(os.path.abspath(path))
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as err:
                raise UserError(f"--{name.replace('_', '-')} {path}: {err.strerror}") from None


def check_values(values: Iterable[tuple[Any, Any]]) -> None:
    """Raises UserError for a number that makes no sense: a negative learning rate, a dropout of 1.5 ..."""
    for name, value in values:
        if str(name).endswith("_betas"):
            check_betas(str(name), value)
        if name in _DICTS and isinstance(value, str) and not isinstance(_literal(value), dict):
            flag = f"--{str(name).replace('_', '-')} {value}"
            raise UserError(f"{flag}: expected a dictionary, such as {{'dropout': 0.1}}")
        if name == "ema_decay" and isinstance(value, float) and not 0 <= value <= 1:
            raise UserError(f"--ema-decay {value}: must be between 0 and 1")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, bool) or not isinstance(one, (int, float)):
                continue
            flag = f"--{str(name).replace('_', '-')} {one}"
            if math.isnan(one):
                raise UserError(f"{flag}: must be a number")
            if name == "num_workers" and one > MOST_WORKERS:
                raise UserError(f"{flag}: must be at most {MOST_WORKERS} here (16 for each processor)")
            if name in _NOT_NEGATIVE and not one >= 0:
                raise UserError(f"{flag}: must not be negative")
            if name in _POSITIVE and not one > 0:
                raise UserError(f"{flag}: must be positive")
            if str(name).endswith(_PROBABILITIES) and not 0 <= one < 1:
                raise UserError(f"{flag}: must be at least 0 and below 1")


def check_betas(name: str, value: Any) -> None:
    """UserError unless it is, or spells, two numbers below 1: fairseq runs the text as code."""
    found = _literal(value) if isinstance(value, str) else value
    numbers = list(found) if isinstance(found, (list, tuple)) else []
    if len(numbers) != 2 or not all(isinstance(one, (int, float)) and 0 <= one < 1 for one in numbers):
        raise UserError(f"--{name.replace('_', '-')} {value}: expected two numbers below 1, such as '(0.9, 0.98)'")


def _literal(text: str) -> Any:
    """What it spells; None if it is no literal."""
    return ast.literal_eval(text.strip()) if is_literal(text.strip()) else None


def check_precision(common: Any, training: bool) -> None:
    """Raises UserError for half precision on the CPU, where stock crashes in CUDA or TPU code."""
    flag = next((name for name in _PRECISION_FLAGS if getattr(common, name, False)), None)
    if flag is None or not _on_cpu(common):
        return
    ours = "--cpu-bf16" if training else "--model-overrides \"{'cpu_bf16': True}\""
    flag = "--" + flag.replace("_", "-")
    raise UserError(f"{flag} needs a GPU; on the CPU leave it out or use {ours} (bfloat16 autocast) instead")


def _on_cpu(common: Any) -> bool:
    return bool(getattr(common, "cpu", False)) or not torch.cuda.is_available()


def check_world(distributed: Any, common: Any) -> None:
    """Raises UserError for processes that would not train together (stock: each alone, all into the same folder)."""
    if distributed.distributed_world_size < 1:  # stock starts none, and says nothing
        raise UserError(f"--distributed-world-size {distributed.distributed_world_size}: must be positive")
    if distributed.distributed_init_method is not None:
        return
    started = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    launched, size = int(started) if started.isdigit() else 1, distributed.distributed_world_size
    world = max(launched, size)
    if _on_cpu(common) and world > 1:
        raise UserError(
            f"{world} processes on the CPU would each train alone: start each of them, R = 0 to {world - 1}, as "
            f"fairseq-train ... --cpu --distributed-world-size {world} --distributed-rank R --distributed-init-method "
            "tcp://127.0.0.1:PORT --distributed-backend gloo --distributed-no-spawn --ddp-backend legacy_ddp"
            + ("" if launched > 1 else "; for a single process add --distributed-world-size 1")
        )
    if launched > 1 and size == 1:
        flag = f"--distributed-world-size {launched}"
        raise UserError(f"{launched} processes were launched and would each train alone: add {flag}")


def check_data(data: Any) -> None:
    """Raises UserError when no folder of a task's ``data`` (joined by ``:``) exists."""
    if not isinstance(data, str) or not data or "://" in data:
        return
    if not any(os.path.exists(folder) for folder in data.split(os.pathsep)):
        raise UserError(f"data folder {data} does not exist")
