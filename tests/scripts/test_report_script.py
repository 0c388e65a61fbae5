"""scripts/report.py on a tiny real run, and the shell scripts' manners."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.util import ROOT, SYSTEMS, Command, error_line, run_cli, run_in_process, train_args

REPORT = str(ROOT / "scripts" / "report.py")
SHELL = ("scripts/bootstrap.sh", "scripts/run_tests.sh", "scripts/quickstart.sh", ".ci/run")


@pytest.fixture(scope="module")
def run_dir(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the quickstart leaves it: two updates, decoded, with texts, stages and a training log."""
    run = tmp_path_factory.mktemp("run")
    (run / "data").symlink_to(pair_data)
    (run / "data" / "test.source.txt").write_text("".join(f"A <b> word {i}. And more.\n" for i in range(12)))
    log = [
        "--log-file",
        str(run / "train.log"),
        "--max-update",
        "2",
        "--max-source-positions",
        "24",
        "--task",
        "long_summarization",
    ]
    run_in_process("train", train_args(pair_data, run / "checkpoints", SYSTEMS[0], *log))
    (run / "train.log").write_text('{"loss": "3", "num_updates": "1"}\n{"loss": "2.5", "num_updates": "2"}\n{"lo')
    pairs = "".join(f"T-{i}\tthe cat <q> sat {i}\nH-{i}\t-1\ta\nD-{i}\t-1\tthe <i>cat</i>\n" for i in range(12))
    (run / "generate-test.txt").write_text(pairs)
    (run / "stages.json").write_text(json.dumps([{"name": "train", "seconds": 65, "peak_mb": 300}]))
    return run


def test_the_page_of_a_run(run_dir: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    extra = ["--document", "1", "--documents", "4", "--samples", "2"]
    said = run_cli(REPORT, ["deep_pyramidion", str(run_dir), "--out", str(out), *extra])
    html = out.read_text()
    assert "wrote" in said and "INFO" not in said and "scores.json: left out" in said
    for words in (
        "ROUGE-Lsum",
        "Document 1 of test",
        "65 s",
        "4 documents",
        "lead",
    ):
        assert words in html, words
    counts = [int(re.search(rf"{name} \((\d+)\)", html)[1]) for name in ("everything", "layer 0", "layer 1")]
    assert counts == [counts[0], min(counts[0], 16), min(counts[0], 8)]
    assert "the &lt;i&gt;cat&lt;/i&gt;" in html and "<i>cat</i>" not in html
    assert not re.search(r"https?://", html) and str(ROOT) not in html
    assert 'class="k2" title="token' in html


def test_parts_that_are_missing_are_left_out(run_dir: Path, tmp_path: Path):
    (tmp_path / "stages.json").write_bytes((run_dir / "stages.json").read_bytes())
    said = run_cli(REPORT, ["deep_pyramidion", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert said.count("left out") == 5
    html = (tmp_path / "page.html").read_text()
    assert "Time and memory" in html and "Learning curves" not in html


def test_a_checkpoint_in_the_place_of_its_run(run_dir: Path, tmp_path: Path):
    out, saved = tmp_path / "page.html", run_dir / "checkpoints" / "checkpoint_last.pt"
    run_cli(REPORT, ["pyramidion", str(saved), "--out", str(out), "--documents", "4"])  # a short name
    html = out.read_text()
    assert f"Pyramidion: {run_dir.name}" in html and "Document 0 of test" in html and "65 s" in html
    alone = tmp_path / "alone" / "mine.pt"
    alone.parent.mkdir()
    alone.write_bytes(saved.read_bytes())
    said = run_cli(REPORT, ["deep_pyramidion", str(alone), "--out", str(out), "--documents", "4"])
    assert "Document 0 of test" in out.read_text() and "train.log: left out" in said


def test_mistakes_are_one_line(run_dir: Path, tmp_path: Path):
    (tmp_path / "empty.log").write_text("")
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "page.html")]
    cases = [
        ([str(tmp_path / "none"), *out], "none: no such file or folder"),
        ([str(tmp_path / "empty"), *out], "nothing to report"),
        ([str(run_dir), *out, "--checkpoint", "gone.pt"], "--checkpoint gone.pt"),
        ([str(run_dir), *out, "--train-log", str(tmp_path / "empty.log")], "empty.log: no training numbers"),
        ([str(run_dir), *out, "--generate-log", str(tmp_path / "empty.log")], "empty.log: no T- lines"),
        ([str(run_dir), *out, "--document", "12"], "--document 12: test has 12 documents"),
        ([str(run_dir), *out, "--documents", "0"], "--documents 0"),
        ([str(run_dir), *out, "--checkpoint", str(tmp_path / "empty.log")], "empty.log cannot be read"),
    ]
    commands = [(Command(REPORT, ["pyramidion", *args]), message) for args, message in cases]
    for command, message in commands:
        assert message in error_line(command.wait(expect=2))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("script", SHELL)
def test_shell_scripts_parse(script: str):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def shell(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *args], capture_output=True, text=True, timeout=60, check=False, env=env)


