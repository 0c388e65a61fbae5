"""Helpers of the tests: closeness, tiny systems, fairseq's commands in this process or in one of their own."""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))  # so many times longer may commands take, on a busy machine
_TOOLS = ("train", "generate", "interactive", "validate", "eval_lm", "hydra_train", "preprocess")
SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*(f"fairseq_cli.{tool}" for tool in _TOOLS), "tests.server"])


@dataclass(frozen=True)
class System:
    """One trained architecture: tests of resume, ranks and registration run for each row of :data:`SYSTEMS`."""

    user_dir: str
    arch: str
    flags: tuple[str, ...] = ()
    data: str = "pairs"  # which of conftest's data sets it trains on, and how: see _DATA_FLAGS
    noisy: bool = False  # draws random numbers in training that --dropout 0 does not turn off

    def __str__(self) -> str:
        return self.arch


PYRAMID = (
    "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--encoder-attention-heads", "2",
    "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-attention-heads", "2",
    "--encoder-pooling", "topk", "--enc-layers-and-token-width", "0:16,1:8", "--chunk-size", "8",
)  # fmt: skip
HOURGLASS = (
    "--model-config", "[1, (2,), 1]", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32",
    "--decoder-attention-heads", "2",
)  # fmt: skip
SKIM = (
    "--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32",
    "--encoder-attention-heads", "2", "--skim-predictor-dim", "8",
)  # fmt: skip
BLOCKS = (
    "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2", "--mem-len", "12",
)  # fmt: skip
SPANS = (
    "--decoder-layers", "2", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads",
    "2", "--attn-span", "20", "--adapt-span", "--adapt-span-ramp", "4", "--adapt-span-loss", "1e-4",
)  # fmt: skip
SYSTEMS = (
    System("deep_pyramidion", "pyramidion_tiny", PYRAMID),
    System("dynamic_pooling", "dynamic_pooling_lm_entropy", HOURGLASS, data="stream"),
    System("dynamic_pooling", "dynamic_pooling_lm_gumbel_fast", (*HOURGLASS, "--dropout", "0.1"), "stream", noisy=True),
    System("dynamic_pooling", "dynamic_pooling_lm_unigram", HOURGLASS, data="stream"),
    System(
        "skimming", "skim_roberta_tiny", (*SKIM, "--skim-init-bias", "1", "--dropout", "0.1"), "sentences", noisy=True
    ),
    System("par_search", "par_lm", (*BLOCKS, "--layout", "aff", "--adaptive-softmax-cutoff", "8"), "segments"),
    System("par_search", "par_supernet", (*BLOCKS, "--decoder-blocks", "2"), "search", noisy=True),
    System("adaptive_span", "sequential_lm_tiny", SPANS, "spans"),
    System("adaptive_span", "sequential_lm", (*SPANS, "--pers-mem-size", "6"), "spans"),
)


