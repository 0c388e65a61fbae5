"""Scripts around a search: deriving a layout, retraining it, measuring blocks, several seeds, the page."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import par_search  # noqa: F401  (registers)
from fairseq_efficient.errors import UserError
from fairseq_efficient.report import architecture
from fairseq_efficient.report.train_log import parse, read_train_log
from par_search.costs import Shape, read_table
from tests.util import ROOT, error_line, refused, run_cli, run_in_process

DERIVE, MEASURE, SEARCH, REPORT = (
    str(ROOT / "scripts" / f"{name}.py") for name in ("derive_layout", "measure_latency", "search_layout", "report")
)
SEARCHING = (
    "--task", "par_search", "--arch", "par_supernet", "--decoder-blocks", "4", "--decoder-embed-dim", "16",
    "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2", "--mem-len", "12", "--dropout", "0",
    "--criterion", "par_search", "--optimizer", "par_search", "--lr", "0.01", "--arch-lr", "0.1", "--batch-size", "4",
    "--tokens-per-sample", "8", "--max-update", "20", "--arch-warmup-updates", "4", "--arch-update-share", "0.5",
    "--log-interval", "2", "--cpu", "--num-workers", "0",
)  # fmt: skip
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")


@pytest.fixture(scope="module")
def searched(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: checkpoints/ and train.log."""
    run = tmp_path_factory.mktemp("searched")
    args = [
        str(stream_data),
        "--user-dir",
        str(ROOT / "par_search"),
        *SEARCHING,
        "--save-dir",
        str(run / "checkpoints"),
    ]
    run_cli("train", [*args, "--log-format", "json", "--log-file", str(run / "train.log")])
    return run


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "checkpoint_last.pt")


def derive(run: Path, tmp_path: Path, *more: str) -> tuple[str, dict[str, Any]]:
    output = run_cli(DERIVE, [checkpoint(run), "--threads", "1", "--json", str(tmp_path / "d.json"), *more])
    return output, json.loads((tmp_path / "d.json").read_text())


# --- deriving -------------------------------------------------------------------------------------------------------


def test_argmax_and_the_command_that_trains_it(searched: Path, stream_data: Path, tmp_path: Path):
    output, found = derive(searched, tmp_path, "--save-dir", str(tmp_path / "retrained"))
    p = np.array(found["probabilities"])
    assert found["with_identity"] == "".join("afi"[one] for one in p.argmax(1))
    assert found["layout"] == found["with_identity"].replace("i", "") and f"layout: {found['layout']}\n" in output
    assert np.allclose(p.sum(1), 1) and found["measured_ms"] > 0 and found["unit"] == "GFLOP"
    assert f"{p[2, 1]:.4f}" in output and "measured at batch 1" in output and found["predicted_ms"] > 0
    assert "has not decided" not in output
    assert output.splitlines()[-1] == found["command"]
    words = shlex.split(found["command"])
    assert words[0] == "fairseq-train"
    trained = run_in_process("train", [*words[1:], "--max-update", "3"])
    assert "done training" in trained and (tmp_path / "retrained" / "checkpoint_last.pt").exists()
    path = str(tmp_path / "retrained" / "checkpoint_last.pt")
    flags = ("--user-dir", str(ROOT / "par_search"), "--task", "segment_lm", "--path", path, "--cpu")
    said = run_in_process("eval_lm", [str(stream_data), *flags])
    assert "Evaluated 199 tokens" in said


def test_the_best_of_several_on_validation(searched: Path, tmp_path: Path):
    more = ("--how", "best", "--samples", "5", "--no-measure")
    output, found = derive(searched, tmp_path, *more, "--batch-size", "2")
    tried = {one["layout"]: one["bits"] for one in found["tried"]}
    assert 1 < len(tried) <= 5 and found["with_identity"] == min(tried, key=lambda layout: tried[layout])
    assert "measured" not in output and output.count(" bits, ") == len(tried)
    again = derive(searched, tmp_path, *more, "--batch-size", "3")[1]  # lanes do not change what is measured
    other = {one["layout"]: one["bits"] for one in again["tried"]}
    assert other.keys() == tried.keys() and all(abs(other[one] - tried[one]) < 1e-5 for one in tried)


