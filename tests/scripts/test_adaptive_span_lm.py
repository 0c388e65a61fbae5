"""The quality run of attention spans: its plan, one tiny real run of all stages, and the page made from rows."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.options import get_training_parser, parse_args_and_arch

from adaptive_span.model import SequentialLanguageModel
from fairseq_efficient.errors import UserError
from tests.stream_models import task
from tests.util import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import adaptive_span_lm as script
from experiment_parts import runs as shared
from experiment_parts.adaptive_span import check as check_script
from experiment_parts.adaptive_span import page, stages
from experiment_parts.adaptive_span import plan as plans
from experiment_parts.language_models import plan as language_model_plan
from experiment_parts.language_models import results as language_model_results
from experiment_parts.stages import Record, StageFailed

from tests.scripts.stages_here import script_here, stages_here

TINY = ["--layers", "2", "--dim", "16", "--ffn", "24", "--heads", "2", "--spans", "4,20", "--penalties", "1e-5,1e-3",
        "--ramp", "4", "--updates", "4", "--batch-size", "4", "--tokens-per-sample", "8", "--valid-batches", "2",
        "--threads", "1", "--time-updates", "2", "--name", "tiny"]  # fmt: skip


def arguments(out: Path, data: Path, *flags: str) -> Any:
    args = script.get_parser().parse_args(["--out", str(out), "--data", str(data), *TINY, *flags])
    script.check(args)
    return args


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(language_model_results, "draw", lambda code, *files: script_here(str(code), files))
    return stages_here(monkeypatch, stages, shared)


def call(monkeypatch: pytest.MonkeyPatch, out: Path, data: Path, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["adaptive_span_lm.py", "--out", str(out), "--data", str(data), *TINY, *flags])
    return script.main()


@pytest.mark.full
def test_all_stages(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, stream_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Three models, then one more; rows of the first run stay; nothing is done twice; the report reads the runs."""
    folder, out = tmp_path / "results", tmp_path / "out"
    first = ("--models", "fixed20,adaptive-0.001,all-attention", "--results", str(folder))
    assert call(monkeypatch, out, stream_data, *first) == 0
    assert ran == [*["train", "eval-lm"] * 3, *["train"] * 6, "validate", "check"]
    document = json.loads((folder / "adaptive_span.json").read_text())
    rows = {(row["model"], row["metric"]): row for row in document["rows"]}
    for row in rows.values():
        assert {"data", "model", "params", "updates", "metric", "value", "seconds", "peak_mb", "seed"} <= set(row)
    for model, (low, high) in {"fixed20": (20, 20), "adaptive-0.001": (4, 19), "all-attention": (4, 19)}.items():
        assert rows[model, "test_tokens"]["value"] == 199 and 2 < rows[model, "test_bpc"]["value"] < 6
        assert low <= rows[model, "mean_span"]["value"] <= rows[model, "max_span"]["value"] <= high
        assert rows[model, "seconds_per_update"]["value"] > 0
    found = {one["model"]: one for one in document["spans"]}
    assert set(found) == {"adaptive-0.001", "all-attention"} and found["adaptive-0.001"]["penalty"] == 1e-3
    assert [len(layer) for layer in found["adaptive-0.001"]["by_layer_and_head"]] == [2, 2]
    (about,) = document["experiments"].values()
    (checked,) = about["checked"]
    assert checked["tokens"] == 199 and checked["model"] == "adaptive-0.001"
    assert abs(checked["bits"] - checked["reported"]) < 1e-4 and abs(checked["bits"] - checked["validated"]) < 1e-4
    curves = {curve["model"]: curve for curve in document["curves"]}
    assert curves["fixed20"]["updates"] == [1, 2, 3, 4] and curves["fixed20"]["mean_span"] == []
    assert curves["adaptive-0.001"]["span_updates"] == [1, 2, 3, 4]
    text = (folder / "adaptive_span.md").read_text()
    assert "| adaptive-0.001, seed 1 |" in text and "- The best fixed span is 20:" in text
    assert (folder / "adaptive_span.png").stat().st_size > 10_000

    ran.clear()
    second = ("--models", "fixed4,fixed20,adaptive-0.001", "--results", str(folder))
    assert call(monkeypatch, out, stream_data, *second) == 0
    assert ran == ["train", "eval-lm", "train", "train"]
    document = json.loads((folder / "adaptive_span.json").read_text())
    assert {row["model"] for row in document["rows"]} == {"fixed4", "fixed20", "adaptive-0.001", "all-attention"}
    assert len(document["experiments"]) == 1
    ran.clear()
    assert call(monkeypatch, out, stream_data, *second) == 0 and ran == []
    with pytest.raises(UserError, match="was trained with other flags"):
        call(monkeypatch, out, stream_data, *second, "--lr", "0.5")

    page_file = tmp_path / "page.html"
    runs = [str(out / model / "seed1") for model in ("fixed20", "adaptive-0.001")]
    script_here(
        str(ROOT / "scripts" / "report.py"),
        ["adaptive_span", *runs, "--out", str(page_file), "--names", "fixed,adaptive"],
    )
    assert "Spans of adaptive" in page_file.read_text()
    capsys.readouterr()