def test_quickstart_tells_its_flags_and_refuses_others():
    script = str(ROOT / "scripts" / "quickstart.sh")
    told = shell(script, "--help")
    assert told.returncode == 0 and all(flag in told.stdout for flag in ("--out", "--corpus", "--minutes", "--updates"))
    for args, message in (
        (["--bad"], "--bad: unknown option"),
        (["--updates", "0"], "--updates 0: not a whole number"),
        (["--minutes", "1.5"], "--minutes 1.5"),
        (["--out"], "--out needs a value"),
        (["--out", "/dev/null/x"], "--out /dev/null/x"),
    ):
        refused = shell(script, *args)
        assert refused.returncode == 2 and not refused.stdout, args
        assert refused.stderr.startswith(f"error: {message}") and refused.stderr.count("\n") == 1


def test_quickstart_shows_the_pretrained_models_first(tmp_path: Path):
    """With a stand-in for python: what is there, what is not, and what fails."""
    text = (ROOT / "scripts" / "quickstart.sh").read_text()
    order = text[text.index("\nsetup\n") :].split()
    assert order[:4] == ["setup", "pretrained", "prepare", "train"]
    stages = re.findall(r'^ +say "(\d)/(\d) ', text, re.MULTILINE)
    assert stages == [(str(number), "7") for number in range(1, 8)]
    function = text[text.index("pretrained() {") : text.index("prepare() {")]
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    program = f'set -euo pipefail\ncd {tmp_path}\nsay() {{ echo "$*"; }}\n{function}\npretrained\necho after'
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for status, there, said in ((0, False, "none here"), (0, True, "Made from scratch"), (2, True, "going on without")):
        python.write_text(f"#!/bin/sh\necho ran $*\nexit {status}\n")
        python.chmod(0o755)
        if there:
            (tmp_path / "pretrained" / "skimming").mkdir(parents=True, exist_ok=True)
            (tmp_path / "pretrained" / "skimming" / "model.safetensors").touch()
        done = shell("-c", program, env=env)
        assert done.returncode == 0 and done.stdout.endswith("after\n"), done.stderr
        assert said in done.stdout + done.stderr and ("ran scripts/try_pretrained.py" in done.stdout) == there


def clone(folder: Path) -> Path:
    """What bootstrap.sh needs of a clone."""
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/bootstrap.sh", "constraints.txt", "setup.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_bootstrap_says_what_is_missing(tmp_path: Path):
    here = clone(tmp_path / "clone")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "sha256sum", "sed", "ls", "rm"):
        found = subprocess.run(["bash", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (tools / name).symlink_to(found.stdout.strip())
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    script = str(here / "scripts" / "bootstrap.sh")
    assert "error: Python 3.11 or 3.12 is needed" in shell(script, env=env).stderr
    wrong = shell(script, env={**env, "PYTHON": "/bin/false"})
    assert wrong.returncode == 2 and "PYTHON=/bin/false is not" in wrong.stderr
    (tools / "python3").symlink_to(sys._base_executable)  # not that of a virtual environment
    without = shell(script, env=env)
    assert without.returncode == 2 and "C++ compiler is needed" in without.stderr
    broken = shell(script, env={**env, "CXX": "false"})
    assert broken.returncode == 2 and "the C++ compiler false does not work" in broken.stderr
    (here / ".venv").mkdir()
    (here / ".venv" / "notes.txt").write_text("mine")
    assert "not a virtual environment" in shell(script, env=env).stderr
    assert (here / ".venv" / "notes.txt").exists()
