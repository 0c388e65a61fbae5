"""The quality run of layouts: its plan, one tiny real run of all stages, and the page made from rows."""

import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fairseq_efficient.errors import UserError
from tests.util import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import par_search_lm as script
from experiment_parts import runs as shared
from experiment_parts.language_models import plan as language_model_plan
from experiment_parts.language_models import results as language_model_results
from experiment_parts.par_search import page, results, stages
from experiment_parts.par_search import plan as plans
from experiment_parts.stages import Ran, Record, StageFailed

from tests.scripts.stages_here import script_here, stages_here

TINY = ["--blocks", "4", "--dim", "16", "--ffn", "32", "--heads", "2", "--updates", "4", "--search-updates", "6",
        "--mem-len", "8", "--batch-size", "4", "--tokens-per-sample", "8", "--valid-batches", "2", "--threads", "1",
        "--eval-tokens", "8", "--eval-mem-len", "16", "--latency-runs", "1", "--cutoffs", "6,10", "--name", "tiny",
        "--original-updates", "20", "--search-flags", "--arch-lr 0.5",
        "--original-flags", "--adaptive-softmax-cutoff 6,10 --tokens-per-sample 8 --batch-size 4"]  # fmt: skip


def arguments(out: Path, data: Path, *flags: str) -> Any:
    args = script.get_parser().parse_args(["--out", str(out), "--data", str(data), *TINY, *flags])
    script.check(args)
    return args


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for module in (results, language_model_results):
        monkeypatch.setattr(module, "draw", lambda code, *words: script_here(str(code), words))
    return stages_here(monkeypatch, stages, shared)


def call(monkeypatch: pytest.MonkeyPatch, out: Path, data: Path, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["par_search_lm.py", "--out", str(out), "--data", str(data), *TINY, *flags])
    return script.main()