def test_a_budget(searched: Path, tmp_path: Path):
    for share in (0.6, 0.25):
        _, found = derive(searched, tmp_path, "--how", "budget", "--budget", str(share), "--relative", "--no-measure")
        assert found["cost"] <= share * found["interleaved"] * (1 + 1e-9)
    layout = derive(searched, tmp_path, "--how", "budget", "--budget", "1e9", "--no-measure")[1]["layout"]
    assert layout == derive(searched, tmp_path, "--no-measure")[1]["layout"]


def test_measured_costs(searched: Path, tmp_path: Path):
    table = str(tmp_path / "t.json")
    output = run_cli(MEASURE, [table, "--checkpoint", checkpoint(searched), "--threads", "1", "--runs", "3"])
    assert "8 tokens, 12 remembered as hidden" in output and "wrote" in output
    costs = read_table(table, Shape(8, 12, 16, 24, 2, 8))
    assert costs.blocks[0] > costs.blocks[1] > 0 and costs.rest > 0
    document = json.loads(Path(table).read_text())
    assert {"machine", "versions", "commit", "command", "types"} <= set(document)
    _, found = derive(searched, tmp_path, "--latency-table", table, "--no-measure")
    assert found["unit"] == "ms"
    expected = costs.rest + sum(costs.blocks["afi".index(kind)] for kind in found["layout"])
    assert found["cost"] == pytest.approx(expected)
    line = refused(DERIVE, [checkpoint(searched), "--latency-table", table, "--tokens", "9"])
    assert "measured with tokens 8, but this is tokens 9 (say --tokens 8 if that is meant)" in line


def test_blocks_of_an_architecture(tmp_path: Path):
    flags = ["--arch", "par_lm_tiny", "--types", "50", "--tokens", "4", "--memory", "6", "--batch", "2", "--runs", "1"]
    more = ["--copies", "2", "--threads", "1", "--cache-memory", "keys", "--layouts", "afaf,fff"]
    output = run_cli(MEASURE, [str(tmp_path / "t.json"), *flags, *more])
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["shape"] == asdict(Shape(4, 6, 64, 256, 4, 16, "keys", -1, 2))
    assert set(document["nets"]) == {"afaf", "fff"} and output.count(" ms, predicted ") == 2
    (a, f, _), rest = (document["ms"][kind] for kind in "afi"), document["rest_ms"]
    assert document["nets"]["afaf"]["predicted_ms"] == pytest.approx(rest + 2 * a + 2 * f, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["CKPT", "--how", "budget"], "--budget is for --how budget, which needs it"),
        (["CKPT", "--budget", "3"], "--budget is for --how budget"),
        (["CKPT", "--how", "budget", "--budget", "-1"], "--budget -1.0: must not be negative"),
        (["CKPT", "--relative"], "--relative is for --budget"),
        (["CKPT", "--samples", "0"], "--samples 0: must be at least 1"),
        (["CKPT", "--how", "best", "--subset", "dev"], "--subset dev: no such split"),
        (["CKPT", "--how", "budget", "--budget", "0"], "--budget 0: no layout costs less than"),
        (["CKPT", "--latency-table", "gone.json"], "gone.json: No such file"),
        (["CKPT", "--json", "gone/x.json"], "gone/x.json: no such folder"),
        (["CKPT", "--json", str(ROOT)], f"--json {ROOT}: is a folder"),
        pytest.param(["CKPT", "--device", "cuda"], "--device cuda: torch finds no CUDA device here", marks=NO_GPU),
        (["gone.pt"], "gone.pt: no such file"),
    ],
)
def test_mistakes_of_deriving(searched: Path, flags: list[str], message: str):
    flags = [checkpoint(searched) if flag == "CKPT" else flag for flag in flags]
    assert message in refused(DERIVE, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say --checkpoint or --arch"),
        (["--arch", "par_lm_huge"], "--arch par_lm_huge: not one of par_lm_wt103_base"),
        (["--arch", "par_lm_tiny", "--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--arch", "par_lm_small", "--types", "20"], "2500 is beyond the dictionary, which has 20 types"),
        (["--checkpoint", "gone.pt"], "--checkpoint gone.pt: no such file"),
        (["--arch", "par_lm_tiny", "--layouts", "af,"], "--layouts af,: expected layouts of a, f and i"),
        (["--arch", "par_lm_tiny", "--layouts", "afx"], "--layouts afx: expected layouts of a, f and i"),
    ],
)
def test_mistakes_of_measuring(tmp_path: Path, flags: list[str], message: str):
    assert message in refused(MEASURE, [str(tmp_path / "t.json"), *flags])
    assert not (tmp_path / "t.json").exists()


