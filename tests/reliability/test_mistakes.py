"""R16, R17: mistakes on the command line and in data end in one line that names them, and lose no line of anything.

The flags of each system have tables of their own (``tests/SYSTEM/test_cli.py``), as have the readers of texts; here is
what all of them share: fairseq's flags, prepared data, the lines given to a trained model, and our scripts.
"""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import efficient_systems  # noqa: F401  (registers)
from tests.reliability.conftest import Training
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS
from tests.util import ROOT, System, error_line, refused, run_cli, run_here, train_args

BY_SYSTEM = {system.user_dir: system for system in MAIN_SYSTEMS}
every_system = pytest.mark.parametrize("system", MAIN_SYSTEMS, ids=str)


def told(tool: str, args: list[str], message: str, figure: Record, rule: str = "R17") -> None:
    """Exit status 2 and one line, with this in it."""
    assert message in refused(tool, args)
    figure(rule, "mistakes told in one line", 1)


# --- R17: flags -------------------------------------------------------------------------------------------------------

HEADS = {"deep_pyramidion": "encoder", "skimming": "encoder"}
FLAGS: tuple[tuple[tuple[str, ...], str], ...] = (  # checked before anything is read: the same for all systems
    (("--lr", "-1"), "--lr -1.0: must not be negative"),
    (("--clip-norm", "-1"), "--clip-norm -1.0: must not be negative"),
    (("--weight-decay", "-0.1"), "--weight-decay -0.1: must not be negative"),
    (("--batch-size", "0"), "--batch-size 0: must be positive"),
    (("--max-tokens", "-5"), "--max-tokens -5: must be positive"),
    (("--update-freq", "0"), "--update-freq 0: must be positive"),
    (("--num-workers", "-1"), "--num-workers -1: must not be negative"),
    (("--max-epoch", "-5"), "--max-epoch -5: must not be negative"),
    (("--max-update", "-1"), "--max-update -1: must not be negative"),
    (("--max-valid-steps", "-1"), "--max-valid-steps -1: must not be negative"),
    (("--seed", "-1"), "--seed -1: must not be negative"),
    (("--required-seq-len-multiple", "0"), "--required-seq-len-multiple 0: must be positive"),
    (("--finetune-from-model", "gone.pt"), "gone.pt does not exist"),
    (("--log-file", "/dev/null/x"), "--log-file /dev/null/x: "),
    (("--tensorboard-logdir", "/dev/null/x"), "--tensorboard-logdir /dev/null/x: Not a directory"),
    (("--lr-scheduler", "polynomial_decay"), "--lr-scheduler polynomial_decay needs --total-num-update"),
    (("--optimizer", "adam", "--adam-betas", "0.9"), "--adam-betas 0.9: expected two numbers below 1"),
    (("--optimizer", "adam", "--adam-betas", "(0.9, x)"), "--adam-betas (0.9, x): expected two numbers below 1"),
    (("--optimizer", "adam", "--adam-betas", "(0.9, 2)"), "--adam-betas (0.9, 2): expected two numbers below 1"),
    (("--optimizer-overrides", "{x"), "--optimizer-overrides {x: expected a dictionary"),
    (("--validate-interval", "0"), "--validate-interval 0: must be positive"),
    (("--save-interval", "0"), "--save-interval 0: must be positive"),
    (("--ema-decay", "2", "--store-ema"), "--ema-decay 2.0: must be between 0 and 1"),
    (("--distributed-world-size", "0"), "--distributed-world-size 0: must be positive"),
    (("--fp16",), "--fp16 needs a GPU"),
    (("--distributed-world-size", "2"), "2 processes on the CPU would each train alone"),
    (("--criterion", "adaptive_loss"), "Please use `--ddp-backend=legacy_ddp` instead"),
    (("-", "--arch"), "--arch is missing: say which model to train"),
    (("-", "--batch-size"), "Must specify batch size either with --max-tokens or --batch-size"),
)