@pytest.mark.full
def test_all_stages(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, stream_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Four layouts, then the published code's recipe; rows of the first run stay; nothing is done twice."""
    folder, out = tmp_path / "results", tmp_path / "out"
    flags = ("--seeds", "1", "--results", str(folder))
    assert call(monkeypatch, out, stream_data, *flags, "--time-updates", "4") == 0
    counts = Counter(ran)
    layouts = {model: plan_of(out, stream_data).layout(model, 1) for model in plans.LAYOUTS}
    distinct = len(set(layouts.values()))
    assert ran[:4] == ["search_layout", "train", "eval-lm", "eval-lm"] and ran[-4:] == ["measure_latency"] * 4
    assert counts["train"] == 4 + 2 * distinct and counts["eval-lm"] == 8
    document = json.loads((folder / "par_search.json").read_text())
    rows = {(row["model"], row["metric"]): row for row in document["rows"]}
    for row in rows.values():
        assert {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"} <= set(row)
    assert layouts == {one["model"]: one["layout"] for one in document["layouts"]}
    assert layouts["interleaved"] == "afaf" and layouts["par"] == "ffff"
    assert sorted(layouts["random"]) == sorted(layouts["searched"])
    steps = json.loads((out / "step_seconds.json").read_text())
    for model, layout in layouts.items():
        assert rows[model, "test_tokens"]["value"] == rows[model, "valid_tokens"]["value"] == 199
        assert rows[model, "attention"]["value"] == layout.count("a") and 2 < rows[model, "test_ppl"]["value"] < 200
        assert rows[model, "seconds_per_update"]["value"] == pytest.approx(steps[layout], rel=1e-5)
        for cache in ("hidden", "keys"):
            for batch in (1, 32):
                assert rows[model, f"latency_ms_{cache}_batch{batch}"]["value"] > 0
                assert rows[model, f"predicted_ms_{cache}_batch{batch}"]["value"] > 0
    text = (folder / "par_search.md").read_text()
    assert "| batch 32, keys and values |" in text and f"`{layouts['searched']}`" in text
    assert re.search(r"- par: test perplexity [+-][\d.]+% against interleaved", text)
    for name in ("par_search.png", f"par_search_search_{stream_data.name}.png"):
        assert (folder / name).stat().st_size > 5_000
    with Image.open(folder / f"par_search_search_{stream_data.name}.gif") as moving:
        assert moving.n_frames == 6

    ran.clear()
    more = (*flags, "--models", "interleaved,original", "--latency-runs", "0")
    assert call(monkeypatch, out, stream_data, *more) == 0
    assert ran == ["train", *["eval-lm"] * 4]
    document = json.loads((folder / "par_search.json").read_text())
    assert {row["model"] for row in document["rows"]} == set(plans.MODELS) and len(document["experiments"]) == 1
    (recipe,) = document["recipe"]
    assert [row["epoch"] for row in recipe["table"]] == [1, 3, 5, 10, 17, 20] and recipe["table"][-1]["update"] == 20
    text = (folder / "par_search.md").read_text()
    assert "| 1 | 1 |" in text and "| 20 | 20 |" in text and "At the end, whole splits: valid" in text
    ran.clear()
    assert call(monkeypatch, out, stream_data, *more) == 0
    assert ran == []
    with pytest.raises(UserError, match="was trained with other flags"):
        call(monkeypatch, out, stream_data, *flags, "--models", "par,interleaved", "--lr", "0.5")
    with pytest.raises(UserError, match="was searched with other flags"):
        call(monkeypatch, out, stream_data, *flags, "--search-updates", "7")
    capsys.readouterr()


def plan_of(out: Path, data: Path) -> plans.Plan:
    return plans.Plan(arguments(out, data), data)


def found_layouts(out: Path, **layouts: str) -> None:
    for seed, layout in layouts.items():
        folder = out / "search" / seed.replace("s", "seed")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "layout.json").write_text(json.dumps({"with_identity": layout}))


def test_flags_of_the_models(stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data, "--updates", "50", "--par-ratio", "2"), stream_data)
    with pytest.raises(StageFailed, match="the search has not ended"):
        plan.layout("searched", 1)
    found_layouts(tmp_path, s1="aifa", s2="ffaf")
    layouts = {model: plan.layout(model, 1) for model in plans.LAYOUTS}
    assert layouts["interleaved"] == "afaf" and layouts["par"] == "aaff" and layouts["searched"] == "afa"
    assert sorted(layouts["random"]) == ["a", "a", "f"] and plan.layout("random", 1) == layouts["random"]
    for model in plans.LAYOUTS:
        flags = plan.run(model, 1).train_flags
        pairs = dict(pairwise(flags))
        assert pairs["--layout"] == layouts[model] and pairs["--decoder-blocks"] == str(len(layouts[model]))
        assert pairs["--warmup-updates"] == "5" and pairs["--max-update"] == "50" and pairs["--task"] == "segment_lm"
        assert pairs["--adaptive-softmax-cutoff"] == "6,10" and "--cpu" in flags
    original = plan.run("original", 2).train_flags
    pairs = dict(pairwise(original))
    assert "par_supernet_small" in original and pairs["--supernet-eval"] == "mixture" and pairs["--optimizer"] == "adam"
    assert pairs["--max-update"] == "20" and dict(pairwise(plan.run("original", 2).watch_flags))[
        "--validate-interval-updates"] == "1"  # fmt: skip
    words = plan.search_words
    assert words[-2:] == ["--arch-lr", "0.5"] and "--log-format" not in words and words.count("--max-update") == 1