# --- several seeds --------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_several_seeds(stream_data: Path, tmp_path: Path):
    """Each with its own seed, folder and layout; again does nothing (bug 17: no seed flag)."""
    command = [str(tmp_path), "--seeds", "1,2", "--derive=--no-measure", "--", str(stream_data), *SEARCHING]
    output = run_cli(SEARCH, command, timeout=280)
    found = json.loads((tmp_path / "layouts.json").read_text())
    assert set(found) == {"1", "2"} and output.count("train the layout of seed") == 2
    assert found["1"]["probabilities"] != found["2"]["probabilities"] and "  seed 2: update 20/20, loss" in output
    assert all(one["layout"] in output for one in found.values())
    for seed in (1, 2):
        assert read_train_log(tmp_path / f"seed{seed}" / "train.log").updates == 20
        assert (tmp_path / f"seed{seed}" / "layout.txt").read_text().count("train it:") == 1
    (tmp_path / "seed1" / "done").unlink()  # as if it had been killed just then
    again = run_cli(SEARCH, [*command[:2], "1", *command[3:]])
    assert "trained already" not in again and "seed 1: update" not in again
    assert json.loads((tmp_path / "layouts.json").read_text()) == found  # with the seeds that were searched before
    again = run_cli(SEARCH, command)
    assert again.count("trained already") == 2 and json.loads((tmp_path / "layouts.json").read_text()) == found
    line = error_line(run_cli(SEARCH, [*command, "--arch-lr", "0.2"], expect=2))
    assert "seed1: was searched with other arguments" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["RUN", "--seeds", "1,x", "--", "DATA"], "--seeds 1,x: not a comma list of whole numbers"),
        (["RUN", "--seeds", "1,1", "--", "DATA"], "must be different numbers"),
        (["RUN", "--seeds", "1"], "the arguments of fairseq-train are missing"),
        (["RUN", "--", "DATA", "--seed", "3"], "--seed: is set by this script"),
        ([__file__, "--", "DATA"], "seed1: Not a directory"),
        (["RUN", "--", "DATA", *SEARCHING, "--tau-start", "0"], "seed 1: --tau-start 0.0: must be greater than 0"),
    ],
)
def test_mistakes_of_seeds(stream_data: Path, tmp_path: Path, flags: list[str], message: str):
    names = {"RUN": str(tmp_path), "DATA": str(stream_data)}
    assert message in error_line(run_cli(SEARCH, [names.get(flag, flag) for flag in flags], expect=2))


# --- the page -------------------------------------------------------------------------------------------------------


def test_probabilities_of_a_log(searched: Path):
    """Those of each frame sum to 1 (property 17)."""
    found = architecture.read_probabilities(read_train_log(searched / "train.log"))
    assert found is not None and found.updates.tolist() == list(range(2, 21, 2)) and found.values.shape == (10, 4, 3)
    pictures = architecture.frames(found)
    assert pictures.shape == (10, 3, 4)
    np.testing.assert_allclose(pictures.sum(1), 1, rtol=0, atol=1e-12)
    assert architecture.read_probabilities(parse(['{"num_updates": "3", "loss": "2"}'])) is None


