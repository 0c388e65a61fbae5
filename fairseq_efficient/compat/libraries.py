"""fairseq was written for older torch, numpy and hydra than those that are installed."""

import inspect
import logging
import os
import re
import sys
import types
import warnings
from typing import Any

import numpy

from fairseq_efficient.compat.patching import Overlay
from fairseq_efficient.errors import UserError

OLDEST_TORCH = (2, 10)
NOISE = (
    r"\s*The version_base parameter is not specified",
    r"\s*'config' is validated against ConfigStore schema",
    r"\s*The strict flag in the compose API is deprecated",
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"In '.*'. Usage of deprecated keyword in package header",
    r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
)
FORM = "%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%Y-%m-%d %H:%M:%S"  # of fairseq's commands
RESULTS = {"fairseq_cli.eval_lm", "fairseq_cli.train", "fairseq_cli.validate"}  # whose results are in their log


def require_torch(version: str) -> None:
    """Reading a crafted file with an older torch runs code (CVE-2025-32434) or corrupts the heap (CVE-2026-24747)."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise UserError(f"torch {version} is installed, torch >= 2.10 is needed (older ones read checkpoints unsafely)")


def silence_deprecations() -> None:
    """fairseq's old hydra and torch calls warn some ten times per command, in paragraphs that bury a real message; and
    where this runs before fairseq is imported, its speech task need not advise to install tensorboardX."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("fairseq.tasks.text_to_speech").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Please install tensorboardX")


def log_as_commands_do() -> None:
    """Importing fairseq calls ``logging.basicConfig(level=DEBUG)`` (in its wav2vec 2 classifier), after which that of a
    command does nothing: results of eval-lm and validate go to stderr, where ``| tee`` and ``>`` do not find them."""
    known, root = logging.Logger.manager.loggerDict, logging.getLogger()
    if not any(name.startswith("fairseq_cli.") for name in known):
        return  # a program's log is its own
    for handler in root.handlers:
        form = getattr(handler.formatter, "_fmt", None)
        if type(handler) is logging.StreamHandler and handler.stream is sys.stderr and form == logging.BASIC_FORMAT:
            handler.setFormatter(logging.Formatter(*FORM))
            root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
            if RESULTS & set(known):
                handler.setStream(sys.stdout)


def restore_numpy_names() -> None:
    """numpy removed ``np.float`` (1.24; fairseq's dynamic CRF layer) and ``np.compat`` (2.0; ``--num-batch-buckets``,
    language models that break blocks at sentences).

    Only those modules see them again; numpy itself stays as it is, for libraries that look whether a name exists.
    ``np.int`` in ``data_utils`` is left alone: that branch next calls ``Generator.randint``, which never existed.
    """
    from fairseq.data import language_pair_dataset, token_block_dataset
    from fairseq.modules import dynamic_crf_layer

    long = types.SimpleNamespace(long=numpy.int64)
    users = (
        (dynamic_crf_layer, "float", float),
        (language_pair_dataset, "compat", long),
        (token_block_dataset, "compat", long),
    )
    for module, name, value in users:
        if not hasattr(module.np, name):
            module.np = Overlay(numpy, **{name: value})
    rename_percentile_option()


def rename_percentile_option() -> None:
    """numpy 2.4 removed ``percentile(interpolation=...)`` for ``method``: ``--num-batch-buckets`` is a TypeError."""
    from fairseq.data import data_utils

    if "interpolation" in inspect.signature(numpy.percentile).parameters or isinstance(data_utils.np, Overlay):
        return

    def percentile(*args: Any, interpolation: str = "linear", **kwargs: Any) -> Any:
        return numpy.percentile(*args, method=interpolation, **kwargs)  # type: ignore[call-overload]

    data_utils.np = Overlay(numpy, percentile=percentile)
