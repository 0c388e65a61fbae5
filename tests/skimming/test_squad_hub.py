"""Questions answered by one call are answered as ``scripts/squad_predict.py`` answers those of prepared data."""

import json
from pathlib import Path

import pytest

from fairseq_efficient.errors import UserError
from skimming.model import SkimRobertaModel
from tests.skimming.test_squad_cli import train_args
from tests.squad_data import prepared, random_squad
from tests.util import ROOT, run_cli, run_in_process

QUESTIONS = random_squad(7, seed=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    data = prepared(folder, train=random_squad(20), valid=QUESTIONS)
    run_in_process("train", train_args(data, folder / "run", "--max-update", "6", "--skim-init-bias", "0.5"))
    return folder / "run" / "checkpoint_last.pt"


def asked() -> list[tuple[str, str, str]]:
    """(id, question, paragraph)"""
    return [
        (one["id"], one["question"], paragraph["context"])
        for article in QUESTIONS["data"] for paragraph in article["paragraphs"] for one in paragraph["qas"]
    ]  # fmt: skip


def test_answers_are_those_of_the_script(trained: Path, tmp_path: Path):
    run_cli(str(ROOT / "scripts" / "squad_predict.py"), [str(trained), "--output", str(tmp_path / "out")])
    expected = json.loads((tmp_path / "out" / "predictions.json").read_text())
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    run_cli(str(ROOT / "scripts" / "export_model.py"), [str(trained), str(tmp_path / "folder")])
    names, questions, paragraphs = zip(*asked(), strict=True)
    for place, most in ((trained, 16384), (tmp_path / "folder", 30)):
        model = SkimRobertaModel.from_pretrained(place)
        model.max_tokens = most
        found = model.answer(questions, paragraphs)
        for name, reply, paragraph in zip(names, found, paragraphs, strict=True):
            assert reply.text == expected[name] == paragraph[reply.start : reply.end]
            assert reply.null_odds == pytest.approx(odds[name], abs=1e-4)
        assert model.answer(questions[2], paragraphs[2]) == model.answer([questions[2]], paragraphs[2])[0]
    always = [reply.text for reply in model.answer(questions, paragraphs, threshold=float("inf"))]
    assert all(always) and len({*always}) > 1 and model.answer([], []) == []


def test_mistakes_are_one_line(trained: Path):
    model = SkimRobertaModel.from_pretrained(trained)
    for question, paragraph, why in (
        (["why?"], ["a", "b"], "1 questions, but 2 paragraphs"),
        (["why?", " "], "a film", "question 1 .from 0.: empty question"),
        ("why?", "\n", "question 0 .from 0.: empty paragraph"),
    ):
        with pytest.raises(UserError, match=why):
            model.answer(question, paragraph)
    assert len(model.answer("good " * 30, "a good film").text) >= 0  # a long question is cut, and that is told
