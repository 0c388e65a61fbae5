"""Each repair of fairseq, and that stock needs it."""

import argparse
import ast
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fairseq
import numpy as np
import pytest
import torch

from fairseq_efficient import checkpoint_rules, checkpoints, compat
from fairseq_efficient.compat import libraries, mistakes
from fairseq_efficient.compat.checkpoints import describe_mismatch
from fairseq_efficient.errors import UserError
from tests.util import SYSTEMS, Command, System, error_line, run_cli, run_in_process, train_args

compat.apply()
SYSTEM = SYSTEMS[0]


def patched() -> list[Any]:
    from fairseq import checkpoint_utils, options, tasks
    from fairseq.distributed import utils
    from fairseq.file_io import PathManager
    from fairseq.modules import dynamic_crf_layer
    from fairseq.trainer import Trainer
    from hydra.core.utils import JobReturn

    return [
        checkpoint_utils.torch, checkpoint_utils.torch_persistent_save, checkpoint_utils.load_model_ensemble_and_task,
        PathManager.copy, Trainer.load_checkpoint, Trainer.__init__, utils.broadcast_object, tasks.setup_task,
        options.parse_args_and_arch, dynamic_crf_layer.np, JobReturn.return_value, sys.excepthook,
    ]  # fmt: skip


def test_apply_twice_changes_nothing():
    before = patched()
    compat.apply()
    assert all(one is other for one, other in zip(before, patched(), strict=True))


@pytest.mark.parametrize(
    ("version", "fine"), [("2.9.1+cpu", False), ("1.13.1", False), ("2.10.0", True), ("3.0a0", True)]
)
def test_torch_version(version: str, fine: bool):
    if fine:
        libraries.require_torch(version)
    else:
        with pytest.raises(UserError, match=version.replace("+", r"\+") + r" is installed, torch >= 2\.10 is needed"):
            libraries.require_torch(version)


def test_numpys_old_name_is_back_only_where_fairseq_uses_it():
    from fairseq.modules.dynamic_crf_layer import DynamicCRF

    assert not hasattr(np, "float")
    crf = DynamicCRF(num_embedding=8, low_rank=4, beam_size=4)
    tokens = torch.randint(0, 8, (2, 5))
    assert torch.isfinite(crf(torch.randn(2, 5, 8), tokens, torch.ones(2, 5).bool())).all()