def assert_close(actual: Any, expected: Any, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    """Tensors, or nested dicts and lists of them, agree in shape, dtype and value."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


_DATA_FLAGS = {
    "pairs": ("--task", "translation", "--source-lang", "src", "--target-lang", "tgt"),
    "stream": (
        "--task", "dynamic_pooling_lm", "--criterion", "dynamic_pooling_cross_entropy", "--tokens-per-sample", "16",
    ),
    "sentences": (
        "--task", "sentence_prediction", "--criterion", "skim_sentence_prediction", "--num-classes", "2",
        "--init-token", "0", "--separator-token", "2", "--max-positions", "60",
    ),
    "questions": (
        "--task", "skim_squad", "--criterion", "skim_question_answering", "--max-seq-length", "24", "--doc-stride", "4",
        "--max-query-length", "6",
    ),
    "segments": ("--task", "segment_lm", "--criterion", "par_search", "--tokens-per-sample", "16"),
    "spans": ("--task", "segment_lm", "--criterion", "adaptive_span_loss", "--tokens-per-sample", "16"),
    "search": (
        "--task", "par_search", "--criterion", "par_search", "--optimizer", "par_search", "--tokens-per-sample", "16",
        "--arch-warmup-updates", "1", "--arch-update-share", "0.3", "--clip-norm", "0.1",
    ),
}  # fmt: skip


def train_args(data: Path | str, save_dir: Path | str, system: System, *more: str) -> list[str]:
    """A training of a few seconds: 5 or 6 updates an epoch on the data of ``made_data``, each logged as JSON."""
    return [
        str(data), "--user-dir", str(ROOT / system.user_dir), "--arch", system.arch, *system.flags,
        "--save-dir", str(save_dir), "--cpu", "--optimizer", "adam", "--lr", "0.01", "--batch-size", "8",
        "--max-update", "8", "--num-workers", "0", "--update-epoch-batch-itr", "True", "--log-format", "json",
        "--log-interval", "1", "--seed", "1", *_DATA_FLAGS[system.data], *more,
    ]  # fmt: skip


class Command:
    """A fairseq tool or a script in a new process, forked from a server that has imported fairseq already.

    ``typed`` is its standard input. ``before`` names a function, as ``tests.faults:small_files``, that the process
    calls first. ``fresh=True`` starts a new interpreter instead: 4 s slower, but it proves what a user's shell shows.
    """

    def __init__(
        self,
        tool: str,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        fresh: bool = False,
        typed: str = "",
        before: str = "",
    ):
        self.name = f"{tool} {' '.join(map(str, args))}"
        handle, self._log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        arguments = [str(arg) for arg in args]
        if fresh:
            command = [sys.executable, *([tool] if tool.endswith(".py") else ["-m", f"fairseq_cli.{tool}"]), *arguments]
            with open(self._log, "wb") as out:
                everything = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
                self._process: Any = subprocess.Popen(command, stdout=out, stderr=out, env=everything, cwd=cwd)
        else:
            target = (tool, arguments, dict(env or {}), str(cwd or os.getcwd()), self._log, typed, before)
            self._process = SERVER.Process(target=_run_tool, args=target)
            self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def read(self) -> str:
        """Its output so far."""
        return Path(self._log).read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """``kill -9``; :meth:`wait` then finds the exit status -9."""
        self._process.kill()

    def wait(self, expect: int | None = 0, timeout: float = 120) -> str:
        """Its output (stdout and stderr), after checking its exit status; ``expect=None`` accepts any."""
        timeout *= PATIENCE
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            status = self._process.poll()
        else:
            self._process.join(timeout)
            status = self._process.exitcode
        if status is None:
            self._process.kill()
        output = self.read()
        os.remove(self._log)
        assert status is not None, f"{self.name}: not done in {timeout} s\n{output}"
        assert expect is None or status == expect, f"{self.name}: exit status {status}, not {expect}\n{output}"
        return output


def _run_tool(tool: str, args: list[str], env: dict[str, str], cwd: str, log: str, typed: str, before: str) -> None:
    """In the forked process: what the interpreter does with a command, its output into ``log``."""
    multiprocessing.set_start_method(None, force=True)  # of data workers: a user's shell has the default
    if typed:
        with tempfile.TemporaryFile() as file:
            file.write(typed.encode())
            file.seek(0)
            os.dup2(file.fileno(), 0)
        sys.stdin = os.fdopen(0, encoding="utf-8")
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = [tool, *args]
    if before:
        module, _, function = before.partition(":")
        getattr(importlib.import_module(module), function)()
    try:
        if tool.endswith(".py"):
            sys.path.insert(0, str(Path(tool).resolve().parent))
            runpy.run_path(tool, run_name="__main__")
        else:
            importlib.import_module(f"fairseq_cli.{tool}").cli_main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def run_cli(
    tool: str,
    args: Sequence[str],
    expect: int | None = 0,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float = 120,
    fresh: bool = False,
    typed: str = "",
    before: str = "",
) -> str:
    """Output of ``fairseq_cli.<tool>``, or of a script (``scripts/x.py``), run in a process of its own; see Command."""
    return Command(tool, args, env, cwd, fresh, typed, before).wait(expect, timeout)


def load_script(path: Path) -> Any:
    """A script as a module that is in nobody's way: scripts/bench has scripts with the names of packages."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module, kept = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = kept
    return module


@contextlib.contextmanager
def _here(argv: Sequence[str], form: str) -> Iterator[io.StringIO]:
    """What fairseq logs and prints in this process while the block runs, with this command line."""
    from fairseq import checkpoint_utils
    from fairseq.logging import metrics

    output = io.StringIO()
    train = sys.modules.get("fairseq_cli.train")
    for function in (checkpoint_utils.save_checkpoint, getattr(train, "should_stop_early", None)):
        if hasattr(function, "best"):  # fairseq keeps the best score of a run on its functions
            delattr(function, "best")
    metrics.reset()
    handler, root = logging.StreamHandler(output), logging.getLogger()
    handler.setFormatter(logging.Formatter(form))
    level, disabled = root.level, root.manager.disable
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with mock.patch.object(sys, "argv", [*map(str, argv)]), contextlib.redirect_stdout(output):
            yield output
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        logging.disable(disabled)


def run_in_process(tool: str, args: Sequence[str], form: str = "%(message)s") -> str:
    """Output of ``fairseq_cli.<tool>`` run here, which is fastest; errors are raised, ``UserError`` as itself.

    form: of a line that fairseq logs.
    """
    module = importlib.import_module(f"fairseq_cli.{tool}")
    with _here([tool, *args], form) as output:
        module.cli_main()
    return output.getvalue()


def run_here(tool: str, args: Sequence[str]) -> tuple[int, str]:
    """(exit status, output) of a tool, or of a script, as :func:`run_cli` would find them, run in this process."""
    status = 0
    path, modules = list(sys.path), set(sys.modules)
    with _here([tool, *args], "%(message)s") as output, contextlib.redirect_stderr(output):
        try:
            if tool.endswith(".py"):
                sys.path.insert(0, str((ROOT / tool).resolve().parent))
                runpy.run_path(str(ROOT / tool), run_name="__main__")
            else:
                importlib.import_module(f"fairseq_cli.{tool}").cli_main()
        except BaseException:
            status = _exit_status(*sys.exc_info())
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:  # modules that stand beside a script
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "scripts")):
                    del sys.modules[name]
    return status, output.getvalue()