def test_a_random_layout_is_another_one():
    assert plans.shuffled("aff", 1, {"aff", "faf"}) == "ffa"
    assert plans.shuffled("aaa", 1, {"aaa"}) == "aaa"  # there is no other
    assert len({plans.shuffled("aaffffff", seed, set()) for seed in range(8)}) > 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "big"], "--models big: not one of interleaved"),
        (["--models", "random"], "--models random: needs searched"),
        (["--seeds", "1,x"], "--seeds 1,x: not a comma list"),
        (["--updates", "0"], "--updates 0: must be at least 1"),
        (["--search-updates", "0"], "--search-updates 0: must be at least 1"),
        (["--time-updates", "3"], "--time-updates 3: must be at least 4"),
        (["--latency-runs", "-1"], "--latency-runs -1: must be at least 0"),
        (["--blocks", "1"], "--blocks 1: must be at least 2"),
        (["--eval-mem-len", "-1"], "--eval-mem-len -1: must be at least 0"),
        (["--search-warmup", "1"], "--search-warmup 1.0: must be at least 0 and below 1"),
        (["--corpus", "sotu"], "give one of --data"),
        (["--publish", "--results", "x"], "give --results or --publish"),
    ],
)
def test_wrong_flags(stream_data: Path, tmp_path: Path, flags: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        arguments(tmp_path, stream_data, *flags)


def test_data_without_a_dictionary(tmp_path: Path):
    with pytest.raises(UserError, match=r"no dict\.txt in it"):
        arguments(tmp_path, tmp_path)


def test_the_corpus_is_prepared_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ran: list[list[str]] = []
    monkeypatch.setattr(shared, "run", lambda command, *args, **more: ran.append(command[3:]))
    parse = script.get_parser().parse_args
    for flags in ([], ["--corpus", "pubmed-abstracts", "--keep-case", "--vocab-size", "99"], ["--split", "train=a"]):
        args = parse(["--out", str(tmp_path), *flags])
        assert language_model_plan.prepare_data(args, plans.prepare_flags(args)) == tmp_path / "data"
    lower = ["--symbols", "subwords", "--vocab-size", "12000", "--lower-case"]
    assert ran == [
        [*lower, "--corpus", "sotu"],
        ["--symbols", "subwords", "--vocab-size", "99", "--corpus", "pubmed-abstracts"],
        [*lower, "--split", "train=a"],
    ]


def test_cutoffs_are_found_once(ran: list[str], stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data, "--cutoffs", "optimal", "--clusters", "2"), stream_data)
    for _ in range(2):
        stages.cutoffs(plan)
    assert ran == ["optimal_cutoffs"] and 4 < int(plan.cutoffs) < 15
    assert plans.Plan(arguments(tmp_path, stream_data, "--cutoffs", "none"), stream_data).cutoffs == ""


def test_searches_end_once(monkeypatch: pytest.MonkeyPatch, stream_data: Path, tmp_path: Path):
    """One that failed goes on; seeds do not know of each other, so that they can run side by side."""
    tried: list[str] = []

    def run(command: Any, log: Path, *args: Any, record: Record, record_file: Path, **more: Any) -> None:
        tried.append(command[command.index("--seeds") + 1])
        record.add(Ran(1.0, 1.0, 0))
        record.save(record_file)
        if len(tried) == 1:
            raise StageFailed("out of memory")
        found_layouts(tmp_path, **{f"s{tried[-1]}": "afif"})

    monkeypatch.setattr(stages, "run", run)
    plan = plan_of(tmp_path, stream_data)
    with pytest.raises(StageFailed):
        stages.search(plan, 2)
    for seed in (2, 2, 1):
        stages.search(plan, seed)
    assert tried == ["2", "2", "1"]
    assert len(json.loads((tmp_path / "search" / "seed2" / "search.json").read_text())["runs"]) == 2


