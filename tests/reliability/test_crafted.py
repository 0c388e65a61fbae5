"""R7: files that somebody made to run code, to fill the memory or to write elsewhere are refused, at once."""

import contextlib
import gzip
import io
import json
import os
import pickletools
import re
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

import efficient_systems  # noqa: F401  (registers)
from fairseq_efficient import checkpoint_sizes, checkpoints, tensor_files
from fairseq_efficient.bench.memory import resident_mb
from fairseq_efficient.errors import UserError
from tests.reliability.conftest import Training
from tests.reliability.crafts import CRAFTED, HUGE, bytes_that_are_not_there, code, huge_model, text_for_our_own_model
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS
from tests.util import SYSTEMS, System, error_line, run_here

every_system = pytest.mark.parametrize("system", MAIN_SYSTEMS, ids=str)
SECONDS, MEGABYTES = 2, 500


class Cost:
    """Seconds of computing and new memory of a block, which must not be much."""

    def __init__(self, check: bool = True):
        self.check = check

    def __enter__(self) -> "Cost":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak (VmHWM) starts anew
        self._start, self._peak = time.process_time(), resident_mb("VmHWM")
        return self

    def __exit__(self, *error: Any) -> None:
        self.seconds = time.process_time() - self._start
        self.megabytes = resident_mb("VmHWM") - self._peak
        self.too_much = self.seconds >= SECONDS or self.megabytes >= MEGABYTES
        assert not (self.check and self.too_much), (self.seconds, self.megabytes)

    def note(self, figure: Record) -> None:
        figure("R7", "crafted files refused", 1)
        figure("R7", "seconds to refuse one, at most", round(self.seconds, 2), largest=True)
        figure("R7", "more MB to refuse one, at most", round(self.megabytes), largest=True)


def trained_state(training: Callable[[System], Training], system: System) -> dict[str, Any]:
    return checkpoints.read_checkpoint(str(training(system).folder / "checkpoint_last.pt"))


# --- checkpoints by every way in --------------------------------------------------------------------------------------


WAYS: dict[str, tuple[str, str, tuple[str, ...]]] = {  # a way in -> system, command, arguments; % is the checkpoint
    "generate": ("pyramidion_tiny", "generate", ("@", "--path", "%", "--cpu")),
    "eval-lm": ("par_supernet", "eval_lm", ("@", "--task", "par_search", "--path", "%", "--cpu")),
    "validate": (
        "skim_roberta_tiny", "validate",
        ("@", "--task", "sentence_prediction", "--path", "%", "--cpu", "--batch-size", "4"),
    ),
    "interactive": ("sequential_lm", "interactive", ("@", "--task", "segment_lm", "--path", "%", "--cpu")),
    "segment": ("dynamic_pooling_lm_gumbel_fast", "scripts/segment.py", ("%", "--input", os.devnull)),
    "classify": ("skim_roberta_tiny", "scripts/classify.py", ("%", "--input", os.devnull)),
    "squad_predict": ("skim_roberta_tiny", "scripts/squad_predict.py", ("%", "--output", "&")),
    "derive_layout": ("par_supernet", "scripts/derive_layout.py", ("%", "--no-measure")),
    "measure_latency": ("par_supernet", "scripts/measure_latency.py", ("&", "--checkpoint", "%")),
    "to_huggingface": ("skim_roberta_tiny", "scripts/convert/to_huggingface.py", ("%", "&")),
    "export_model": ("pyramidion_tiny", "scripts/export_model.py", ("%", "&")),
    "from_original": (
        "pyramidion_tiny", "scripts/convert/from_original.py", ("pyramidion", "%", "&", "--dict", "@/dict.src.txt"),
    ),
    "check_reference": ("pyramidion_tiny", "scripts/check_reference.py", ("%",)),
}  # fmt: skip
NOT_BUILT = ("to_huggingface", "export_model", "check_reference")  # they do not build what cfg says


def ways() -> list[Any]:
    """Code by every way in; a huge model by those that build it; everything by one way."""
    cases = [(way, code) for way in WAYS]
    cases += [(way, huge_model) for way in WAYS if way not in NOT_BUILT]
    cases += [("interactive", craft) for craft in CRAFTED if craft not in (code, huge_model)]
    cases += [("from_original", craft) for craft in CRAFTED[6:12]]  # the others by the same reader
    return [pytest.param(*case, id=f"{case[0]}-{case[1].__name__}") for case in cases]


