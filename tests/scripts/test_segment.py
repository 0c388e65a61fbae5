"""scripts/segment.py: text in, the same text with segments out."""

import json
from pathlib import Path

import pytest

from tests.util import HOURGLASS, System, error_line, run_cli, run_in_process, train_args

TEXT = "abc de  f\n\n ij\u00e4 \nabcdefghij"


@pytest.fixture(scope="module")
def checkpoint(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    system = System("dynamic_pooling", "dynamic_pooling_lm_whitespaces", HOURGLASS, "stream")
    run_in_process("train", train_args(stream_data, folder, system, "--max-update", "2"))
    return folder / "checkpoint_last.pt"


def test_segments_of_each_line(checkpoint: Path, tmp_path: Path):
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    given = [str(checkpoint), "--cpu", "--input", str(tmp_path / "text")]
    lines = run_cli("scripts/segment.py", given).splitlines()
    assert lines[:4] == ["abc |de | |f", "", " |ij\u00e4 ", "abcdefghij"]
    assert lines[4] == "7 segments, 3.43 characters each, 1 symbols unknown to the model"
    found = [json.loads(line) for line in run_cli("scripts/segment.py", [*given, "--format", "json"]).splitlines()[:4]]
    assert [one["text"] for one in found] == TEXT.split("\n")
    assert all("".join(one["segments"]) == one["text"] for one in found)
    coloured = run_cli("scripts/segment.py", [*given, "--format", "color", "--tokens-per-sample", "3"])
    assert "\033[44mabc \033[0m\033[46mde \033[0m" in coloured


def test_standard_input_and_cleaning(checkpoint: Path):
    output = run_cli("scripts/segment.py", [str(checkpoint), "--cpu", "--clean", "en"], typed="ABC, de\n")
    assert output.splitlines()[0] == "abc |de"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--clean", "xx"), "xx"),
        (("--tokens-per-sample", "0"), "--tokens-per-sample 0: must be at least 1"),
        (("--input", "no/file"), "no/file: No such file"),
        (("--data", "no/folder"), "no/folder"),
    ],
)
def test_mistakes_are_one_line(checkpoint: Path, more: tuple[str, ...], message: str):
    assert message in error_line(
        run_cli("scripts/segment.py", [str(checkpoint), "--cpu", *more], expect=2, typed="a\n")
    )


def test_text_that_is_not_utf8_and_a_missing_checkpoint(checkpoint: Path, tmp_path: Path):
    (tmp_path / "text").write_bytes(b"abc\nde\xff\n")
    given = ["--cpu", "--input", str(tmp_path / "text")]
    output = run_cli("scripts/segment.py", [str(checkpoint), *given], expect=2)
    assert f"{tmp_path / 'text'}:2: not UTF-8 (byte 0xff at column 3)" in error_line(output)
    missing = run_cli("scripts/segment.py", [str(tmp_path / "none.pt"), *given], expect=2)
    assert "none.pt: no such file" in error_line(missing)