# --- rows and page ----------------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    made = {"command": "python x.py", "date": "2026-01-01", "commit": "abc", "dirty": False, "versions": {"torch": "2"},
            "machine": {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 3.5, "gpu": None}}  # fmt: skip
    settings = {"blocks": 12, "dim": 256, "ffn": 1024, "heads": 4, "mem_len": 128, "dropout": 0.1, "par_ratio": 5.0,
                "updates": 3000, "batch_size": 16, "tokens_per_sample": 128, "lr": 0.001, "warmup": 0.1,
                "clip_norm": 0.25, "device": "cpu", "precision": "fp32", "threads": 2, "search_updates": 3000,
                "search_flags": "", "eval_tokens": 64, "eval_mem_len": 640, "cutoffs": "1000,4000"}  # fmt: skip
    data = {"name": "D", "scored": "test", "splits": {"train": {"documents": 9, "tokens": 10_000_000}}, "types": 12_000,
            "lower_case": True}  # fmt: skip
    numbers = {"interleaved": ((80.0, 82.0), 20.0), "par": ((80.2, 82.4), 12.5), "random": ((90.0, 91.0), 16.0)}
    rows, layouts = [], []
    for model, (each, ms) in numbers.items():
        for seed, ppl in enumerate(each, start=1):
            key = {"experiment": "E", "data": "D", "setting": "updates", "model": model, "seed": seed}
            base = {**key, "params": 3_500_000, "updates": 3000, "seconds": 600.0, "peak_mb": 900}
            values = {"test_ppl": ppl, "valid_ppl": ppl + 1, "attention": 2.0, "blocks": 12.0,
                      "seconds_per_update": 0.2, "latency_ms_hidden_batch1": ms,
                      "predicted_ms_hidden_batch1": ms + 0.5}  # fmt: skip
            rows += [{**base, "metric": name, "value": value} for name, value in values.items()]
            layouts.append({**key, "layout": "af" * 6 if model == "interleaved" else "aff" * 4})
    recipe = {"experiment": "E", "setting": "updates", "model": "original", "seed": 1,
              "table": [{"epoch": 3, "update": 8475, "train_ppl": 70.0, "valid_ppl": 60.0, "seconds": 305.0}],
    }  # fmt: skip
    about = {"data": data, "settings": settings, "made": [made], "checked": []}
    return {**made, "experiments": {"E": about}, "rows": rows, "curves": [], "layouts": layouts, "recipe": [recipe]}


def test_the_page_of_rows():
    text = page.page(document())
    assert (
        "| interleaved | 82.00 (81.00, 83.00) | 81.00 (80.00, 82.00) | 2 of 12 | 3,500,000 | 0.200 | 10 min |" in text
    )
    assert (
        "| batch 1, hidden states, projected anew | 20.00 (20.50) | 12.50 (13.00), 1.60x | 16.00 (16.50), 1.25x |"
        in text
    )
    assert "- par: test perplexity +0.4% (+0.2%, +0.5%) against interleaved, within the 1% that was wanted" in text
    assert "1.60 times faster at batch 1 with hidden states (reaching the 1.5 that was wanted)" in text
    assert "- random: test perplexity +11.7%" in text and "not within" in text and "below the 1.5" in text
    assert "Predicted latencies are 3.2% off in the mean and 4.0% at most; 6 of 6 are within the 10%" in text
    assert "The seeds of interleaved are 2.00 apart" in text and text.count("`affaffaffaff`") == 3
    assert "| 3 | 8,475 | 70.00 | 60.00 | 5:05 | 78.56 | 62.33 | 5:37 |" in text
    assert "Made with:" in text and "commit `abc`" in text


def test_a_page_without_latencies():
    found = document()
    found["rows"] = [row for row in found["rows"] if "_ms_" not in row["metric"]]
    text = page.page(found)
    assert "### Latency" not in text and "Predicted latencies" not in text
    assert "- par: test perplexity +0.4% (+0.2%, +0.5%) against interleaved, within the 1% that was wanted.\n" in text


def test_rows_of_other_runs_stay():
    old, new = document(), document()
    new["rows"] = [{**row, "value": 1.0} for row in new["rows"] if row["model"] == "par"]
    new["layouts"], new["recipe"] = new["layouts"][2:4], []
    merged = language_model_results.merge(old, new, results.KINDS)
    assert len(merged["rows"]) == len(old["rows"]) and len(merged["layouts"]) == 6 and len(merged["recipe"]) == 1
    assert {row["value"] for row in merged["rows"] if row["model"] == "par"} == {1.0}