def test_frames_are_the_logged_steps(searched: Path, tmp_path: Path):
    """One each, also where nothing changed; the colours are the probabilities (property 17; bug 9)."""
    found = architecture.read_probabilities(read_train_log(searched / "train.log"))
    architecture.write_gif(tmp_path / "a.gif", found)
    architecture.write_png(tmp_path / "a.png", found)
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 10
        assert len({moving.size for frame in range(10) if moving.seek(frame) is None}) == 1
    with Image.open(tmp_path / "a.png") as still:
        assert min(still.size) > 100
    still = architecture.Probabilities(np.arange(1, 4), np.full((3, 2, 3), 1 / 3))
    architecture.write_gif(tmp_path / "b.gif", still)
    with Image.open(tmp_path / "b.gif") as moving:
        assert moving.n_frames == 3


def report(tmp_path: Path, *args: str | Path) -> tuple[str, str]:
    said = run_cli(REPORT, ["par_search", *map(str, args), "--out", str(tmp_path / "p.html")])
    return said, (tmp_path / "p.html").read_text()


def test_the_page_of_a_search(searched: Path, tmp_path: Path):
    more = ("--png", tmp_path / "a.png", "--gif", tmp_path / "a.gif")
    said, html = report(tmp_path, searched, *more)
    assert "eval-test" not in said  # a search is not evaluated: its layout is, trained from scratch
    assert "wrote" in said and (tmp_path / "a.png").exists() and (tmp_path / "a.gif").exists()
    assert html.count("data:image/gif;base64") == 1 and "temperature" in html and "Results" in html
    assert not re.search(r"https?://(?!www.w3.org)", html)
    layout = architecture.read_probabilities(read_train_log(searched / "train.log")).layout
    assert f"{layout}, {layout.count('a')} of 4 blocks are attention" in html


def test_the_page_of_a_checkpoint(searched: Path, tmp_path: Path):
    found = next(searched.rglob("checkpoint_last.pt"))
    alone = tmp_path / "mine.pt"
    alone.write_bytes(found.read_bytes())
    said, html = report(tmp_path, alone, "--png", tmp_path / "a.png")
    layout = architecture.read_probabilities(read_train_log(searched / "train.log")).layout
    assert "train.log: left out" in said and f"{layout}, {layout.count('a')} of 4 blocks are attention" in html
    assert "data:image/gif" not in html and (tmp_path / "a.png").exists()


def test_a_page_of_several_runs(searched: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.log").write_text((searched / "train.log").read_text())
    plain = tmp_path / "plain"
    plain.mkdir()
    lines = ['{"num_updates": "2", "loss": "3.1", "ppl": "8"}', '{"valid_num_updates": "2", "valid_ppl": "9.5"}']
    (plain / "train.log").write_text("\n".join(lines) + "\n")
    (plain / "eval-test.log").write_text("Evaluated 1,234 tokens in 2.0s (617 tokens/s)\nLoss (base 2): 3.0000, P: 8\n")
    _, html = report(tmp_path, searched, other, plain)
    assert "Where several searches agree" in html and html.count("data:image/gif") == 2
    assert "8.00" in html and "9.50" in html and "over 1,234 tokens" in html


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["PLAIN", "--gif", "OUT.gif"], "none of the runs is a search"),
        (["RUN", "--gif", "gone/x.gif"], "--gif gone/x.gif: no such folder"),
        (["RUN", "RUN"], "the runs must be different folders"),
        (["RUN", "--names", "a,b"], "2 names for 1 runs"),
        (["EMPTY"], "nothing to report"),
        (["gone"], "gone: no such file or folder"),
    ],
)
def test_mistakes_of_the_page(searched: Path, tmp_path: Path, args: list[str], message: str):
    for name in ("plain", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "train.log").write_text('{"num_updates": "2", "loss": "3.1"}\n')
    names = {"RUN": searched, "PLAIN": tmp_path / "plain", "EMPTY": tmp_path / "empty", "OUT.gif": tmp_path / "x.gif"}
    command = ["par_search", *(str(names.get(arg, arg)) for arg in args), "--out", str(tmp_path / "p.html")]
    assert message in refused(REPORT, command) and not (tmp_path / "p.html").exists()


def test_a_picture_that_cannot_be_written(tmp_path: Path):
    still = architecture.Probabilities(np.array([1]), np.full((1, 2, 3), 1 / 3))
    with pytest.raises(UserError, match="gone"):
        architecture.write_gif(tmp_path / "gone" / "a.gif", still)