@pytest.mark.parametrize("craft", [text_for_our_own_model, huge_model, bytes_that_are_not_there])
def test_r7_crafted_recordings_are_refused(
    craft: Callable[..., None], training: Callable[[System], Training], tmp_path: Path, figure: Record
):
    system = next(one for one in SYSTEMS if one.arch == "pyramidion_tiny")
    path, marker = tmp_path / "crafted.pt", tmp_path / "marker"
    state = trained_state(training, system)
    craft(state, path, marker)
    if craft is not bytes_that_are_not_there:
        words = ["<s>", "<pad>", "</s>", "<unk>"]
        recording = {"kind": "pyramidion", "args": state["cfg"]["model"], "dictionary": words, "model": state["model"]}
        torch.save({**recording, "src_tokens": torch.zeros(1, 2).long()}, path)
    with Cost() as cost:
        status, output = run_here("scripts/check_reference.py", [str(path)])
    assert status == 2 and not marker.exists(), output
    assert "refused" in error_line(output)
    cost.note(figure)


@pytest.mark.parametrize(("way", "craft"), ways())
def test_r7_crafted_checkpoints_are_refused(
    way: str,
    craft: Callable[..., None],
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    arch, command, arguments = WAYS[way]
    system = next(one for one in SYSTEMS if one.arch == arch)
    folder, marker = tmp_path / "in", tmp_path / "marker"
    folder.mkdir()
    path = folder / "crafted.pt"
    craft(trained_state(training, system), path, marker)
    places = {"%": str(path), "&": str(tmp_path / "out")}
    args = [places.get(word, word.replace("@", str(datasets[system.data]))) for word in arguments]
    if not command.endswith(".py"):
        args += ["--user-dir", system.user_dir]
    with Cost() as cost:
        status, output = run_here(command, args)
    assert status == 2 and str(path) in error_line(output), output
    assert os.listdir(tmp_path) == ["in"] and os.listdir(folder) == [path.name]
    cost.note(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["cfg"]["model"].update(activation_fn="???"), "its configuration cannot be used"),
        (lambda state: next(iter(state["model"].values())).fill_(float("nan")), "holds NaN or infinity"),
        (lambda state: state["cfg"]["model"].update(decoder_embed_dim="x"), "its configuration cannot be used"),
    ],
    ids=["missing", "nan", "text"],
)
def test_r7_odd_values_are_one_line(
    change: Any, message: str, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path
):
    system = next(one for one in SYSTEMS if one.arch == "sequential_lm")
    state = trained_state(training, system)
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    args = [str(datasets[system.data]), "--task", "segment_lm", "--path", str(tmp_path / "odd.pt"), "--cpu"]
    status, output = run_here("interactive", [*args, "--user-dir", system.user_dir])
    assert status == 2 and message in error_line(output) and "odd.pt" in error_line(output), output


def test_r7_files_that_embeddings_came_from_are_not_read(
    training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path
):
    """Weights are in the checkpoint; stock would read /dev/zero without end."""
    system = next(one for one in SYSTEMS if one.arch == "pyramidion_tiny")
    state = trained_state(training, system)
    state["cfg"]["model"]["encoder_embed_path"] = "/dev/zero"
    torch.save(state, tmp_path / "moved.pt")
    with Cost():
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(tmp_path / "moved.pt")], {"data": str(datasets[system.data])}
        )
    assert model is not None


