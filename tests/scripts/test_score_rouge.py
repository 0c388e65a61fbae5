import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "score_rouge.py"
REFERENCES = ["We do it.<q> It works.", "Cats sleep.", "No end"]
HYPOTHESES = ["It works.<q> We do it.", "", "An end"]


def score(*args: object, expect: int = 0) -> str:
    """Output of the script, run in this process (stderr if it is to fail: one line)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(SCRIPT), *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == expect, err.getvalue()
    if expect:
        assert err.getvalue().count("\n") == 1
        return err.getvalue()
    return out.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    hypotheses, references = tmp_path / "hyp.txt", tmp_path / "ref.txt"
    hypotheses.write_text("\n".join(HYPOTHESES) + "\n")
    references.write_text("\n".join(REFERENCES) + "\n")
    return hypotheses, references


def log_lines(kind: str = "D") -> list[str]:
    lines = ["2026 | INFO | x", "Translated 3 sentences (9 tokens) in 1s"]
    for i in (2, 0, 1):
        lines += [f"S-{i}\tsource", f"T-{i}\t{REFERENCES[i]}", f"H-{i}\t-0.5\t{HYPOTHESES[i]}"]
        lines += [f"{kind}-{i}\t-0.5\t{HYPOTHESES[i]}", f"{kind}-{i}\t-0.7\tworse", f"P-{i}\t-1"]
    return lines


def test_files_and_log_agree(files: tuple[Path, Path], tmp_path: Path) -> None:
    line = score(*files)
    assert "empty hypotheses=1, n=3)" in line
    for kind in ("D", "H"):
        log = tmp_path / "log.txt"
        log.write_text("\n".join(log_lines(kind)) + "\n")
        assert score("--generate-log", log) == line
    shell = subprocess.run([sys.executable, str(SCRIPT), *map(str, files)], capture_output=True, text=True, check=True)
    assert shell.stdout == line
    assert "[" not in score(*files, "--bootstrap", 0) and "stemmer=no" in score(*files, "--no-stemmer")


def test_pieces_in_a_log(tmp_path: Path, files: tuple[Path, Path]) -> None:
    log = tmp_path / "log.txt"
    pieces = [" ".join("\u2581" + word for word in text.replace("<q>", " <q>").split(" ")) for text in REFERENCES]
    pieces = [text.replace("\u2581<q>", "<q>") for text in pieces]
    log.write_text("".join(f"T-{i}\t{text}\nH-{i}\t-1\t{text}\n" for i, text in enumerate(pieces)))
    assert "ROUGE-Lsum 100.00" in score("--generate-log", log) and "sentences=<q>," in score("--generate-log", log)


def test_floors_and_json(files: tuple[Path, Path], tmp_path: Path) -> None:
    documents = tmp_path / "doc.txt"
    documents.write_text("We do it. It works. More here.\nDogs bark. Cats sleep.\nNo end\n")
    out = score(*files, "--floors", documents, "--json", tmp_path / "out.json").splitlines()
    assert [line.partition(":")[0] for line in out] == ["model", "lead", "oracle"]
    assert "ROUGE-1 100.00" in out[2] and "words=" in out[1]
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["oracle"]["rougeLsum"]["mean"] == pytest.approx(100) and numbers["model"]["settings"]["stemmer"]


def test_mistakes(files: tuple[Path, Path], tmp_path: Path) -> None:
    hypotheses, references = files
    short, log = tmp_path / "short.txt", tmp_path / "log.txt"
    short.write_text("one\n")
    assert "hyp.txt has 3 lines but" in score(hypotheses, short, expect=2)
    assert "has 1 lines for 3 references" in score(hypotheses, references, "--floors", short, expect=2)
    assert "expected two files" in score(hypotheses, expect=2)
    assert "no.txt: No such file" in score(hypotheses, tmp_path / "no.txt", expect=2)
    short.write_bytes(b"a\n\xff\nb\n")
    assert "short.txt:2: not UTF-8" in score(short, references, expect=2)
    assert "no T- lines" in score("--generate-log", references, expect=2)
    for dropped, why in (("T-1", "1 of 3 T- lines are missing, first T-1"), ("D-0", "1 of 3 D- lines are missing")):
        log.write_text("\n".join(line for line in log_lines() if not line.startswith(dropped)))
        assert why in score("--generate-log", log, expect=2)
    log.write_text("\n".join([*log_lines(), "T-0\tagain"]))
    assert "T-0 is there twice" in score("--generate-log", log, expect=2)
    log.write_text("\n".join(line for line in log_lines() if "-2\t" not in line))
    assert "says 3 sentences were translated, but has 2" in score("--generate-log", log, expect=2)
