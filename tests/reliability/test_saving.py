"""R4 to R6: killed, damaged, without room: what was saved before is found again, and what is wrong is said."""

import io
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

import efficient_systems  # noqa: F401  (registers)
from fairseq_efficient import checkpoints
from fairseq_efficient.errors import UserError
from tests.faults import SMALL
from tests.reliability.conftest import Training
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS, wait_for
from tests.util import PATIENCE, SYSTEMS, Command, System, error_line, losses, refused, run_cli, train_args

every_system = pytest.mark.parametrize("system", MAIN_SYSTEMS, ids=str)
KILLS = 20  # of each system


def updates_in(path: Path | str) -> int:
    return int(checkpoints.read_checkpoint(str(path))["optimizer_history"][-1]["num_updates"])


# --- R4: kill -9 ------------------------------------------------------------------------------------------------------


@every_system
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.full) for n in range(1, KILLS))])
def test_r4_a_killed_training_goes_on(
    system: System, seed: int, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """At any instant of a training that saves after every update: no file is half, one save interval is lost."""
    saving = ("--save-interval-updates", "1", "--keep-interval-updates", "2", "--max-update")
    args = train_args(datasets[system.data], tmp_path, system, *saving)
    first = Command("train", [*args, "1000000"])
    wait_for(lambda: "checkpoint_1_2.pt" in first.read(), "second checkpoint")
    time.sleep(random.Random(f"{system.arch} {seed}").random() * 0.5 * PATIENCE)
    first.kill()
    done = max(losses(first.wait(expect=-9)))

    whole = [updates_in(path) for path in tmp_path.glob("*.pt")]
    last = updates_in(tmp_path / "checkpoint_last.pt")
    assert done - 1 <= last <= max(whole) <= last + 1  # killed between an update's own file and the copy of it
    output = run_cli("train", [*args, str(last + 2)])
    assert f"@ {last} updates" in output and max(losses(output)) == last + 2
    assert updates_in(tmp_path / "checkpoint_last.pt") == last + 2
    figure("R4", "kills", 1)
    figure("R4", "files read after them", len(whole))
    figure("R4", "updates lost, at most", done - last, largest=True)


# --- R5: damage -------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "0%": (lambda data: b"", "it is empty"),
    "1%": (lambda data: data[: len(data) // 100], "it is truncated"),
    "50%": (lambda data: data[: len(data) // 2], "it is truncated"),
    "99%": (lambda data: data[: len(data) * 99 // 100], "it is truncated"),
    "flipped": (lambda data: flip(data), "a byte was altered"),
}


def flip(data: bytes) -> bytes:
    """One bit of the weights."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    numbers = max(state["model"].values(), key=torch.Tensor.numel).contiguous().numpy().tobytes()
    changed = bytearray(data)
    changed[data.index(numbers) + len(numbers) // 2] ^= 1
    return bytes(changed)


@every_system
def test_r5_damage_is_named_and_the_newest_readable_used(
    system: System,
    training: Callable[[System], Training],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    figure: Record,
):
    whole, last, older = training(system).folder, tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_1_3.pt"
    checkpoints.atomic_copy(str(whole / older.name), str(older))
    for change, reason in DAMAGES.values():
        last.write_bytes(change((whole / last.name).read_bytes()))
        caplog.clear()
        path, state = checkpoints.read_or_fall_back(str(last))
        assert path == str(older) and state["optimizer_history"][-1]["num_updates"] == 3
        assert f"{last} cannot be read: " in caplog.text and reason in caplog.text and str(older) in caplog.text
        figure("R5", "damaged files recovered from", 1)


@every_system
def test_r5_training_goes_on_from_it(
    system: System, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path
):
    """By the command that was killed, typed again."""
    whole, last = training(system).folder, tmp_path / "checkpoint_last.pt"
    checkpoints.atomic_copy(str(whole / "checkpoint_1_3.pt"), str(tmp_path / "checkpoint_1_3.pt"))
    last.write_bytes((whole / last.name).read_bytes()[:-1000])
    output = run_cli("train", train_args(datasets[system.data], tmp_path, system, "--max-update", "4"))
    assert f"{last} cannot be read: it is truncated" in output and "@ 3 updates" in output
    assert updates_in(last) == 4


WIDTHS = {  # another width than the checkpoint's, and the first weights that it changes
    "pyramidion_tiny": ("encoder_ffn_embed_dim", r"encoder\.layers\.0\.fc1\.weight"),
    "dynamic_pooling_lm_gumbel_fast": ("decoder_ffn_embed_dim", r"decoder\.(pre|boundary_rule)\S*fc1\.weight"),
    "skim_roberta_tiny": ("encoder_ffn_embed_dim", r"encoder\.sentence_encoder\.layers\.0\.fc1\.weight"),
    "par_supernet": ("decoder_ffn_embed_dim", r"decoder\.blocks\.0\.feed_forward\.fc1\.weight"),
    "sequential_lm": ("decoder_embed_dim", r"decoder\.\S+"),
}


def load(path: Path, data: Path, **overrides: Any) -> Any:
    return checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data), **overrides})


@every_system
def test_r5_what_does_not_fit_is_named(
    system: System, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """Another width: the first key and both shapes. A key that is not there: its name."""
    path, data = training(system).folder / "checkpoint_last.pt", datasets[system.data]
    option, key = WIDTHS[system.arch]
    shapes = rf"{path} does not fit this model: {key} has shape \[.+\] in the file and \[.+\] in the model"
    with pytest.raises(UserError, match=shapes):
        load(path, data, **{option: 48})
    state = checkpoints.read_checkpoint(str(path))
    missing = next(name for name, one in state["model"].items() if one.dim() > 1 and "embed" not in name)
    del state["model"][missing]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(UserError, match=rf"{tmp_path}/less\.pt.*{re.escape(missing)}"):
        load(tmp_path / "less.pt", data)
    figure("R5", "checkpoints that do not fit, named", 2)


# --- R6: no room, no permission ---------------------------------------------------------------------------------------


def goes_on(system: System, training: Callable[[System], Training], data: Path, folder: Path) -> tuple[Path, list[str]]:
    """A checkpoint of 8 updates, which is larger than files may be, and the arguments of 2 more."""
    last = folder / "checkpoint_last.pt"
    folder.mkdir(exist_ok=True)
    checkpoints.atomic_copy(str(training(system).folder / last.name), str(last))
    assert last.stat().st_size > SMALL
    return last, train_args(data, folder, system, "--max-update", "10")


@every_system
def test_r6_a_full_disk_leaves_the_last_checkpoint(
    system: System, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    last, args = goes_on(system, training, datasets[system.data], tmp_path)
    before = last.read_bytes()
    output = run_cli("train", args, expect=1, before="tests.faults:small_files")
    assert re.fullmatch(rf"error: {tmp_path}/\S+\.pt: File too large; .*", error_line(output))
    assert last.read_bytes() == before and os.listdir(tmp_path) == [last.name]
    figure("R6", "full disks", 1)


@pytest.mark.parametrize(
    "command",
    [
        ("prepare_lm.py", "--split", "train=@", "--split", "valid=@", "--symbols", "characters"),
        ("prepare_classification.py", "--split", "train=@", "--split", "valid=@", "--vocab-size", "300"),
        ("prepare_summarization.py", "--source", "train=@", "--target", "train=@", "--vocab-size", "300"),
    ],
    ids=lambda command: command[0],
)
def test_r6_a_full_disk_while_data_are_prepared(command: tuple[str, ...], tmp_path: Path, figure: Record):
    texts = tmp_path / "texts.tsv"
    lines = [f"some words of text {number} and of others {number % 7}\t{number % 2}" for number in range(5000)]
    texts.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    args = [word.replace("@", str(texts)) for word in command[1:]]
    output = run_cli(f"scripts/{command[0]}", [tmp_path / "out", *args], expect=1,
                     before="tests.faults:small_files")  # fmt: skip
    assert error_line(output) == f"error: {tmp_path / 'out'}: File too large"
    assert os.listdir(tmp_path) == [texts.name]
    figure("R6", "full disks", 1)


@every_system
def test_r6_a_folder_that_cannot_be_written_is_one_line(
    system: System, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """Before anything is trained."""
    folder = tmp_path / "locked"
    last, args = goes_on(system, training, datasets[system.data], folder)
    before = last.read_bytes()
    folder.chmod(0o500)
    output = run_cli("train", args, expect=2, before="tests.faults:no_privileges")
    folder.chmod(0o700)
    assert error_line(output) == f"error: --save-dir {folder}: Permission denied"
    assert not losses(output) and last.read_bytes() == before and os.listdir(folder) == [last.name]
    figure("R6", "folders without permission", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "it holds no model weights"),
        ({"model": [1]}, "it holds no model weights"),
        ({"optimizer_history": None}, "no optimizer_history"),
        ({"optimizer_history": []}, "no optimizer_history"),
        ({"extra_state": None}, "is not one to resume from"),
        ({"last_optimizer_state": 7}, "is not one to resume from"),
    ],
    ids=str,
)
def test_r5_what_is_no_training_state_is_told(
    changes: dict[str, Any],
    said: str,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
):
    system = next(one for one in MAIN_SYSTEMS if one.user_dir == "adaptive_span")
    state = checkpoints.read_checkpoint(str(training(system).folder / "checkpoint_last.pt"))
    path = tmp_path / "other.pt"
    torch.save({key: value for key, value in {**state, **changes}.items() if value is not None}, path)
    more = ("--restore-file", str(path), "--max-update", "10")
    line = refused("train", train_args(datasets[system.data], tmp_path / "new", system, *more))
    assert str(path) in line and said in line


def test_r17_a_metric_that_is_not_logged_loses_no_update(datasets: dict[str, Path], tmp_path: Path, figure: Record):
    system = next(one for one in MAIN_SYSTEMS if one.user_dir == "adaptive_span")
    args = train_args(datasets[system.data], tmp_path, system, "--best-checkpoint-metric", "rouge9")
    assert "--best-checkpoint-metric rouge9: validation logs no such value" in refused("train", args)
    assert updates_in(tmp_path / "checkpoint_last.pt") > 0
    figure("R17", "mistakes told in one line", 1)


def test_r6_a_save_dir_that_is_a_file_is_one_line(datasets: dict[str, Path], tmp_path: Path):
    (tmp_path / "file").touch()
    with_file = train_args(datasets["pairs"], tmp_path / "file", SYSTEMS[0])
    assert error_line(run_cli("train", with_file, expect=2)) == f"error: --save-dir {tmp_path}/file: Not a directory"