@pytest.mark.full
def test_a_killed_run_goes_on(stream_data: Path, tmp_path: Path):
    """kill -9 in a training: started again, it goes on from the last checkpoint and ends like one without a break."""
    command = [sys.executable, str(ROOT / "scripts" / "experiments" / "adaptive_span_lm.py"), "--data"]
    command += [str(stream_data), *TINY, "--models", "adaptive-0.001", "--time-updates", "0", "--check", "none"]
    command += ["--updates", "12", "--valid-interval", "2", "--out"]
    log = tmp_path / "cut" / "adaptive-0.001" / "seed1" / "train.log"
    with subprocess.Popen([*command, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        for line in started.stdout:
            if "update 7/12" in line:
                break
        started.kill()
    assert "done training" not in log.read_text()
    for name in ("cut", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    assert "Loaded checkpoint" in log.read_text()
    found = [
        {(row["model"], row["metric"]): row["value"] for row in json.loads(path.read_text())["rows"]}
        for path in (tmp_path / name / "results" / "adaptive_span.json" for name in ("cut", "whole"))
    ]
    for metric in ("test_bpc", "valid_bpc", "mean_span", "max_span"):
        assert found[0]["adaptive-0.001", metric] == found[1]["adaptive-0.001", metric]


# --- plans ------------------------------------------------------------------------------------------------------------


def test_models_of_the_flags(stream_data: Path, tmp_path: Path):
    plan = plans.Plan(arguments(tmp_path, stream_data, "--updates", "50", "--precision", "bf16"), stream_data)
    assert list(plan.kinds) == ["fixed4", "fixed20", "adaptive-1e-05", "adaptive-0.001", "all-attention"]
    flags = {model: plan.run(model, 2).train_flags for model in plan.kinds}
    for model, given in flags.items():
        pairs = dict(pairwise(given))
        assert pairs["--attn-span"] == ("4" if model == "fixed4" else "20") and pairs["--seed"] == "2"
        assert pairs["--warmup-updates"] == "5" and pairs["--max-update"] == "50" and pairs["--lr"] == "0.002"
        assert ("--adapt-span" in given) == (not model.startswith("fixed"))
        assert "--cpu" in given and "--cpu-bf16" in given and pairs["--clip-norm"] == "0.25"
    assert dict(pairwise(flags["adaptive-1e-05"]))["--adapt-span-loss"] == "1e-05"
    assert dict(pairwise(flags["all-attention"]))["--adapt-span-loss"] == "0.001"
    assert dict(pairwise(plan.run("fixed4", 2).watch_flags))["--batch-size-valid"] == "1"
    adagrad = plans.Plan(arguments(tmp_path, stream_data, "--optimizer", "adagrad"), stream_data)
    pairs = dict(pairwise(adagrad.run("fixed4", 1).train_flags))
    assert (pairs["--optimizer"], pairs["--adagrad-clip"], pairs["--lr"]) == ("adagrad_with_grad_clip", "0.03", "0.07")
    assert pairs["--lr-scheduler"] == "fixed" and "--clip-norm" not in pairs


@pytest.mark.parametrize("more", [(), ("--dim", "192", "--ffn", "768", "--heads", "6", "--layers", "6", "--spans",
                                        "256,1024,2048")], ids=["tiny", "larger"])  # fmt: skip
def test_models_have_as_many_parameters(stream_data: Path, tmp_path: Path, more: tuple[str, ...]):
    """But for half a column of each layer, and the spans themselves."""
    plan = plans.Plan(arguments(tmp_path, stream_data, *more), stream_data)
    counts = {}
    for model in plan.kinds:
        one = plan.run(model, 1)
        words = ["data", "--user-dir", str(ROOT / "adaptive_span"), *one.train_flags]
        cfg = parse_args_and_arch(get_training_parser(), words)
        with torch.device("meta"):
            found = SequentialLanguageModel.build_model(cfg, task(256))
        counts[model] = sum(parameter.numel() for parameter in found.parameters())
    args = plan.args
    rounding = args.layers * (2 * args.dim + 1) / 2 + args.layers * args.heads
    assert max(counts.values()) - min(counts.values()) <= 2 * rounding
    assert (max(counts.values()) - min(counts.values())) / counts[f"fixed{plan.longest}"] < (0.05 if not more else 2e-3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "fixed5"], "--models fixed5: not one of fixed4, fixed20"),
        (["--seeds", "1,x"], "--seeds 1,x: not a comma list"),
        (["--spans", "4,x"], "--spans 4,x: not a comma list of whole numbers from 1 up"),
        (["--spans", "0"], "--spans 0: not a comma list of whole numbers from 1 up"),
        (["--penalties", "-1"], "--penalties -1: not a comma list of numbers from 0 up"),
        (["--penalties", "nan"], "--penalties nan: not a comma list of numbers from 0 up"),
        (["--check", "fixed5"], "--check fixed5: not one of --models"),
        (["--updates", "0"], "--updates 0: must be at least 1"),
        (["--time-updates", "-1"], "--time-updates -1: must be at least 0"),
        (["--init", "1.5"], "--init 1.5: is a share of the longest span"),
        (["--heads", "3"], "--heads 3: must divide --dim 16"),
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--clip", "-1"], "--clip -1.0: must be at least 0"),
        (["--warmup", "1"], "--warmup 1.0: must be at least 0 and below 1"),
        (["--dropout", "1"], "--dropout 1.0: must be at least 0 and below 1"),
        (["--corpus", "sotu"], "give one of --data, --corpus, --split and --cut"),
        (["--publish", "--results", "x"], "give --results or --publish"),
    ],
)
def test_wrong_flags(stream_data: Path, tmp_path: Path, flags: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        arguments(tmp_path, stream_data, *flags)


def test_data_without_a_dictionary(tmp_path: Path):
    with pytest.raises(UserError, match=r"no dict\.txt in it"):
        arguments(tmp_path, tmp_path)


def test_the_corpus_is_prepared_as_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ran: list[list[str]] = []
    monkeypatch.setattr(shared, "run", lambda command, *args, **more: ran.append(command[2:]))
    parse = script.get_parser().parse_args
    cases = ([], ["--cut", "enwik8"], ["--split", "train=a", "--split", "valid=b", "--format", "text"])
    for flags in cases:
        args = parse(["--out", str(tmp_path), *flags])
        assert language_model_plan.prepare_data(args, plans.prepare_flags(args)) == tmp_path / "data"
    assert [one[1:] for one in ran] == [
        ["--symbols", "bytes", "--corpus", "sotu"],
        ["--symbols", "bytes", "--cut", "enwik8"],
        ["--symbols", "bytes", "--split", "train=a", "--split", "valid=b", "--format", "text"],
    ]


def test_names_of_data(stream_data: Path):
    parse = script.get_parser().parse_args
    for flags, name in (([], "sotu"), (["--cut", "x/enwik8.zip"], "enwik8"), (["--split", "train=x/fi.txt.xz"], "fi")):
        assert plans.Plan(parse(["--out", "o", *flags]), stream_data).name == f"{name}, bytes"
    assert plans.Plan(parse(["--out", "o", "--name", "Mine"]), stream_data).name == "Mine"


# --- stages -----------------------------------------------------------------------------------------------------------


def trained(plan: Any, model: str, text: str) -> Any:
    """A run that says what an evaluation says."""
    one = plan.run(model, 1)
    one.checkpoint.parent.mkdir(parents=True)
    one.checkpoint.write_text("")
    (one.folder / "eval-test.log").write_text(text)
    for name in ("eval", "validate"):
        Record({}, [{"seconds": 1.0, "peak_mb": 2.0}], True).save(one.folder / f"{name}.json")
    return one


EVALUATED = "Evaluated {} tokens in 2.0s (9 tokens/s)\nLoss (base 2): 3.1234, Perplexity: 8.71\n"


def test_the_scored_split_must_be_whole(stream_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "score", lambda *args, **more: None)
    plan = plans.Plan(arguments(tmp_path, stream_data), stream_data)
    stages.evaluate(trained(plan, "fixed4", EVALUATED.format(199)))
    with pytest.raises(StageFailed, match="198 tokens were scored, but test has 199"):
        stages.evaluate(trained(plan, "fixed20", EVALUATED.format(198)))


@pytest.mark.parametrize(
    ("bits", "validated", "tokens"), [(3.1250, 3.1234, 199), (3.1234, 3.1250, 199), (3.1234, 3.1234, 198)]
)
def test_bits_that_disagree_end_the_run(
    stream_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float, validated: float, tokens: int
):
    monkeypatch.setattr(stages, "score", lambda *args, **more: None)
    plan = plans.Plan(arguments(tmp_path, stream_data, "--check", "fixed4"), stream_data)
    one = trained(plan, "fixed4", EVALUATED.format(199))

    def run(command: Any, *args: Any, **more: Any) -> None:
        Path(command[-1]).write_text(json.dumps({"bits": bits, "tokens": tokens}))

    monkeypatch.setattr(stages, "run", run)
    (one.folder / "validate.log").write_text(f'x | test | {{"test_bpc": "{validated}"}}\n')
    with pytest.raises(StageFailed, match="disagree"):
        stages.check_bits(plan, [one])
    monkeypatch.setattr(stages, "run", lambda command, *args, **more: run([*command[:-1], command[-1]]))
    (one.folder / "check.json").write_text(json.dumps({"bits": 3.12341, "tokens": 199}))
    (one.folder / "validate.log").write_text('x | test | {"test_bpc": "3.1234"}\n')
    (one.folder / "check.json").touch()
    assert stages.check_bits(plan, [one])["bits"] == 3.12341  # type: ignore[index]


def test_the_second_sum_reads_every_token(stream_data: Path):
    """Uniform predictions: the bits of the number of types, whatever the block."""

    class Uniform:
        def __call__(self, tokens: torch.Tensor, memory: Any) -> Any:
            assert tokens.shape[1] <= 7 and (memory is None) == (self.seen == 0)
            self.seen += tokens.numel()
            return torch.zeros(1, tokens.size(1), 8), {"memory": [tokens]}

    decoder = Uniform()
    decoder.seen = 0
    assert check_script.bits(decoder, torch.arange(20) % 8, 7) == pytest.approx(3.0) and decoder.seen == 19
    words = task(11).source_dictionary
    assert len(check_script.tokens_of(str(stream_data), "test", words)) == 200


# --- rows and page ----------------------------------------------------------------------------------------------------


def rows(model: str, bits: dict[int, float], span: float, seconds: float, **more: float) -> list[dict[str, Any]]:
    found = []
    for seed, value in bits.items():
        base = {"experiment": "E", "data": "D", "setting": "updates", "model": model, "seed": seed,
                "params": 2_800_000, "updates": 1000, "seconds": 600.0, "peak_mb": 900}  # fmt: skip
        numbers = {"test_bpc": value, "mean_span": span, "max_span": 2 * span, "seconds_per_update": seconds,
                   "eval_seconds": 30.0, **more}  # fmt: skip
        found += [{**base, "metric": name, "value": number} for name, number in numbers.items()]
    return found


def document() -> dict[str, Any]:
    made = {"command": "python x.py", "date": "2026-01-01", "commit": "abc", "dirty": False, "versions": {"torch": "2"},
            "machine": {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 3.5, "gpu": None}}  # fmt: skip
    settings = {"layers": 6, "dim": 192, "ffn": 768, "heads": 6, "ramp": 32, "init": 0.0, "dropout": 0.0,
                "optimizer": "adam", "updates": 1000, "batch_size": 4, "tokens_per_sample": 512, "lr": 0.002,
                "warmup": 0.1, "clip": 0.25, "device": "cpu", "precision": "fp32", "threads": 2, "longest": 2048,
                "all_attention_penalty": 2e-6}  # fmt: skip
    data = {"name": "D", "scored": "test", "splits": {"train": {"documents": 9, "tokens": 11_000_000}}, "types": 260}
    found = [
        *rows("adaptive-2e-06", {1: 2.305, 2: 2.315}, 128.0, 1.0),
        *rows("fixed2048", {1: 2.5, 2: 2.5}, 2048.0, 2.0),
        *rows("fixed256", {1: 2.3, 2: 2.31}, 256.0, 1.1),
        *rows("adaptive-0.0002", {1: 2.4, 2: 2.42}, 512.0, 1.5),
        *rows("all-attention", {1: 2.5, 2: 2.6}, 100.0, 0.9),
    ]
    spans = [
        {"experiment": "E", "model": "adaptive-2e-06", "seed": 2, "penalty": 2e-6,
         "by_layer_and_head": [[32.0, 64.0], [100.0, 400.0]]},
    ]  # fmt: skip
    checked = {"model": "adaptive-2e-06", "seed": 1, "bits": 2.30512, "reported": 2.3051, "validated": 2.305,
               "tokens": 506_552}  # fmt: skip
    experiment = {"data": data, "settings": settings, "made": [made], "checked": [checked]}
    return {**made, "experiments": {"E": experiment}, "rows": found, "spans": spans, "curves": []}


def test_the_page_of_rows():
    text = page.page(document())
    line = (
        "| adaptive-2e-06 | 2.3100 (2.3050, 2.3150) | 128 | 256 | 2,800,000 | 1.000 | 2.00x | 10 min | 900 MB | 30 s |"
    )
    assert line in text
    order = [text.index(f"\n| {model} |") for model in ("fixed256", "fixed2048", "adaptive-2e-06", "adaptive-0.0002")]
    assert order == sorted(order)
    assert "| adaptive-2e-06, seed 2 | 48 (64) | 250 (400) |" in text
    assert "- The best fixed span is 256: 2.3050 bits." in text
    near = (
        "- adaptive-2e-06: +0.0050 bits (+0.0050, +0.0050) against it, as wanted (at most +0.01); mean span 1/16.0 of "
    )
    assert f"{near}2,048, as wanted (at most 1/6); 2.00 times as fast as fixed2048, as wanted (at least 1.6)." in text
    far = (
        "- adaptive-0.0002: +0.1050 bits (+0.1000, +0.1100) against it, not as wanted (at most +0.01); mean span 1/4.0"
    )
    assert f"{far} of 2,048, not as wanted (at most 1/6); 1.33 times as fast as fixed2048, not as wanted" in text
    assert "- all-attention: +0.2450 bits" in text and "2.05 million bytes read (0.19 times the training split)" in text
    assert (
        "- The seeds of fixed256 are 0.0100 apart" in text and "2.30512, added up from the weights over 506,552" in text
    )
    assert "penalty 2e-06" in text and "`python x.py`; 2026-01-01, C, 2 cores" in text


def test_a_page_without_a_fixed_span_or_times():
    found = document()
    found["rows"] = rows("adaptive-2e-06", {1: 2.3}, 128.0, 1.0)
    found["rows"] = [row for row in found["rows"] if row["metric"] != "seconds_per_update"]
    text = page.page(found)
    assert "No fixed span to compare with." in text and "| 128 | 256 | 2,800,000 | - | - | 10 min |" in text


def test_the_prose_names_no_result():
    assert set(re.findall(r"\d+\.\d+", page.PROSE)) == set()


def test_the_parent_process_stays_small():
    code = "import sys, adaptive_span_lm; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "scripts" / "experiments")
