"""The quality run of language models: its plan, one tiny real run of all stages, and the page made from rows."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from tests.util import ROOT, run_cli

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import dynamic_pooling_lm as script
from experiment_parts import runs
from experiment_parts.dynamic_pooling import check as check_script
from experiment_parts.dynamic_pooling import page, stages
from experiment_parts.dynamic_pooling import plan as plans
from experiment_parts.language_models import plan as language_model_plan
from experiment_parts.language_models import results as language_model_results
from experiment_parts.stages import Record, StageFailed

from tests.scripts.stages_here import stages_here

TINY = ["--layers", "1-1-1", "--dim", "16", "--ffn", "32", "--heads", "2", "--updates", "4", "--batch-size", "8",
        "--tokens-per-sample", "16", "--valid-batches", "2", "--threads", "1", "--name", "tiny"]  # fmt: skip


def arguments(out: Path, data: Path, *flags: str) -> Any:
    return script.get_parser().parse_args(["--out", str(out), "--data", str(data), *TINY, *flags])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stages_here(monkeypatch, stages, runs)


def call(monkeypatch: pytest.MonkeyPatch, out: Path, data: Path, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dynamic_pooling_lm.py", "--out", str(out), "--data", str(data), *TINY, *flags])
    return script.main()


@pytest.mark.full
def test_all_stages(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, stream_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Two models and a second time; rows of another run stay; the report reads the runs."""
    first = ["--models", "vanilla,gumbel"]
    second = [*first, "--equal-time", "--time-updates", "4"]
    folder = tmp_path / "results"
    assert call(monkeypatch, tmp_path / "out", stream_data, *first, "--results", str(folder)) == 0
    assert ran == ["train", "eval-lm", "validate", "train", "eval-lm", "eval-lm", "validate", "eval-lm",
                      "check"]  # fmt: skip
    document = json.loads((folder / "dynamic_pooling.json").read_text())
    rows = {(row["model"], row["setting"], row["metric"]): row for row in document["rows"]}
    assert {key[1] for key in rows if key[0] == "gumbel"} == {"updates"}
    for row in rows.values():
        assert {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"} <= set(row)
    assert rows["gumbel", "updates", "test_characters"]["value"] == 200
    assert 2 < rows["gumbel", "updates", "test_bpc"]["value"] < 5
    assert rows["gumbel", "updates", "sampled_test_bpc"]["value"] > 2
    assert rows["vanilla", "updates", "shortening_factor"]["value"] == 1
    (about,) = document["experiments"].values()
    assert about["data"]["splits"]["test"] == {"documents": 3, "tokens": 200} and about["data"]["types"] == 15
    assert abs(about["checked"][0]["bits"] - about["checked"][0]["reported"]) < 1e-4
    curves = {curve["model"]: curve for curve in document["curves"]}
    assert curves["gumbel"]["updates"] == [1, 2, 3, 4] and len(curves["gumbel"]["valid_bpc"]) == 4
    assert (folder / "dynamic_pooling.png").stat().st_size > 10_000

    ran.clear()
    assert call(monkeypatch, tmp_path / "out", stream_data, *second, "--results", str(folder)) == 0
    # four short ones are timed, then gumbel is trained for as long as vanilla; the rest is done
    assert ran == [*["train"] * 4, "check", "train", "eval-lm", "eval-lm", "validate"]
    assert "@ 0 updates" in (tmp_path / "out" / "gumbel" / "seed1" / "timing0.log").read_text()
    timed = json.loads((tmp_path / "out" / "equal_time.json").read_text())
    assert set(timed["step_seconds"]) == {"vanilla", "gumbel"}
    document = json.loads((folder / "dynamic_pooling.json").read_text())
    kept = {(row["model"], row["setting"]) for row in document["rows"]}
    assert kept == {(model, setting) for model in ("vanilla", "gumbel") for setting in ("updates", "time")}
    text = (folder / "dynamic_pooling.md").read_text()
    assert "### Equal updates" in text and "### Equal time" in text and text.count("Made with") == 1
    assert "were added up a second time" in text

    run = tmp_path / "out" / "gumbel" / "seed1"
    listed = json.loads((run / "stages.json").read_text())
    assert [stage["name"] for stage in listed] == ["train", "eval", "validate"]
    assert listed[0]["command"].startswith("fairseq-train") and str(ROOT) not in listed[0]["command"]
    out = tmp_path / "page.html"
    run_cli(str(ROOT / "scripts" / "report.py"), ["dynamic_pooling", str(run), "--out", str(out), "--names", "gumbel"])
    assert "Test bits are over 200 characters" in out.read_text()
    capsys.readouterr()


def test_flags_of_the_models(stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data, "--updates", "50", "--precision", "bf16"), stream_data)
    flags = {model: plan.run(model, 2, 50).train_flags for model in plans.MODELS}
    for model, given in flags.items():
        pairs = dict(pairwise(given))
        assert pairs["--model-config"] == ("[3, (0,), 0]" if model == "vanilla" else "[1, (1,), 1]")
        assert pairs["--seed"] == "2" and pairs["--warmup-updates"] == "5" and pairs["--max-update"] == "50"
        assert "--cpu" in given and "--cpu-bf16" in given and pairs["--activation-dropout"] == pairs["--dropout"]
    assert flags["fixed3"][flags["fixed3"].index("--fixed-sf") + 1] == "3"
    assert "dynamic_pooling_lm_whitespaces" in flags["whitespaces"]
    timed = plan.run("gumbel", 2, 80, timed=True)
    assert (
        timed.folder.name == "seed2-time" and timed.train_flags[timed.train_flags.index("--warmup-updates") + 1] == "8"
    )
    assert plan.run("vanilla", 2, 50, timed=True).folder == plan.run("vanilla", 2, 50).folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "big"], "--models big: not one of vanilla"),
        (["--seeds", "1,x"], "--seeds 1,x: not a comma list"),
        (["--updates", "0"], "--updates 0: must be at least 1"),
        (["--time-updates", "3"], "--time-updates 3: must be at least 4"),
        (["--layers", "5"], "--layers 5: expected three numbers above 0"),
        (["--layers", "1-0-1"], "--layers 1-0-1: expected three numbers above 0"),
        (["--context-window", "16"], "--context-window 16: must be below --tokens-per-sample"),
        (["--warmup", "1"], "--warmup 1.0: must be at least 0 and below 1"),
        (["--models", "gumbel", "--equal-time"], "--equal-time: needs vanilla"),
        (["--corpus", "sotu"], "give one of --data"),
        (["--publish", "--results", "x"], "give --results or --publish"),
    ],
)
def test_wrong_flags(stream_data: Path, tmp_path: Path, flags: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        script.check(arguments(tmp_path, stream_data, *flags))


def test_data_without_a_dictionary(tmp_path: Path):
    with pytest.raises(UserError, match=r"no dict\.txt in it"):
        script.check(arguments(tmp_path, tmp_path))


def test_the_corpus_is_prepared_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ran: list[list[str]] = []
    monkeypatch.setattr(runs, "run", lambda command, *args, **more: ran.append(command[2:]))
    parse = script.get_parser().parse_args
    for flags in ([], ["--symbols", "bytes"], ["--split", "train=a", "--split", "valid=b", "--lang", "fi"]):
        args = parse(["--out", str(tmp_path), *flags])
        assert language_model_plan.prepare_data(args, plans.prepare_flags(args)) == tmp_path / "data"
    common = ["--unigram-vocab", "5000"]
    text8 = ["--clean", "text8", "--lang", "en", "--newlines", "space"]
    as_it_is = ["--clean", "none", "--lang", "en", "--newlines", "keep"]
    finnish = ["--clean", "text8", "--lang", "fi", "--newlines", "space"]
    assert [one[1:] for one in ran] == [
        ["--symbols", "characters", *text8, *common, "--corpus", "sotu"],
        ["--symbols", "bytes", *as_it_is, *common, "--corpus", "sotu"],
        ["--symbols", "characters", *finnish, *common, "--split", "train=a", "--split", "valid=b"],
    ]


def test_names_of_data(stream_data: Path, tmp_path: Path):
    parse = script.get_parser().parse_args
    cases = ((["--corpus", "sotu"], "sotu"), (["--split", "train=x/fi.txt.xz"], "fi"), (["--name", "Mine"], "Mine"))
    for flags, name in cases:
        found = plans.Plan(parse(["--out", "o", *flags]), stream_data).name
        assert found == (name if name == "Mine" else f"{name}, characters")
    (tmp_path / "prepare.json").write_text('{"options": {"clean": "text8", "symbols": "characters"}}')
    assert plans.Plan(parse(["--out", "o"]), tmp_path).name == "sotu, text8 characters"


def test_the_scored_split_must_be_whole(stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data), stream_data)
    assert plan.subset == "test" and runs.split_size(stream_data / "train") == (8, 640)
    assert stages.corpus_tokens(plan) == 200
    told = {"documents": 3, "characters": 196, "bytes": 200, "tokens": 200}
    vars(plan)["prepared"] = {"splits": {"test": told}, "options": {"symbols": "characters", "eos": True}}
    with pytest.raises(StageFailed, match="test holds 200 tokens of 199 characters"):
        stages.corpus_tokens(plan)
    told["characters"] = 197
    assert stages.corpus_tokens(plan) == 200
    with pytest.raises(UserError, match=r"gone\.idx: No such file"):
        runs.split_size(tmp_path / "gone")