def numbers(cfg: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(section, option, value) with each number of the model and the task as 10^12, also inside of texts."""
    found = []
    for section in ("model", "task"):
        for name, value in cfg[section].items():
            if isinstance(value, int) and not isinstance(value, bool) and not name.endswith("seed"):
                found.append((section, name, HUGE))
            elif isinstance(value, str) and re.search(r"\d", value) and name in ("model_config", "layout"):
                found.append((section, name, re.sub(r"\d+", str(HUGE), value)))
    return found


@every_system
def test_r7_no_larger_model_is_built_than_was_saved(
    system: System,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Record,
):
    """Whichever number of its configuration is 10^12: refused, or without effect."""
    state, data = trained_state(training, system), datasets[system.data]
    monkeypatch.chdir(tmp_path)
    refused, slow = 0, []
    for section, name, value in numbers(state["cfg"]):
        changed = {**state["cfg"], section: {**state["cfg"][section], name: value}}
        torch.save({**state, "cfg": changed}, "crafted.pt")
        with Cost(check=False) as cost:
            try:
                checkpoint_utils.load_model_ensemble_and_task(["crafted.pt"], {"data": str(data)})
            except UserError as err:
                assert name.replace("_", "-") in str(err) or "crafted.pt" in str(err), (name, err)
                refused += 1
        if cost.too_much:
            slow.append((name, cost.seconds, cost.megabytes))
        cost.note(figure)
    assert refused >= 3 and not slow


def test_r7_a_model_as_large_as_its_file_is_built(training: Callable[[System], Training], datasets: dict[str, Path]):
    """The bound is not reached by far by any of ours."""
    for system in MAIN_SYSTEMS:
        path = training(system).folder / "checkpoint_last.pt"
        tensors = len(trained_state(training, system)["model"])
        with checkpoint_sizes.Bounded() as mode:
            checkpoint_utils.load_model_ensemble_and_task([str(path), str(path)], {"data": str(datasets[system.data])})
        most = checkpoint_sizes.CALLS * tensors + checkpoint_sizes.MORE_CALLS
        assert mode.counts and mode.calls > most / 2 and mode.bytes > 0.9 * checkpoint_sizes.MORE_BYTES


def test_r7_a_bound_is_for_each_file_and_leaves_reading_alone():
    mib, small = 2**20, {"model": {"weight": torch.empty(10)}}
    with checkpoint_sizes.Bounded():
        torch.zeros(300 * mib // 4)  # reading is not counted
        checkpoint_sizes.expect(small, "a.pt")
        torch.empty(200 * mib // 4)
        with pytest.raises(UserError, match=r"a\.pt refused: .* much larger than the weights in it"):
            torch.empty(200 * mib // 4)
        checkpoint_sizes.expect(small, "b.pt")
        with pytest.raises(UserError, match=r"b\.pt refused"):
            for _ in range(10_000):
                torch.ones(1)
        for make in (
            lambda: torch.arange(HUGE),
            lambda: torch.empty(HUGE, HUGE),
            lambda: torch.ones(1).new_zeros(HUGE),
        ):
            checkpoint_sizes.expect(small, "c.pt")
            with pytest.raises(UserError, match=r"c\.pt refused"):
                make()
        checkpoint_sizes.expect_nothing()
        torch.ones(1)
    with pytest.raises(UserError, match=r"d\.pt refused"):
        checkpoint_sizes.expect({**small, "cfg": {"model": {"encoder_layers": 1001}}}, "d.pt")


@every_system
def test_r8_what_is_saved_is_plain_data(system: System, training: Callable[[System], Training], figure: Record):
    """The pickle of a checkpoint names nothing but tensors, their storages and ordered dicts."""
    path = training(system).folder / "checkpoint_last.pt"
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
        named = {str(text) for op, text, _ in pickletools.genops(archive.read(name)) if op.name == "GLOBAL"}
    assert "torch._utils _rebuild_tensor_v2" in named
    assert not [one for one in named - {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
                if not re.fullmatch(r"torch \w+Storage", one)]  # fmt: skip
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    figure("R8", "checkpoints without anything but data", 1)


# --- safetensors ------------------------------------------------------------------------------------------------------


def tensor_file(header: Any, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


ABOUT = {"version": 1, "cfg": {}, "num_updates": 0, "tied": {}, "sha256": "0" * 64}
TENSOR_FILES = {
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header that never ends": struct.pack("<Q", 90 * 2**20) + b"{",
    "a tensor of 10^12 numbers": tensor_file({"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
    "a tensor before the file": tensor_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"0000"),
    "tensors that overlap": tensor_file(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"0000"
    ),
    "a nested header": tensor_file({"__metadata__": {tensor_files.KEY: "[" * 100_000}}),
    "a header of the wrong kinds": tensor_file({"__metadata__": {tensor_files.KEY: json.dumps({**ABOUT, "cfg": 7})}}),
    "another checksum": tensor_file({"__metadata__": {tensor_files.KEY: json.dumps(ABOUT)}}),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch marker'\ntR.",
}


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_r7_crafted_tensor_files_are_refused(name: str, tmp_path: Path, figure: Record):
    path = tmp_path / "model.safetensors"
    path.write_bytes(TENSOR_FILES[name])
    with Cost() as cost, pytest.raises(UserError, match=str(path)):
        checkpoints.read_checkpoint(str(path))
    assert os.listdir(tmp_path) == [path.name]
    cost.note(figure)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_r7_one_weight_of_many_names(
    ending: str, training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    """A small file, of which a model of as many layers is wanted as it has names."""
    system = next(one for one in MAIN_SYSTEMS if one.user_dir == "adaptive_span")
    state, path = trained_state(training, system), tmp_path / f"model.{ending}"
    weight = next(iter(state["model"].values()))
    state["model"] = {f"decoder.layers.{number}.weight": weight for number in range(40_000)}
    state["cfg"]["model"]["decoder_layers"] = 30_000
    path.write_bytes(tensor_files.tensor_file(state)) if ending == "safetensors" else torch.save(state, path)
    args = [str(datasets[system.data]), "--task", "segment_lm", "--path", str(path), "--cpu"]
    with Cost() as cost:
        status, output = run_here("interactive", [*args, "--user-dir", system.user_dir])
    assert status == 2 and "refused" in error_line(output), output
    cost.note(figure)


# --- data -------------------------------------------------------------------------------------------------------------

BOMB = 2 * 2**30  # bytes unpacked


def bomb(path: Path, start: bytes = b"") -> None:
    """A few MB that unpack to :data:`BOMB`: one line of blanks after ``start``."""
    block = gzip.compress(b" " * 2**24, 1)
    with path.open("wb") as file:
        file.write(gzip.compress(start))
        for _ in range(BOMB // 2**24):
            file.write(block)  # gzip's parts follow one another


def zipped(path: Path, names: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"text\n" * 50)


NESTED, DIGITS = b"[" * 200_000, b"9" * 10**6
SUMMARIES = ("prepare_summarization", "")
LABELS = ("prepare_classification", "--tokenizer ^")
QUESTIONS = ("prepare_classification", "--tokenizer ^ --format squad")
DATA: dict[str, tuple[tuple[str, str], str, Callable[[Path], Any], str]] = {  # script, suffix, what makes it, message
    "jsonl without end": (SUMMARIES, ".jsonl.gz", lambda path: bomb(path, b'{"document": "'), "longer than 64 MB"),
    "table without end": (LABELS, ".tsv.gz", lambda path: bomb(path, b"text\tlabel\n"), "longer than 64 MB"),
    "questions without end": (QUESTIONS, ".json.gz", bomb, "larger than 256 MB unpacked"),
    "nested jsonl": (SUMMARIES, ".jsonl", lambda path: path.write_bytes(NESTED), "nested too deep"),
    "nested questions": (QUESTIONS, ".json", lambda path: path.write_bytes(NESTED), "nested too deep"),
    "a million digits": (SUMMARIES, ".jsonl", lambda path: path.write_bytes(DIGITS), "not JSON"),
    "a zip of two": (("prepare_lm", ""), ".zip", lambda path: zipped(path, ("a", "../escaped")), "holds 2 files"),
}


@pytest.mark.parametrize("name", DATA)
def test_r7_crafted_data_are_refused(name: str, tmp_path: Path, figure: Record):
    (script, more), suffix, make, message = DATA[name]
    folder = tmp_path / "in"
    folder.mkdir()
    path, tokenizer = folder / f"data{suffix}", folder / "vocab.txt"
    make(path)
    tokenizer.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    args = [str(tmp_path / "out"), "--split", f"train={path}", *more.replace("^", str(tokenizer)).split()]
    with Cost() as cost:
        status, output = run_here(f"scripts/{script}.py", args)
    assert status == 2 and str(path) in error_line(output) and message in error_line(output), output
    assert os.listdir(tmp_path) == ["in"]
    cost.note(figure)


def test_r7_archives_of_corpora_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Record):
    """A member that would leave the folder is read like any other, a link is not followed, a wrong sha256 refused."""
    from fairseq_efficient.text import fetch

    path = tmp_path / "corpus.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../../data/a.txt", "data/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("data/c.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = {name: stream.read() for name, stream in fetch.tar_streams(path, "data", ".txt")}
    assert found == {"../../data/a.txt": b"text", "data/b.txt": b"text"}
    assert os.listdir(tmp_path) == [path.name]
    pinned = fetch.Distribution("corpus==1", path.name, "0" * 64)
    with pytest.raises(UserError, match=r"corpus\.tgz: sha256 is .*, expected 000000000000"):
        fetch.fetch(pinned, tmp_path)
    monkeypatch.setattr(fetch, "MAX_MEMBER_BYTES", 3)
    with pytest.raises(UserError, match="more than the 0 MB allowed"):
        list(fetch.tar_streams(path, "data", ".txt"))
    figure("R7", "crafted files refused", 3)
