"""Damaged, foreign and malicious checkpoints; writes that are cut off."""

import argparse
import builtins
import os
import pickle
import random
import resource
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_efficient import checkpoint_rules, checkpoints
from fairseq_efficient.errors import UserError
from tests.util import SERVER


def state(updates: int = 1, **changes: Any) -> dict[str, Any]:
    """What fairseq stores of a small stock model, with ``changes`` to its sections."""
    cfg = {
        "common": {"user_dir": None},
        "model": {"_name": "transformer_lm_gpt", "decoder_layers": 2},
        "task": {"_name": "language_modeling", "data": "x"},
        "criterion": {"_name": "cross_entropy"},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)"},
    }
    tensors = OrderedDict(weight=torch.arange(5000.0), bias=torch.ones(3))
    return {"args": None, "cfg": {**cfg, **changes}, "model": tensors, "optimizer_history": [{"num_updates": updates}]}


def saved(folder: Path, name: str, updates: int = 1) -> Path:
    checkpoints.atomic_save(state(updates), str(folder / name))
    return folder / name


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[data.index(torch.arange(5000.0).numpy().tobytes()) + 9000] ^= 1
    else:
        data = data[: max(1, len(data) * int(how.rstrip("%")) // 100) if how != "0%" else 0]
    path.write_bytes(data)


DAMAGES = {"0%": "empty", "1%": "damaged|truncated", "50%": "truncated", "99%": "truncated", "flipped": "checksum"}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_and_the_newest_readable_is_used(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    old, new, last = (saved(tmp_path, f"checkpoint{name}.pt", n) for n, name in enumerate(("1", "_1_7", "_last"), 5))
    os.utime(old)  # a copy to another disk can make the older one look newer
    damage(last, how)
    with pytest.raises(UserError, match=f"{last}.*{DAMAGES[how]}"):
        checkpoints.read_checkpoint(str(last))

    path, found = checkpoints.read_or_fall_back(str(last))
    assert path == str(new) and found["optimizer_history"][0]["num_updates"] == 6
    assert str(last) in caplog.text and str(new) in caplog.text

    damage(new, how)
    assert checkpoints.read_or_fall_back(str(last))[0] == str(old)
    damage(old, how)
    with pytest.raises(UserError, match=f"{last}.*no readable checkpoint"):
        checkpoints.read_or_fall_back(str(last))


def test_a_checkpoint_asked_for_by_name_is_never_swapped(tmp_path: Path):
    best, other = saved(tmp_path, "checkpoint_best.pt"), saved(tmp_path, "checkpoint2.pt")
    damage(best, "50%")
    with pytest.raises(UserError, match=f"{best}.*newest readable.*{other}"):
        checkpoints.read_or_fall_back(str(best))


def test_fallback_keeps_to_its_own_shard(tmp_path: Path):
    last = saved(tmp_path, "checkpoint_last-shard1.pt")
    saved(tmp_path, "checkpoint_1_9-shard0.pt", 9)
    mine = saved(tmp_path, "checkpoint_1_8-shard1.pt", 8)
    damage(last, "50%")
    assert checkpoints.read_or_fall_back(str(last))[0] == str(mine)


def test_unreadable_for_other_reasons_is_no_fallback(tmp_path: Path):
    saved(tmp_path, "checkpoint1.pt")
    (tmp_path / "checkpoint_last.pt").mkdir()
    with pytest.raises(UserError, match="directory"):
        checkpoints.read_or_fall_back(str(tmp_path / "checkpoint_last.pt"))
    with pytest.raises(UserError, match="No such file"):
        checkpoints.read_checkpoint(str(tmp_path / "missing.pt"))


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any):
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("environment", ["0", "1"], ids=["default", "force-unsafe"])
@pytest.mark.parametrize("function", [os.system, builtins.eval, pickle.loads], ids=lambda f: f.__name__)
def test_code_in_a_checkpoint_does_not_run(
    function: Any, environment: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", environment)
    marker, path = tmp_path / "marker", tmp_path / "checkpoint_last.pt"
    code = {"system": f"touch {marker}", "eval": f"open({str(marker)!r}, 'w')"}.get(function.__name__)
    argument = code or pickle.dumps(Calls(os.system, f"touch {marker}"))
    torch.save({**state(), "extra_state": Calls(function, argument)}, path, _use_new_zipfile_serialization=zipped)
    saved(tmp_path, "checkpoint1.pt")  # refused is not damaged: nothing else is loaded instead
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{path} refused: it holds .*{function.__name__}"):
        checkpoints.read_or_fall_back(str(path))
    assert not marker.exists() and time.monotonic() - start < 2


def enlarge(path: Path) -> None:
    """Let a zip checkpoint's pickle claim 10^12 elements for the storage of 5000."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, larger(data) if name.endswith("data.pkl") else data)


def larger(data: bytes) -> bytes:
    return data.replace(b"M\x88\x13", b"\x8a\x06" + (10**12).to_bytes(6, "little"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_huge_tensor_costs_nothing(zipped: bool, tmp_path: Path):
    path = tmp_path / "checkpoint_last.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    if zipped:
        enlarge(path)
    else:
        path.write_bytes(larger(path.read_bytes()))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=str(path)):
        checkpoints.read_checkpoint(str(path))
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_zip_members_cannot_leave_the_archive_or_unpack_to_more(tmp_path: Path):
    path, folder = tmp_path / "in" / "checkpoint_last.pt", tmp_path / "in"
    folder.mkdir()
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped", b"x")
    with pytest.raises(UserError, match=str(path)):
        checkpoints.read_checkpoint(str(path))
    assert sorted(os.listdir(tmp_path)) == ["in"] and os.listdir(folder) == ["checkpoint_last.pt"]
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint_last/bomb", bytes(10**7))
    with pytest.raises(UserError, match="its zip directory was not written"):
        checkpoints.read_checkpoint(str(path))


def test_old_fairseq_checkpoints_with_a_namespace_load(tmp_path: Path):
    path = tmp_path / "model.pt"
    args = argparse.Namespace(arch="bart_large", task="denoising", criterion="cross_entropy")
    torch.save({"args": args, "model": {}}, path, _use_new_zipfile_serialization=False)
    found = checkpoints.read_checkpoint(str(path))
    assert found["args"] == args
    checkpoint_rules.check_checkpoint(found, str(path))


def args_of(**values: Any) -> dict[str, Any]:
    fine = {"arch": "transformer_tiny", "task": "translation", "criterion": "label_smoothed_cross_entropy"}
    return {"args": argparse.Namespace(**{**fine, **values}), "cfg": None}


EVIL = "__import__('os').system('touch marker')"


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        (args_of(arch="fconv", encoder_layers=EVIL), "architecture 'fconv'"),
        (args_of(arch="no_such_arch"), "architecture 'no_such_arch'"),
        (args_of(arch=None), "architecture None"),
        (args_of(task="audio_pretraining"), "task 'audio_pretraining'"),
        (args_of(criterion="ctc"), "criterion 'ctc'"),
        (args_of(adam_betas=EVIL), "run its adam_betas as code"),
        (args_of(adaptive_softmax_cutoff=EVIL), "adaptive_softmax_cutoff"),
        (args_of(deep={"er": [argparse.Namespace(character_filters=EVIL)]}), "character_filters"),
        (state(model={"_name": "wav2vec2", "conv_feature_layers": EVIL}), "architecture 'wav2vec2'"),
        (state(model={"_name": "transformer_lm_gpt", "arch": "fconv"}), "architecture 'fconv'"),
        (state(model={"fconv": {"encoder_layers": EVIL}}), "architecture None"),  # build_model would infer the name
        (state(model={"_name": "${task.evil}"}), "architecture"),
        (state(model="fconv"), "architecture 'fconv'"),
        (state(task={"_name": "language_modeling", "task": "hubert_pretraining"}), "task 'hubert_pretraining'"),
        (state(criterion="wav2vec"), "criterion 'wav2vec'"),
        (state(model={"_name": "transformer_lm_gpt", "xformers_att_config": EVIL}), "xformers_att_config"),
        (state(model={"_name": "transformer_lm_gpt", "character_filters": "${x}"}), "character_filters"),
        ({"model": {}}, "no configuration"),
    ],
)
def test_foreign_checkpoints_are_refused(foreign: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=r"checkpoint a\.pt refused.*" + reason):
        checkpoint_rules.check_checkpoint(foreign, "a.pt")


def test_ours_and_the_listed_stock_names_are_accepted(monkeypatch: pytest.MonkeyPatch):
    import deep_pyramidion  # noqa: F401

    ours = {"_name": "pyramidion_tiny", "encoder_layers": 2, "adaptive_softmax_cutoff": None}
    for fine in (state(), state(model=ours, task={"_name": "translation"}), state(criterion=None), args_of()):
        checkpoint_rules.check_checkpoint(fine, "a.pt")
    # a plugin built on ours asks to be trusted; a package that merely has our name is not
    monkeypatch.setattr(checkpoint_rules, "_trusted", set())
    monkeypatch.delitem(sys.modules, "skimming", raising=False)
    assert not checkpoint_rules._is_ours("somebody.model") and not checkpoint_rules._is_ours("skimming.model")
    checkpoint_rules.trust("somebody.model")
    assert checkpoint_rules._is_ours("somebody.other")


def test_a_missing_plugin_is_named():
    foreign = state(common={"user_dir": "/home/me/par_search/"}, model={"_name": "not_registered_here"})
    with pytest.raises(
        UserError,
        match=r"plugin for its architecture 'not_registered_here': say --user-dir (par_search|efficient_systems)",
    ):
        checkpoint_rules.check_checkpoint(foreign, "a.pt")


def test_save_makes_numpy_numbers_plain_and_reads_back_safe(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "checkpoint_last.pt"
    values = {"best": np.float64(0.5), "history": [np.int64(3), (np.float32(1), "x")]}
    checkpoints.atomic_save({**state(), "extra_state": values}, str(path))
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    assert checkpoints.read_checkpoint(str(path))["extra_state"] == {"best": 0.5, "history": [3, (1.0, "x")]}
    checkpoints.atomic_save({**state(), "task_state": {"dictionary": Path("x")}}, str(path))
    assert "cannot be loaded again" in caplog.text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, source = saved(tmp_path, "checkpoint_last.pt"), saved(tmp_path, "checkpoint1.pt", 2)
    path.chmod(0o640)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            with pytest.raises(OSError, match="No space left"):
                checkpoints.atomic_copy(str(source), str(path))
            with pytest.raises(OSError, match="No space left"):
                checkpoints.atomic_save(state(), str(path))
        assert path.read_bytes() == before and len(os.listdir(tmp_path)) == 2
    checkpoints.atomic_copy(str(source), str(path))
    assert path.read_bytes() == source.read_bytes() and path.stat().st_mode & 0o777 == 0o640


def limited_save(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    checkpoints.atomic_save({**state(2), "large": torch.zeros(1 << 20)}, path)


def test_a_full_disk_fails_loudly_and_leaves_no_partial_file(tmp_path: Path):
    path = saved(tmp_path, "checkpoint_last.pt")
    process = SERVER.Process(target=limited_save, args=(str(path),))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]
    assert checkpoints.read_checkpoint(str(path))["optimizer_history"] == [{"num_updates": 1}]


def save_for_ever(folder: str, ready: Any) -> None:
    for updates in range(1, 10**6):
        name = os.path.join(folder, f"checkpoint_1_{updates % 3}.pt")
        checkpoints.atomic_save({**state(updates), "large": torch.zeros(1 << 18)}, name)
        for copy in ("checkpoint_best.pt", "checkpoint_last.pt"):
            checkpoints.atomic_copy(name, os.path.join(folder, copy))
        ready.set()


def test_killed_at_any_instant_every_checkpoint_is_whole(tmp_path: Path):
    draw = random.Random(0)
    for attempt in range(20):
        folder, ready = tmp_path / str(attempt), SERVER.Event()
        folder.mkdir()
        process = SERVER.Process(target=save_for_ever, args=(str(folder), ready))
        process.start()
        assert ready.wait(60)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.join()
        names = [name for name in os.listdir(folder) if not name.endswith(".tmp")]
        assert "checkpoint_last.pt" in names
        for name in names:
            checkpoints.read_checkpoint(str(folder / name))
