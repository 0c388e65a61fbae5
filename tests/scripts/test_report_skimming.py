"""scripts/report.py skimming on tiny real runs; the quality run's test draws a results file as well."""

import json
import re
from pathlib import Path

import pytest

from skimming.drawing import Drawer
from skimming.inspection import inspect, texts_of_split
from tests.bert_reference import write_bert
from tests.squad_data import prepared, random_squad
from tests.util import ROOT, refused, run_cli, run_in_process

SCRIPTS = ROOT / "scripts"
REPORT = str(SCRIPTS / "report.py")
TEXTS = [("A (good) film", "praise"), ("bad , isn't it", "blame"), ("the play was not very good", "praise")]


def train(data: Path, model: Path, folder: Path, *more: str) -> Path:
    flags = json.loads((model / "convert.json").read_text())["flags"].split()
    report = json.loads((data / "prepare.json").read_text())["flags"].split()
    output = run_in_process(
        "train",
        [str(data), "--user-dir", str(ROOT / "skimming"), *report, *flags, "--finetune-from-model",
         str(model / "model.pt"), "--cpu", "--optimizer", "adam", "--lr", "0.01", "--batch-size", "4", "--num-workers",
         "0", "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1", "--max-update", "4",
         "--validate-interval-updates", "2", "--skim-init-bias", "0", "--save-dir", str(folder / "checkpoints"), *more],
    )  # fmt: skip
    (folder / "train.log").write_text(output)
    (folder / "stages.json").write_text(json.dumps([{"name": "train", "seconds": 65, "peak_mb": 300}]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, data with texts and without, runs that skip and one that does not, one of questions."""
    folder = tmp_path_factory.mktemp("report")
    convert = [str(write_bert(folder / "hf")), str(folder / "model")]
    run_cli(str(SCRIPTS / "convert" / "from_huggingface.py"), convert)
    for name, times in (("train", 4), ("valid", 1)):
        rows = ["text\tlabel", *("\t".join(row) for row in TEXTS * times)]
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    splits = [f"--split={name}={folder / name}.tsv" for name in ("train", "valid")]
    common = [*splits, "--tokenizer", str(folder / "model"), "--max-tokens", "16"]
    for name, more in (("data", ["--keep-text"]), ("bare", ["--by-length"])):
        run_cli(str(SCRIPTS / "prepare_classification.py"), [str(folder / name), *common, *more])
    criterion = ["--criterion", "skim_sentence_prediction"]
    for name, data, more in (("low", "data", ["--skim-lambda", "0.1"]), ("high", "bare", ["--skim-lambda", "2"]),
                             ("dense", "data", ["--skim-layers", "none"])):  # fmt: skip
        (folder / name).mkdir()
        train(folder / data, folder / "model", folder / name, *criterion, *more)
    (folder / "squad").mkdir()
    squad = prepared(folder / "q", train=random_squad(4), valid=random_squad(2, seed=1))
    small = ["--max-seq-length", "16", "--doc-stride", "2", "--max-query-length", "4"]
    train(squad, folder / "model", folder / "squad", "--criterion", "skim_question_answering", *small)
    return folder


def report(out: Path, *args: str | Path) -> tuple[str, str]:
    said = run_cli(REPORT, ["skimming", *map(str, args), "--out", str(out)])
    return said, out.read_text(encoding="utf-8")


def drawn(html: str) -> list[list[tuple[int, str]]]:
    """(level, text) of each run of tokens of each text."""
    blocks = re.findall(r'<div class="doc" tabindex="0">(.*?)</div>', html, re.DOTALL)
    return [[(int(k), text) for k, text in re.findall(r'<span class="k(\d)">(.*?)</span>', one)] for one in blocks]


def test_runs_side_by_side(folder: Path, tmp_path: Path):
    runs = [folder / name for name in ("low", "high", "dense")]
    said, html = report(tmp_path / "page.html", *runs)
    assert "wrote" in said and "INFO" not in said and "left out" not in said
    for words in ("low: text 0 of valid, praise: read as", "high: text 0 of valid", "Tokens by layer", "layer 1",
                  "Learning curves", "accuracy, %", "65 s", "300 MB", "FLOPs"):  # fmt: skip
        assert words in html, words
    assert "dense: text" not in html and not re.search(r"https?://", html) and str(ROOT) not in html
    texts = drawn(html)
    assert len(texts) == 2  # one of each run that skips
    words = ["".join(text for _, text in one).replace("■", "").replace(" ", "") for one in texts]
    assert words == ["A(good)film", "a(good)film"]  # as it was, and decoded


def test_a_checkpoint_in_the_place_of_its_run(folder: Path, tmp_path: Path):
    path = tmp_path / "mine.pt"
    path.write_bytes((folder / "low" / "checkpoints" / "checkpoint_last.pt").read_bytes())
    said, html = report(tmp_path / "page.html", path)
    assert "train.log: left out" in said and len(drawn(html)) == 3


def test_shades_are_the_layers_of_the_model(folder: Path, tmp_path: Path):
    _, html = report(tmp_path / "page.html", folder / "low", "--documents", "2", "--document", "1")
    drawer = Drawer.load(folder / "low" / "checkpoints" / "checkpoint_best.pt")
    assert drawer.classifier is not None
    labelled = texts_of_split(drawer.classifier, "valid", 1, 2)
    assert [one.label for one in labelled] == ["blame", "praise"] and labelled[0].texts == ("bad , isn't it",)
    for block, found in zip(drawn(html), inspect(drawer.classifier, [one.texts for one in labelled]), strict=True):
        levels = [2 if token.skipped is None else token.skipped for token in found.tokens]
        expected = "".join(str(level) * len("■" if token.part is None else token.text.replace(" ", ""))
                           for level, token in zip(levels, found.tokens, strict=True))  # fmt: skip
        plain = [(level, text.replace(" ", "").replace("&#39;", "'")) for level, text in block]
        assert "".join(str(level) * len(text) for level, text in plain) == expected
    counts = [int(count) for count in re.findall(r"layer \d \((\d+)\)", html)][:2]
    assert counts == sorted(counts, reverse=True)
    text = tmp_path / "texts.txt"
    text.write_text("bad <b>film\n\nthe play\n", encoding="utf-8")
    _, html = report(tmp_path / "page.html", folder / "low", "--text", text)
    assert "text 0: read as" in html and "text 1: read as" in html and len(drawn(html)) == 2
    assert "&lt;b&gt;" in html and "<b>" not in html


def test_questions(folder: Path, tmp_path: Path):
    _, html = report(tmp_path / "page.html", folder / "squad", "--documents", "4")
    assert html.count("(right: no answer)") == 2 and "question 3 of valid" in html and len(drawn(html)) == 4
    assert all(one[0][1].startswith("■") for one in drawn(html)) and "F1, %" in html


def test_what_is_missing_is_left_out(folder: Path, tmp_path: Path):
    (tmp_path / "stages.json").write_bytes((folder / "low" / "stages.json").read_bytes())
    said, html = report(tmp_path / "page.html", tmp_path, "--names", "bare")
    assert said.count("left out") == 2
    assert "Time and memory" in html and "Tokens by layer" not in html and "What is read" not in html
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "train.log").write_bytes((folder / "low" / "train.log").read_bytes())
    _, html = report(tmp_path / "page.html", tmp_path / "log")
    assert "Tokens by layer" in html and "What is read" not in html


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN", "RUN"], "the runs must be different folders"),
        (["RUN", "--text", "gone.txt"], "gone.txt: No such file"),
        (["RUN", "--text", "PAIR"], "--text: 2 texts between tabs; the model takes 1"),
        (["RUN", "--subset", "other"], "no split 'other'"),
        (["RUN", "--document", "99"], "--document 99: valid has 3 texts"),
        (["SQUAD", "--document", "99"], "--document 99: valid has 4 questions"),
        (["SQUAD", "--subset", "other"], "other.idx: no such file"),
        (["SQUAD", "--text", "PAIR"], "--text: not for a model that answers questions"),
        (["RUN", "--documents", "0"], "--documents 0: must be at least 1"),
        (["RUN", "--results", "PAIR"], "not the results of scripts/experiments/skimming_classification.py"),
        (["gone"], "gone: no such file or folder"),
        (["EMPTY"], "nothing to report"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, args: list[str], message: str):
    pair = tmp_path / "pair.txt"
    pair.write_text("good\tbad\n")
    (tmp_path / "empty").mkdir()
    names = {"RUN": folder / "low", "SQUAD": folder / "squad", "PAIR": pair, "EMPTY": tmp_path / "empty"}
    out = tmp_path / "page.html"
    command = ["skimming", *(str(names.get(arg, arg)) for arg in args), "--out", str(out)]
    assert message in refused(REPORT, command)
    assert not out.exists()