def called(tree: ast.AST) -> set[str]:
    """Names of options that are passed to eval: ``eval(x.NAME)``, ``utils.eval_str_list(x.NAME)`` ..."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "id", getattr(node.func, "attr", ""))
            plain_eval = isinstance(node.func, ast.Name) and function == "eval"
            if plain_eval or function in ("eval_str_list", "eval_str_dict", "eval_bool"):
                found |= {one.attr for one in ast.walk(node.args[0]) if isinstance(one, ast.Attribute)}
                found |= {str(one.value) for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)}
    return found


def test_every_option_that_fairseq_evaluates_is_known():
    root = Path(fairseq.__file__).parent
    files = [path for path in root.rglob("*.py") if "examples" not in path.relative_to(root).parts]
    found = set().union(*(called(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    # "strip": a line of a data file; xformers' configuration arrives in a local variable
    assert found - {"strip", "args", "cfg"} | {"xformers_att_config"} == checkpoint_rules.EVALUATED


def test_a_mismatch_is_told_in_one_line():
    report = (
        'Error(s) in loading state_dict for M:\n\tMissing key(s) in state_dict: "a.weight", "b.weight". \n'
        '\tUnexpected key(s) in state_dict: "c.weight". '
    )
    sizes = (
        "\n\tsize mismatch for d.weight: copying a param with shape torch.Size([4, 8]) from checkpoint, "
        "the shape in current model is torch.Size([8, 8])."
    )
    assert describe_mismatch(report).startswith("the file has no a.weight (3 keys differ);")
    told = describe_mismatch(report + sizes)
    assert told.startswith("d.weight has shape [4, 8] in the file and [8, 8] in the model (4 keys differ);")


def chained(outer: Exception, inner: Exception, cause: bool) -> Exception:
    try:
        try:
            raise inner
        except Exception as err:
            if cause:
                raise outer from err
            raise outer  # noqa: B904
    except Exception as err:
        return err


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (UserError("bad flag"), "bad flag"),
        (chained(RuntimeError("x"), UserError("bad"), cause=True), "bad"),
        (chained(Exception("Cannot load model parameters"), UserError("bad"), cause=False), "bad"),
        (chained(KeyError("a bug met while handling it"), UserError("bad"), cause=False), None),
        (RuntimeError("Process 0 ended:\nTraceback ...\nfairseq_efficient.errors.UserError: bad\n"), "bad"),
        (UserError("Caught UserError in worker 0.\nOriginal ...\nfairseq_efficient.errors.UserError: bad\n"), "bad"),
        (AssertionError("Must specify batch size either with --max-tokens or --batch-size"), "Must specify batch size"),
        (AssertionError("--sampling requires --nbest to be equal to --beam"), "--sampling requires --nbest"),
        (
            Exception("Please use `--ddp-backend=legacy_ddp`\n instead."),
            "Please use `--ddp-backend=legacy_ddp` instead.",
        ),
        (AssertionError("(3, 4) -- (5, 6)"), None),
        (KeyError("--x"), None),
        (ValueError("x"), None),
    ],
)
def test_the_users_mistake_is_found_behind_an_error(err: Exception, message: str | None):
    found = mistakes.user_message(err)
    assert found == message if message is None else str(found).startswith(message)


@pytest.mark.parametrize(("file", "line"), [("/x/fairseq_cli/train.py", "interrupted"), ("/x/mine.py", None)])
def test_a_command_that_is_interrupted_says_so(file: str, line: str | None, capsys: pytest.CaptureFixture):
    """One line for fairseq's commands, Python's own form for other programs."""
    code = compile("def main():\n    raise KeyboardInterrupt", file, "exec")
    names: dict[str, Any] = {}
    types.FunctionType(code, names)()
    try:
        names["main"]()
    except KeyboardInterrupt:
        mistakes._excepthook(sys.__excepthook__, *sys.exc_info())  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said == "interrupted\n" if line else "Traceback" in said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": [0.1, -1.0]}, "--lr -1.0: must not be negative"),
        ({"lr": [float("nan")]}, "--lr nan"),
        ({"encoder_layerdrop": 1.5}, "--encoder-layerdrop 1.5: must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "--attention-dropout -0.1"),
        ({"update_freq": [0]}, "--update-freq 0: must be positive"),
        ({"lr": [0], "dropout": 0.0, "batch_size": None, "layernorm_dropout": True, "stop_min_lr": -1.0}, None),
    ],
)
def test_numbers_that_make_no_sense(values: dict[str, Any], message: str | None):
    if message is None:
        mistakes.check_values(values.items())
    else:
        with pytest.raises(UserError, match=message):
            mistakes.check_values(values.items())


def test_the_folder_of_a_log_file_is_made(tmp_path: Path):
    path = tmp_path / "runs" / "one" / "train.log"
    mistakes.make_log_folders(argparse.Namespace(log_file=str(path)))
    assert path.parent.is_dir()
    mistakes.make_log_folders(argparse.Namespace(log_file=None))
    path.parent.joinpath("file").touch()
    with pytest.raises(UserError, match=r"--log-file .*file/x\.log: "):
        mistakes.make_log_folders(argparse.Namespace(log_file=str(path.parent / "file" / "x.log")))


def test_bf16_does_not_mean_tpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = argparse.Namespace(bf16=True, tpu=True)
    mistakes.check_arguments(args)
    assert not args.tpu


WORLD = {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "cuda", "size", "method", "message"),
    [
        (WORLD, False, 1, None, "2 processes on the CPU .*--distributed-backend gloo"),
        ({}, False, 2, None, "--distributed-world-size 1"),
        (WORLD, True, 1, None, "add --distributed-world-size 2"),
        (WORLD, True, 2, None, None),
        (WORLD, False, 2, "tcp://127.0.0.1:1", None),
        ({"WORLD_SIZE": "2"}, False, 1, None, None),
        ({}, False, 1, None, None),
    ],
)
def test_processes_that_would_train_alone(
    env: dict[str, str], cuda: bool, size: int, method: str | None, message: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    distributed = SimpleNamespace(distributed_init_method=method, distributed_world_size=size)
    if message is None:
        mistakes.check_world(distributed, SimpleNamespace(cpu=False))
    else:
        with pytest.raises(UserError, match=message):
            mistakes.check_world(distributed, SimpleNamespace(cpu=False))


def test_torchrun_on_the_cpu_is_refused(pair_data: Path, tmp_path: Path):
    output = run_cli("train", train_more(pair_data, tmp_path), expect=2, env=WORLD)
    assert "2 processes on the CPU would each train alone" in error_line(output)


@pytest.fixture(scope="module")
def trained(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with checkpoints of 2 and 3 updates."""
    folder = tmp_path_factory.mktemp("trained")
    run_in_process("train", train_args(pair_data, folder, SYSTEM, "--max-update", "3", "--save-interval-updates", "2"))
    return folder