def test_trained_runs_are_not_trained_again_nor_otherwise(stream_data: Path, tmp_path: Path):
    one = plans.Plan(arguments(tmp_path, stream_data), stream_data).run("gumbel", 1, 4)
    one.folder.mkdir(parents=True)
    settings = {"flags": one.train_flags, "data": one.fingerprint}
    Record(settings, [{"seconds": 1.0, "peak_mb": 2.0}], True).save(one.folder / "train.json")
    runs.train(one)
    other = plans.Plan(arguments(tmp_path, stream_data, "--lr", "0.5"), stream_data).run("gumbel", 1, 4)
    with pytest.raises(UserError, match="was trained with other flags"):
        runs.train(other)


def test_equal_time_is_decided_once(stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data, "--updates", "100"), stream_data)
    runs = [plan.run(model, 1, 100) for model in ("vanilla", "whitespaces")]
    for one, wall in zip(runs, (40, 16), strict=True):
        one.folder.mkdir(parents=True)
        values = {"num_updates": "10", "train_wall": str(wall), "loss": "3", "wall": "1"}
        (one.folder / "train.log").write_text(f"x | INFO | train_inner | {json.dumps(values)}\n")
    assert stages.timed_updates(plan, runs) == {"vanilla": 100, "whitespaces": 250}
    (runs[1].folder / "train.log").write_text("")
    assert stages.timed_updates(plan, runs)["whitespaces"] == 250
    again = plans.Plan(arguments(tmp_path, stream_data, "--updates", "7"), stream_data)
    with pytest.raises(UserError, match="is of 100 updates"):
        stages.timed_updates(again, runs)