@pytest.mark.parametrize(("more", "message"), FLAGS, ids=[" ".join(more) for more, _ in FLAGS])
def test_r17_flags_of_fairseq(
    more: tuple[str, ...], message: str, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    system = BY_SYSTEM["adaptive_span"]
    if more[0] == "-":  # a flag that is left out
        args = train_args(datasets[system.data], tmp_path, system)
        place = args.index(more[1])
        return told("train", args[:place] + args[place + 2 :], message, figure)
    told("train", train_args(datasets[system.data], tmp_path, system, *more), message, figure)


@every_system
def test_r17_flags_of_every_system(
    system: System,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    data, save, side = datasets[system.data], tmp_path / "save", HEADS.get(system.user_dir, "decoder")
    heads = f"--{side}-attention-heads"
    file = tmp_path / "file"
    file.touch()
    for more, message in (
        (("--dropout", "1.5"), "--dropout 1.5: must be at least 0 and below 1"),
        ((heads, "3"), f"{heads} 3 must divide"),
        (("--restore-file", str(tmp_path / "best.pt")), f"{tmp_path}/best.pt does not exist"),
        (("--restore-file", str(file)), f"{file} cannot be read: it is empty"),
    ):
        told("train", train_args(data, save, system, *more), message, figure)
    told("train", train_args(tmp_path / "none", save, system), f"data folder {tmp_path}/none does not exist", figure)
    for more, message in ((("--arch", "no_such"), "invalid choice: 'no_such'"), (("--no-such", "1"), "unrecognized")):
        status, output = run_here("train", train_args(data, save, system, *more))
        assert status == 2 and message in output.splitlines()[-1] and "Traceback" not in output
        figure("R17", "mistakes told in one line", 1)


# --- R16: prepared data -----------------------------------------------------------------------------------------------


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def cut(pattern: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = first(folder, pattern)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return change


def put(pattern: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: first(folder, pattern).write_bytes(data) and None


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.rglob(pattern):
            path.unlink()

    return change


def overwrite(pattern: str, place: int, form: str, value: int, after: int = 0) -> Callable[[Path], None]:
    """``after``: bytes for each item of the index, that stand before the place too."""

    def change(folder: Path) -> None:
        path = first(folder, pattern)
        data = bytearray(path.read_bytes())
        count = struct.unpack_from("<Q", data, 18)[0] if after else 0
        struct.pack_into(form, data, place + after * count, value)
        path.write_bytes(data)

    return change


def forget_types(folder: Path) -> None:
    for path in folder.rglob("dict*.txt"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def fewer_sources(folder: Path) -> None:
    """The source (or only) texts of the validation split in the place of those of the training."""
    for end in ("idx", "bin"):
        train, valid = first(folder, f"train*.{end}"), first(folder, f"valid*.{end}")
        train.write_bytes(valid.read_bytes())


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {  # what is done, and what is said (a regular expression)
    "no dictionary": (remove("dict*.txt"), r"/dict(\.src)?\.txt: no such file|/dict(\.src)?\.txt: No such file"),
    "a dictionary in Latin-1": (put("dict*.txt", b"caf\xe9 3\n"), r"/dict(\.src)?\.txt: not UTF-8"),
    "a dictionary without counts": (put("dict*.txt", b"abc\n"), r"/dict(\.src)?\.txt: .*not a symbol and its count"),
    "a symbol twice": (put("dict*.txt", b"a 3\na 3\n"), r"/dict(\.src)?\.txt: .*'a' is there twice"),
    "an index that is cut off": (cut("train*.idx", 0.5), r"train\S*\.idx is cut off"),
    "an empty index": (cut("train*.idx", 0), r"train\S*\.idx is empty"),
    "an index that is none": (put("train*.idx", b"x" * 100), r"train\S*\.idx: not an index"),
    "an index of a later version": (overwrite("train*.idx", 9, "<Q", 2), r"train\S*\.idx is damaged"),
    "an index of unknown numbers": (overwrite("train*.idx", 17, "B", 99), r"train\S*\.idx; prepare"),
    "an index of too many items": (overwrite("train*.idx", 18, "<Q", 10**12), r"train\S*\.idx is cut off"),
    "a negative length": (overwrite("train*.idx", 26, "<i", -5), r"train\S*\.idx is damaged"),
    "a place far away": (overwrite("train*.idx", 26, "<q", 10**9, after=4), r"train\S*\.idx is damaged"),
    "an old index, damaged": (put("train*.idx", b"TNTIDX\0\0" + b"\1" * 99), r"train\S*\.idx is damaged"),
    "a token of another dictionary": (overwrite("train*.bin", 0, "<H", 32767), r"train\S*\.bin holds token 32767"),
    "a dictionary of other data": (forget_types, r"is of other data|is beyond the dictionary|has 3 labels"),
    "tokens that are cut off": (cut("train*.bin", 0.5), r"train\S*\.bin is cut off"),
    "no training split": (remove("train*"), r"train"),
    "no validation split": (remove("valid*"), r"valid"),
}


def damages() -> list[Any]:
    """Each damage to the data of each system; in the short run of two systems, not always the same."""
    found = []
    for place, name in enumerate(DAMAGED):
        for number, system in enumerate(MAIN_SYSTEMS):
            short = (number - place) % len(MAIN_SYSTEMS) < 2
            found.append(pytest.param(name, system, id=f"{name}-{system}", marks=() if short else pytest.mark.full))
    return found


@pytest.mark.parametrize(("name", "system"), damages())
def test_r16_damaged_data_are_named(
    name: str, system: System, datasets: dict[str, Path], tmp_path: Path, figure: Record
):
    damage, message = DAMAGED[name]
    data = tmp_path / "data"
    shutil.copytree(datasets[system.data], data)
    for boundaries in data.glob("*.boundaries.*"):  # of the streams: no training needs them
        boundaries.unlink()
    damage(data)
    status, output = run_here("train", train_args(data, tmp_path / "save", system, "--max-update", "2", "--no-save"))
    assert status == 2, output
    assert re.search(message, error_line(output))
    figure("R16", "damaged data told in one line", 1)


@pytest.mark.parametrize("name", ["deep_pyramidion", "skimming"])
def test_r16_texts_that_are_not_as_many(name: str, datasets: dict[str, Path], tmp_path: Path, figure: Record):
    system, data = BY_SYSTEM[name], tmp_path / "data"
    shutil.copytree(datasets[system.data], data)
    fewer_sources(data)
    told("train", train_args(data, tmp_path / "save", system, "--no-save"), "not as many", figure, "R16")


# --- R16: lines given to a trained model ------------------------------------------------------------------------------

ODD = [
    b"a b c",
    b"",
    b"   ",
    b"x y z unknown",
    b"a " * 300,
    b"a b\r",
    b"\xf0\x9f\x98\x80 a",
    b"a\tb",
    b"last, without end",
]
GENERATE = ("--cpu", "--beam", "2", "--max-len-b", "9", "--buffer-size", "4", "--batch-size", "3")
LINES: dict[str, tuple[str, ...]] = {
    "deep_pyramidion": ("--task", "translation", "--source-lang", "src", "--target-lang", "tgt"),
    "dynamic_pooling": ("--task", "dynamic_pooling_lm", "--bpe", "dp_characters"),
    "par_search": ("--task", "par_search", "--bpe", "dp_characters"),
    "adaptive_span": ("--task", "segment_lm", "--bpe", "dp_characters"),
}


def generated(output: str) -> list[int]:
    """The numbers of the lines that got an answer, in order."""
    return [int(number) for number in re.findall(r"^H-(\d+)\t", output, re.MULTILINE)]


def interactive(training: Training, data: Path, file: Path) -> list[str]:
    system = training.system
    where = ["--user-dir", str(ROOT / system.user_dir), "--path", str(training.folder / "checkpoint_last.pt")]
    return [str(data), *where, "--input", str(file), *LINES[system.user_dir], *GENERATE]


@pytest.mark.parametrize("user_dir", LINES)
def test_r16_every_line_gets_an_answer(
    user_dir: str,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    """Empty, blank, unknown, very long, with CR, without end; a mark at the file's start is no letter."""
    system, plain, marked = BY_SYSTEM[user_dir], tmp_path / "plain", tmp_path / "marked"
    plain.write_bytes(b"\n".join(ODD))
    marked.write_bytes(b"\xef\xbb\xbf" + b"\n".join(ODD))
    outputs = []
    for file in (plain, marked):
        status, output = run_here("interactive", interactive(training(system), datasets[system.data], file))
        assert status == 0 and "Traceback" not in output, output
        assert generated(output) == list(range(len(ODD)))
        outputs.append(re.findall(r"^[HD]-.*", output, re.MULTILINE))
    assert outputs[0] == outputs[1]
    figure("R16", "odd lines answered", 2 * len(ODD))


@pytest.mark.parametrize("user_dir", LINES)
def test_r16_lines_that_are_no_text_are_named(
    user_dir: str,
    training: Callable[[System], Training],
    datasets: dict[str, Path],
    tmp_path: Path,
    figure: Record,
):
    system, file = BY_SYSTEM[user_dir], tmp_path / "in.txt"
    args = interactive(training(system), datasets[system.data], file)
    for content, message in (
        (b"a b\na \xff b\n", f"{file}:2: not UTF-8 (byte 0xff at column 3)"),
        (b"a b\n\na\0b\n", f"{file}:3: contains a NUL character"),
    ):
        file.write_bytes(content)
        told("interactive", args, message, figure, "R16")
    file.unlink()
    told("interactive", args, f"{file}: No such file", figure, "R16")


def test_r16_what_is_typed_is_read_like_a_file(
    training: Callable[[System], Training], datasets: dict[str, Path], tmp_path: Path
):
    one = training(BY_SYSTEM["adaptive_span"])
    args = interactive(one, datasets[one.system.data], Path("-"))
    assert generated(run_cli("interactive", args, typed="a b\n\na\r\nb")) == [0, 1, 2, 3]
    line = error_line(run_cli("interactive", args, typed="a\na\0b\n", expect=2))
    assert "standard input, line 2: contains a NUL character" in line


def test_r16_sources_without_summaries_are_told(tmp_path: Path, figure: Record):
    """One file has more lines than the other."""
    for name, lines in (("src", 5), ("tgt", 3)):
        (tmp_path / name).write_text("a b c.\n" * lines)
    flags = [str(tmp_path / "data"), "--source", f"train={tmp_path}/src", "--target", f"train={tmp_path}/tgt"]
    message = f"{tmp_path}/src has 5 lines but {tmp_path}/tgt has 3"
    told("scripts/prepare_summarization.py", flags, message, figure, "R16")


# --- R17: scripts -----------------------------------------------------------------------------------------------------

FOLDERS = [ROOT / "scripts" / name for name in ("", "convert", "bench", "experiments")]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in folder.glob("*.py")
    if "run_main(" in path.read_text(encoding="utf-8")
)
MISSING: dict[str, tuple[str, ...]] = {  # a command whose input (%) does not exist; & is a place for its output
    "scripts/check_reference.py": ("%",),
    "scripts/classify.py": ("%",),
    "scripts/derive_layout.py": ("%",),
    "scripts/export_model.py": ("%", "&"),
    "scripts/floors.py": ("%",),
    "scripts/measure_latency.py": ("&", "--checkpoint", "%"),
    "scripts/optimal_cutoffs.py": ("%",),
    "scripts/prepare_classification.py": ("&", "--split", "train=%", "--tokenizer", "%"),
    "scripts/prepare_lm.py": ("&", "--split", "train=%"),
    "scripts/prepare_summarization.py": ("&", "--split", "train=%"),
    "scripts/score_rouge.py": ("%", "%"),
    "scripts/screenshot.py": ("%", "&"),
    "scripts/segment.py": ("%",),
    "scripts/squad_predict.py": ("%", "--output", "&"),
    "scripts/convert/from_huggingface.py": ("%", "&"),
    "scripts/convert/from_original.py": ("adaptive_span", "%", "&", "--dict", "%"),
    "scripts/convert/to_huggingface.py": ("%", "&"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_r17_scripts_say_what_they_take(script: str, figure: Record):
    """``--help`` is text and no error; a flag that is not known is."""
    status, output = run_here(script, ["--help"])
    assert status == 0 and output.startswith("usage: ") and len(output.splitlines()) > 3
    status, output = run_here(script, ["--no-such-flag"])
    assert status == 2 and "Traceback" not in output and ": error: " in output.splitlines()[-1]
    figure("R17", "mistakes told in one line", 1)


@pytest.mark.parametrize("script", MISSING)
def test_r17_a_missing_file_is_named(script: str, tmp_path: Path, figure: Record):
    missing = tmp_path / "missing.pt"
    places = {"%": str(missing), "&": str(tmp_path / "out")}
    args = [word.replace("%", places["%"]).replace("&", places["&"]) for word in MISSING[script]]
    told(script, args, str(missing), figure)
    assert not list(tmp_path.iterdir())


def test_every_script_that_reads_a_file_is_listed():
    """A script that is new belongs into :data:`MISSING`, or among those that make their own input."""
    alone = {"draw", "run_all", "make_golden", "soak", "search_layout", "report", "try_pretrained", "update_readme",
             "render_api"}  # fmt: skip
    benches = {script for script in SCRIPTS if script.startswith(("scripts/bench/", "scripts/experiments/"))}
    left = {script for script in SCRIPTS if script not in MISSING and Path(script).stem not in alone} - benches
    assert not left


def test_r16_the_answers_of_scripts_are_as_many_as_the_lines(
    training: Callable[[System], Training], tmp_path: Path, figure: Record
):
    """Of the text that a trained model cuts; labels of texts are counted in tests/skimming."""
    file = tmp_path / "in.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(ODD))
    checkpoint = training(BY_SYSTEM["dynamic_pooling"]).folder / "checkpoint_last.pt"
    args: list[Any] = [str(checkpoint), "--cpu", "--input", str(file), "--format", "json"]
    status, output = run_here("scripts/segment.py", args)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert status == 0 and len(found) == len(ODD), output
    figure("R16", "odd lines answered", len(ODD))