def _exit_status(kind: Any, err: Any, trace: Any) -> int:
    """What the interpreter would exit with; it prints what it would print."""
    try:
        if kind is not SystemExit:
            sys.excepthook(kind, err, trace)
            return 1
    except SystemExit as end:
        err = end
    if err.code is None or isinstance(err.code, int):
        return err.code or 0
    print(err.code, file=sys.stderr)
    return 1


def error_line(output: str) -> str:
    """The one ``error: ...`` line of a failed command; fails if there is a traceback or not exactly one."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    return lines[0]


def refused(tool: str, args: Sequence[str]) -> str:
    """The ``error: ...`` line of a command that ends with exit status 2, run in this process."""
    status, output = run_here(tool, args)
    assert status == 2, output
    return error_line(output)


def losses(output: str) -> dict[int, str]:
    """update -> training loss as printed, from a log of :func:`train_args`, with or without the names of loggers."""
    found = (json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line)
    return {int(values["num_updates"]): values["loss"] for values in found if "loss" in values}


def assert_same_training(one: Path, other: Path, position: bool = True) -> None:
    """Two checkpoints hold the same model, optimizer state, EMA, validation loss and (position) place in the data.

    Without position they are of one rank and of two: between ranks, parameters that nothing uses get gradients of 0,
    and so an optimizer state of zeros, which is left out.
    """
    from fairseq_efficient.checkpoints import read_checkpoint

    states = [read_checkpoint(str(path)) for path in (one, other)]
    for state in states:
        extra = state["extra_state"]
        extra.pop("metrics")  # meters hold wall-clock times
        extra.pop("previous_training_time")
        if not position:
            extra.pop("train_iterator")
            moments = state["last_optimizer_state"].get("state", {})
            for number in [key for key, value in moments.items() if not value["exp_avg"].any()]:
                del moments[number]
        del state["cfg"]  # holds the folders' names
        del state["optimizer_history"][:-1]  # one entry is added by each start
    _assert_identical(states[0], states[1], "checkpoint")


def _assert_identical(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_identical(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            _assert_identical(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