def test_probabilities_are_read_in_the_order_of_windows(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text(
        "2026 | INFO | fairseq_cli.eval_lm | 1 c [-0.500000]\t▁ [-1.000000]\nINFO:fairseq_cli.eval_lm:0 [ [-2.000000]\n"
        "2026 | INFO | fairseq_cli.eval_lm | num. model params: 35\n"
    )  # fmt: skip
    found = check_script.read(log)
    assert {number: (symbols, list(values)) for number, (symbols, values) in found.items()} == {
        1: (["c", "▁"], [-0.5, -1.0]), 0: (["["], [-2.0])
    }  # fmt: skip


# --- rows and page ----------------------------------------------------------------------------------------------------


def rows(model: str, bits: dict[int, float], factor: float, setting: str = "updates", **more: float) -> list[dict]:
    found = []
    for seed, value in bits.items():
        base = {"experiment": "E", "data": "D", "setting": setting, "model": model, "seed": seed, "params": 3_500_000,
                "updates": 2000, "seconds": 600.0, "peak_mb": 900}  # fmt: skip
        numbers = {
            "test_bpc": value,
            "shortening_factor": factor,
            "seconds_per_update": 0.3,
            "eval_seconds": 30.0,
            **more,
        }
        found += [{**base, "metric": name, "value": number} for name, number in numbers.items()]
    return found


def document() -> dict[str, Any]:
    made = {"command": "python x.py", "date": "2026-01-01", "commit": "abc", "dirty": False, "versions": {"torch": "2"},
            "machine": {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 3.5, "gpu": None}}  # fmt: skip
    settings = {"layers": "1-3-1", "dim": 256, "ffn": 1024, "heads": 4, "position_encoding": "rotary", "dropout": 0.0,
                "attention_dropout": 0.0, "prior": 0.2, "updates": 2000, "batch_size": 16, "tokens_per_sample": 512,
                "lr": 0.001, "warmup": 0.1, "clip_norm": 0.25, "device": "cpu", "precision": "fp32", "threads": 2,
                "context_window": 256}  # fmt: skip
    data = {"name": "D", "scored": "test", "splits": {"train": {"documents": 9, "tokens": 10_000_000}}, "types": 31,
            "newlines": False, "document_ends": True, "symbols": "characters", "clean": "text8", "lang": "en",
            "tokenizer_types": 5000}  # fmt: skip
    checked = {"model": "gumbel", "seed": 1, "bits": 2.12345, "reported": 2.1235, "tokens": 600_000}
    gumbel = {"sampled_shortening_factor": 4.6, "sampled_test_bpc": 2.0, "spaces_precision": 0.5, "spaces_recall": 0.25}
    found = [
        *rows("vanilla", {1: 2.2, 2: 2.1}, 1.0),
        *rows("whitespaces", {1: 2.1, 2: 2.05}, 5.7),
        *rows("fixed4", {1: 2.1, 2: 2.15}, 4.0),
        *rows("gumbel", {1: 2.3, 2: 2.4}, 600_000.0, **gumbel),
    ]
    experiment = {"data": data, "settings": settings, "made": [made], "checked": [checked]}
    return {**made, "experiments": {"E": experiment}, "rows": found, "curves": []}


def test_the_page_of_rows():
    text = page.page(document())
    assert "| vanilla | 2.1500 (2.2000, 2.1000) | 1.00 | 3,500,000 | 2,000 | 0.300 | 10 min | 900 MB | 30 s |" in text
    assert "| gumbel | 2.3500 (2.3000, 2.4000) | none |" in text
    assert "27 symbols and fairseq's 4 special types" in text and "newlines are spaces" in text
    assert "how the original evaluates, 2.0000 bits and 4.60." in text
    found = "fewer bits than vanilla: whitespaces (-0.0750, 2 of 2 seeds), fixed4 (-0.0250, 1 of 2 seeds); not fewer: "
    assert f"{found}gumbel (+0.2000, 2 of 2 seeds). " in text
    assert (
        "in the paper (text8): whitespaces; on the other: fixed4, gumbel. Vanilla's own seeds are 0.1000 apart" in text
    )
    bits = {("vanilla", 1, "test_bpc"): {"value": 2.0}, ("whitespaces", 1, "test_bpc"): {"value": 2.1}}
    assert "(wiki40b Finnish): whitespaces." in page.findings(bits, ["vanilla", "whitespaces"], "wiki40b Finnish")[0]
    assert "16.4 million characters read at equal updates (1.6 times the training split), 0.5 % of the paper's" in text
    assert "2.12345, reported 2.1235" in text and "### Equal time" not in text
    assert "| gumbel | 50.0 % | 25.0 % | - | - |" in text
    assert "`python x.py`; 2026-01-01, C, 2 cores" in text


def test_rows_of_other_runs_stay():
    old, new = document(), document()
    new["experiments"] = {"E": {**old["experiments"]["E"], "checked": []}, "F": old["experiments"]["E"]}
    new["experiments"]["E"]["made"] = [{**old["experiments"]["E"]["made"][0], "command": "python y.py"}]
    new["rows"] = rows("vanilla", {1: 9.0, 3: 8.0}, 1.0)
    merged = language_model_results.merge(old, new)
    bits = {(r["model"], r["seed"]): r["value"] for r in merged["rows"] if r["metric"] == "test_bpc"}
    assert bits["vanilla", 1] == 9.0 and bits["vanilla", 2] == 2.1 and bits["vanilla", 3] == 8.0
    assert bits["whitespaces", 1] == 2.1 and len(bits) == 9
    assert [made["command"] for made in merged["experiments"]["E"]["made"]] == ["python x.py", "python y.py"]
    assert len(merged["experiments"]["E"]["checked"]) == 1 and "F" in merged["experiments"]
    assert language_model_results.merge({}, old) == old
    again = language_model_results.merge(merged, new)
    assert again["rows"] == merged["rows"] and again["experiments"] == merged["experiments"]


def test_the_prose_names_no_result():
    assert set(re.findall(r"\d+\.\d+", page.PROSE)) == set()


def test_the_parent_process_stays_small():
    code = "import sys, dynamic_pooling_lm; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "scripts" / "experiments")