def train_more(pair_data: Path, folder: Path, *more: str) -> list[str]:
    return train_args(pair_data, folder, SYSTEM, "--max-update", "3", *more)


def generate_args(pair_data: Path, checkpoint: Path, *more: str) -> list[str]:
    return [
        str(pair_data), "--user-dir", SYSTEM.user_dir, "--path", str(checkpoint), "--cpu", "--beam", "2",
        "--max-len-b", "5", "--batch-size", "4", "--num-workers", "0", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("flag", ["--fp16", "--bf16", "--memory-efficient-fp16", "--memory-efficient-bf16", "--amp"])
def test_half_precision_on_the_cpu(flag: str, pair_data: Path, tmp_path: Path):
    with pytest.raises(UserError, match=f"{flag} needs a GPU; .*--cpu-bf16"):
        run_in_process("train", train_more(pair_data, tmp_path, flag))
    if flag != "--amp":
        with pytest.raises(UserError, match=f"{flag} needs a GPU; .*cpu_bf16': True"):
            run_in_process("generate", generate_args(pair_data, tmp_path / "x.pt", flag))


def test_other_mistakes_on_the_command_line(pair_data: Path, trained: Path, tmp_path: Path):
    for more, message in (
        (("--lr", "-1"), "--lr -1.0"),
        (("--dropout", "1.5"), "--dropout 1.5"),
        (("--restore-file", str(tmp_path / "best.pt")), f"{tmp_path}/best.pt does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            run_in_process("train", train_more(pair_data, tmp_path, *more))
    with pytest.raises(UserError, match=f"data folder {tmp_path}/none does not exist"):
        run_in_process("train", train_more(tmp_path / "none", tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/no.pt does not exist"):
        run_in_process("generate", generate_args(pair_data, tmp_path / "no.pt"))


def copy_of(trained: Path, folder: Path, name: str = "checkpoint_last.pt") -> Path:
    checkpoints.atomic_copy(str(trained / name), str(folder / name))
    return folder / name


def test_training_goes_on_from_the_newest_readable(pair_data: Path, trained: Path, tmp_path: Path):
    last, older = copy_of(trained, tmp_path), copy_of(trained, tmp_path, "checkpoint_1_2.pt")
    last.write_bytes(last.read_bytes()[:9999])
    output = run_in_process("train", train_more(pair_data, tmp_path))
    assert f"{last} cannot be read: it is truncated" in output and f"continuing from {older}" in output
    assert "@ 2 updates" in output and checkpoints.read_checkpoint(str(last))


def test_generate_says_so_or_refuses(pair_data: Path, trained: Path, tmp_path: Path):
    last, best = copy_of(trained, tmp_path), copy_of(trained, tmp_path, "checkpoint_best.pt")
    last.write_bytes(b"")
    output = run_in_process("generate", generate_args(pair_data, last))
    assert f"{last} cannot be read: it is empty" in output and f"continuing from {best}" in output and "H-0" in output
    older = copy_of(trained, tmp_path, "checkpoint_1_2.pt")
    best.write_bytes(best.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{best} cannot be read.*newest readable one beside it is {older}"):
        run_in_process("generate", generate_args(pair_data, best))


def test_what_does_not_fit_is_named(pair_data: Path, trained: Path, tmp_path: Path):
    start = ("--restore-file", str(trained / "checkpoint_last.pt"))
    shape = (
        r"checkpoint_last\.pt does not fit this model: \S+ has shape \[\d+.*\] in the file and \[\d+.*\] in the model"
    )
    with pytest.raises(UserError, match=shape):
        run_in_process("train", train_more(pair_data, tmp_path, *start, "--encoder-ffn-embed-dim", "48"))
    with pytest.raises(UserError, match=r"the file has no encoder\.layers\.\d"):
        run_in_process("train", train_more(pair_data, tmp_path, *start, "--encoder-layers", "5"))
    with pytest.raises(UserError, match="--reset-optimizer"):
        run_in_process("train", train_more(pair_data, tmp_path, *start, "--criterion", "label_smoothed_cross_entropy"))
    override = ("--model-overrides", "{'encoder_ffn_embed_dim': 48}")
    with pytest.raises(UserError, match=shape):
        run_in_process("generate", generate_args(pair_data, trained / "checkpoint_last.pt", *override))


def test_refused_before_anything_is_built(
    pair_data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fairseq.tasks.translation import TranslationTask

    path, marker = copy_of(trained, tmp_path), tmp_path / "marker"
    monkeypatch.setattr(TranslationTask, "build_model", lambda *_: pytest.fail("a model was built"))
    state = checkpoints.read_checkpoint(str(path))
    state["cfg"]["model"] = {"_name": "fconv", "encoder_layers": f"[open({str(marker)!r}, 'w')]"}
    torch.save(state, path)
    with pytest.raises(UserError, match="refused: its architecture 'fconv'"):
        run_in_process("generate", generate_args(pair_data, path))
    assert not marker.exists()


def test_stock_models_that_store_a_namespace_resume_and_generate(pair_data: Path, tmp_path: Path):
    stock = System(SYSTEM.user_dir, "transformer_tiny")
    run_in_process("train", train_args(pair_data, tmp_path, stock, "--max-update", "2"))
    state = checkpoints.read_checkpoint(str(tmp_path / "checkpoint_last.pt"))
    assert isinstance(state["cfg"]["model"], argparse.Namespace)
    output = run_in_process("train", train_args(pair_data, tmp_path, stock, "--max-update", "3"))
    assert "Loaded checkpoint" in output and "@ 2 updates" in output
    assert "H-0" in run_in_process("generate", generate_args(pair_data, tmp_path / "checkpoint_last.pt"))


def test_best_and_last_are_whole_after_a_crash_while_copying(
    pair_data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    last = copy_of(trained, tmp_path)
    before = last.read_bytes()
    real = os.replace

    def crash(source: str, target: str) -> None:
        if target.endswith("checkpoint_last.pt"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="No space left on device"):
        run_in_process("train", train_more(pair_data, tmp_path, "--max-update", "4"))
    assert last.read_bytes() == before and not list(tmp_path.glob("*.tmp"))


def test_our_checkpoints_hold_plain_data(trained: Path):
    for path in trained.glob("*.pt"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_a_users_shell_shows_one_line(pair_data: Path, tmp_path: Path):
    """In interpreters of their own: generate (which goes around call_main), and hydra (which catches all)."""
    root = Path(__file__).resolve().parents[2]
    args = generate_args(pair_data, tmp_path / "no.pt", "--user-dir", str(root / SYSTEM.user_dir))
    generate = Command("generate", args, cwd=tmp_path, fresh=True)
    hydra = [
        f"common.user_dir={root / SYSTEM.user_dir}", "common.cpu=true", "common.fp16=true",
        f"+model._name={SYSTEM.arch}", "task=translation",
        f"task.data={pair_data}", "task.source_lang=src", "task.target_lang=tgt",
        "dataset.batch_size=4", "optimization.lr=[0.1]", "optimization.max_update=1", "criterion=cross_entropy",
        "optimizer=adam", "lr_scheduler=fixed", f"checkpoint.save_dir={tmp_path}",
    ]  # fmt: skip
    train = Command("hydra_train", hydra, cwd=tmp_path, fresh=True)
    assert "no.pt does not exist" in error_line(generate.wait(expect=2))
    assert "--fp16 needs a GPU" in error_line(train.wait(expect=2))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_are_blocked(size: int):
    """Against a loop: after w1 .. wt, no word may complete an n-gram that is there already."""
    from fairseq.ngram_repeat_block import NGramRepeatBlock

    block, draw = NGramRepeatBlock(size, use_extension=False), torch.Generator().manual_seed(size)
    rows, vocab, longest = 6, 7, 12
    tokens = torch.full((rows, longest + 2), 1)
    tokens[:, 0] = 2
    blocked = 0
    for step in range(longest + 1):
        found = block(tokens, torch.zeros(rows, vocab), 2, 3, step).isinf()
        for row in range(rows):
            words = tokens[row, 1 : step + 1].tolist()
            there = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
            head = tuple(words[len(words) - size + 1 :]) if size > 1 else ()
            expected = [len(head) == size - 1 and (*head, word) in there for word in range(vocab)]
            assert found[row].tolist() == expected
        blocked += int(found.sum())
        if step < longest:
            tokens[:, step + 1] = torch.randint(3, vocab, (rows,), generator=draw)
    assert blocked
