"""Texts through a trained classifier, and where it skips their tokens."""

import json
import logging
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.folders import export
from skimming.hub import Classifier
from skimming.inspection import inspect
from skimming.model import SkimRobertaModel
from tests.fairseq_efficient.test_text_subwords import write_vocabulary
from tests.skimming.helpers import config
from tests.squad_data import tokenizer
from tests.util import ROOT, SYSTEMS, error_line, run_cli, run_in_process, train_args

PREPARE, CLASSIFY = (str(ROOT / "scripts" / f"{name}.py") for name in ("prepare_classification", "classify"))
SIZES = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads")
MODEL = [part for name in SIZES for part in (f"--{name.replace('_', '-')}", str(getattr(config(), name)))]
TEXTS = ["a good film", "bad", "the play was not good, isn't it?", "very " * 30 + "bad", "(7)", "good good bad"]


def train(folder: Path, arch: str, *more: str) -> Path:
    data = folder / "data"
    criterion = "sentence_prediction" if arch.startswith("roberta") else "skim_sentence_prediction"
    skim = [] if arch.startswith("roberta") else ["--skim-init-bias", "0.3", "--skim-lambda", "0.1"]
    run_in_process(
        "train",
        [str(data), "--user-dir", str(ROOT / "skimming"), "--task", "sentence_prediction", "--criterion", criterion,
         "--init-token", "0", "--max-positions", "24", "--arch", arch, *MODEL, *skim, "--cpu", "--optimizer", "adam",
         "--lr", "0.005", "--dropout", "0", "--batch-size", "4", "--max-update", "60", "--num-workers", "0",
         "--save-dir", str(folder / arch), "--disable-validation", "--no-epoch-checkpoints", "--seed", "1", *more],
    )  # fmt: skip
    return folder / arch / "checkpoint_last.pt"


def prepare(folder: Path, rows: list[str], *more: str, header: str = "text\tlabel") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text("\n".join([header, *rows]) + "\n")
    args = ["--split", f"train={folder / 'train.tsv'}", "--tokenizer", str(tokenizer(folder / "model"))]
    run_cli(PREPARE, [str(folder / "data"), *args, "--max-tokens", "24", *more])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    prepare(folder, ["good film\tpraise", "bad\tblame", "a good play\tpraise", "not good\tblame", "x\tnothing"] * 2)
    return train(folder, "skim_roberta", "--num-classes", "3")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["good film\tbad film\t0", "good\tgood\t4", "a play\tthe play\t3"] * 3
    flags = ["--text-field", "one,two", "--regression", "--top", "4", "--separator", "yes"]
    prepare(folder, rows, *flags, header="one\ttwo\tlabel")
    more = ["--num-classes", "1", "--separator-token", "2", "--regression-target"]
    return train(folder, "skim_roberta", *more)


@pytest.fixture
def run(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """scripts/classify.py, run here: what it prints."""

    def call(*args: object, text: str | None = None, expect: int = 0) -> str:
        given = list(map(str, args))
        if text is not None:
            (tmp_path / "in.txt").write_text(text, encoding="utf-8")
            given += ["--input", str(tmp_path / "in.txt")]
        monkeypatch.setattr(sys, "argv", [CLASSIFY, *given])
        with pytest.raises(SystemExit) as status:
            runpy.run_path(CLASSIFY, run_name="__main__")
        out, err = capsys.readouterr()
        assert (status.value.code or 0) == expect, err
        return str(out + err)

    yield call
    logging.disable(logging.NOTSET)


def test_order_batches_and_modes_do_not_matter(single: Path) -> None:
    reference = Classifier.load(single, overrides={"skim_inference": "masked"}, batch_size=1)
    expected = reference.predict([(text,) for text in TEXTS])
    assert reference.classes == ["blame", "nothing", "praise"] and len({one.label for one in expected}) > 1
    assert reference.counts.texts == 6 and reference.counts.cut == 1 and reference.counts.kept < reference.counts.all
    for mode, sizes in (("packed", {}), ("masked", {}), ("auto", {"max_tokens": 30}), ("packed", {"batch_size": 2})):
        classifier = Classifier.load(single, overrides={"skim_inference": mode}, **sizes)
        for order in ([0, 1, 2, 3, 4, 5], [3, 5, 1, 0, 4, 2]):
            found = classifier.predict([(TEXTS[place],) for place in order])
            assert [one.label for one in found] == [expected[place].label for place in order]
            for one, place in zip(found, order, strict=True):
                assert one.probabilities == pytest.approx(expected[place].probabilities, abs=1e-5)
                assert sum(one.probabilities) == pytest.approx(1.0)
    assert classifier.counts.kept == 2 * reference.counts.kept  # the same tokens, seen twice
    assert classifier.predict([]) == []


def test_rows_are_those_of_the_training_data(single: Path, pairs: Path) -> None:
    classifier = Classifier.load(single)
    dataset = classifier.task.load_dataset("train")
    texts = ["good film", "bad", "a good play", "not good", "x"]
    stored = {tuple(dataset[place]["net_input.src_tokens"].tolist()) for place in range(len(dataset))}
    assert {tuple(row.tokens.tolist()) for row in classifier.rows([(text,) for text in texts])} == stored
    (row,) = classifier.rows([("good " * 40,)])
    assert len(row.tokens) == 24 and row.tokens[-1] == 2 and classifier.counts.cut == 1
    classifier = Classifier.load(pairs)
    dataset = classifier.task.load_dataset("train")
    stored = {tuple(dataset[place]["net_input.src_tokens"].tolist()) for place in range(len(dataset))}
    rows = classifier.rows([("good film", "bad film"), ("good", "good"), ("a play", "the play")])
    assert {tuple(row.tokens.tolist()) for row in rows} == stored
    assert rows[0].parts == [None, 0, 0, None, None, 1, 1, None]


def test_a_folder_to_give_away(single: Path, pairs: Path, tmp_path: Path) -> None:
    """Exported, it classifies as the checkpoint does, by ``from_pretrained`` and by torch.hub."""
    for name, checkpoint, texts in (("one", single, TEXTS), ("two", pairs, [("good film", "bad film"), ("a", "b")])):
        export(checkpoint, tmp_path / name)
        expected = Classifier.load(checkpoint).classify(texts)
        for found in (
            SkimRobertaModel.from_pretrained(tmp_path / name),
            torch.hub.load(str(ROOT), "skimming", str(tmp_path / name), source="local"),
        ):
            assert found.classes == Classifier.load(checkpoint).classes
            for one, other in zip(found.classify(texts), expected, strict=True):
                assert one.label == other.label and one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert SkimRobertaModel.from_pretrained(tmp_path / "one").classify(TEXTS[0]).label in ("praise", "blame", "nothing")


def test_scores_of_pairs(pairs: Path, run: Any) -> None:
    classifier = Classifier.load(pairs)
    (one,) = classifier.predict([("good film", "bad film")])
    logits, _ = classifier.logits([classifier.rows([("good film", "bad film")])[0].tokens])
    assert one.score == pytest.approx(4 * float(logits[0, 0])) and one.label == f"{one.score:.4f}"
    out = run(pairs, text="good film\tbad film\n")
    assert out.splitlines()[0] == one.label and "1 texts in" in out
    wrong = run(pairs, text="good film\tbad film\nonly one\n", expect=2)
    assert "in.txt:2: 1 texts between tabs; the model takes 2" in error_line(wrong)
    assert wrong.splitlines()[0] == one.label  # what came before is not lost


def test_command(single: Path, run: Any) -> None:
    expected = Classifier.load(single).predict([(text,) for text in TEXTS])
    out = run(single, text="\n".join(TEXTS) + "\n")
    lines = [line for line in out.splitlines() if re.match(r"(praise|blame|nothing)\t", line)]
    assert [line.split("\t")[0] for line in lines] == [one.label for one in expected]
    for line, one in zip(lines, expected, strict=True):
        assert [float(number) for number in line.split("\t")[1:]] == pytest.approx(one.probabilities, abs=1e-4)
    summary = next(line for line in out.splitlines() if line.startswith("6 texts in"))
    assert re.search(r"\d texts/s, [\d,]+ tokens/s\), 1 cut to 24 tokens, [\d.]+% of the tokens kept", summary)
    out = run(single, "--format", "json", "--threshold", "1e9", text=TEXTS[0])
    found = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert found["text"] == TEXTS[0] and sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    kept = float(re.search(r"([\d.]+)% of the tokens kept", out)[1])  # type: ignore[index]
    assert kept == pytest.approx(100 / 5, abs=0.05)  # the first of five tokens
    assert "0 texts in" in run(single, text="")
    assert run(single, text="\ufeffgood").split("\t")[:2] == run(single, text="good").split("\t")[:2]


def test_stock_roberta(single: Path, run: Any) -> None:
    stock = train(single.parents[1], "roberta", "--num-classes", "3")
    out = run(stock, text="\n".join(TEXTS))
    assert len([line for line in out.splitlines() if line.count("\t") == 3]) == 6
    for flags in (["--inference", "packed"], ["--threshold", "1"]):
        wrong = error_line(run(stock, *flags, text="x", expect=2))
        assert f"{flags[0]} is of skimming models" in wrong and "has no skim predictors" in wrong
    with pytest.raises(UserError, match="it skips no tokens"):
        inspect(Classifier.load(stock), [("a",)])


def test_data_that_moved(single: Path, run: Any, tmp_path: Path) -> None:
    shutil.copytree(single.parents[1] / "data", tmp_path / "elsewhere")
    assert "1 texts in" in run(single, "--data", tmp_path / "elsewhere", text="good")
    (tmp_path / "elsewhere" / "tokenizer.json").unlink()
    wrong = run(single, "--data", tmp_path / "elsewhere", text="good", expect=2)
    assert "no tokenizer.json inside; give the model's with --tokenizer" in error_line(wrong)
    (tmp_path / "elsewhere" / "prepare.json").unlink()  # as if fairseq-preprocess had made it
    vocabulary = single.parents[1] / "model" / "vocab.txt"
    out = run(single, "--data", tmp_path / "elsewhere", "--tokenizer", vocabulary, text="good")
    assert re.match(r"[012]\t", out)
    other = write_vocabulary(tmp_path / "other" / "vocab.txt", ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "x"])
    wrong = run(single, "--data", tmp_path / "elsewhere", "--tokenizer", other, text="good", expect=2)
    assert "is not the dictionary of" in error_line(wrong)


def test_mistakes(single: Path, run: Any, tmp_path: Path) -> None:
    for args, text, why in (
        ([tmp_path / "no.pt"], "x", "no.pt: no such file"),
        ([single, "--batch-size", "0"], "x", "--batch-size 0: must be at least 1"),
        ([single, "--max-tokens", "0"], "x", "--max-tokens 0: must be at least 1"),
        ([single], "good\n\nbad\n", "in.txt:2: empty text"),
        ([single, "--input", tmp_path / "none"], None, "--input"),
    ):
        assert why in error_line(run(*args, text=text, expect=2))
    (tmp_path / "bytes").write_bytes(b"good\ncaf\xe9\n")
    assert "bytes:2: not UTF-8" in error_line(run(single, "--input", tmp_path / "bytes", expect=2))


def test_progress_is_told_batch_by_batch(single: Path) -> None:
    told: list[int] = []
    classifier = Classifier.load(single, batch_size=2)
    classifier.predict([(text,) for text in TEXTS], told.append)
    assert told == [2, 2, 2] and classifier.counts.texts == 6


@pytest.mark.parametrize("inside", [False, True])
def test_an_interruption_loses_nothing_that_was_written(
    single: Path, run: Any, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """Ctrl-C in the second part of the lines, before it is computed or before it is written."""
    stock = Classifier.predict

    def predict(self: Classifier, texts: Any, *more: Any) -> Any:
        last = len(texts) < 2048
        if last and not inside:
            raise KeyboardInterrupt
        found = stock(self, texts, *more)
        if last:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Classifier, "predict", predict)
    out = run(single, text="good film\n" * 2051, expect=130)
    lines = out.splitlines()
    assert len([line for line in lines if re.match(r"(praise|blame|nothing)\t", line)]) == 2048
    assert lines[-1] == "interrupted" and "Traceback" not in out
    said = "2,051 texts in .*, 2,048 of them written" if inside else "2,048 texts in (?!.*written)"
    assert re.match(said, lines[-2])


def test_damaged_data_are_one_line(single: Path, run: Any, tmp_path: Path) -> None:
    data = shutil.copytree(single.parents[1] / "data", tmp_path / "data")
    for damage in ("{broken", "[1]", ""):
        (data / "prepare.json").write_text(damage)
        wrong = error_line(run(single, "--data", data, text="good", expect=2))
        assert "prepare.json: damaged; prepare the data again" in wrong


def test_a_head_that_was_never_trained_classifies_nothing(single: Path, run: Any, tmp_path: Path) -> None:
    state = torch.load(single, weights_only=True)
    state["model"] = {key: value for key, value in state["model"].items() if "classification_heads" not in key}
    torch.save(state, tmp_path / "headless.pt")
    wrong = error_line(run(tmp_path / "headless.pt", text="good", expect=2))
    assert "the checkpoint has no classification head sentence_classification_head for these classes" in wrong


def test_checkpoints_of_other_systems_are_one_line(stream_data: Path, run: Any, tmp_path: Path) -> None:
    """Theirs load, so that it can be said what they are."""
    system = next(one for one in SYSTEMS if one.user_dir == "dynamic_pooling")
    args = train_args(stream_data, tmp_path / "ck", system, "--max-update", "1", "--disable-validation")
    run_in_process("train", args)
    path = tmp_path / "ck" / "checkpoint_last.pt"
    wrong = error_line(run(path, text="good", expect=2))
    assert "checkpoint_last.pt: not of task sentence_prediction, so it has no classes" in wrong
    predict = str(ROOT / "scripts" / "squad_predict.py")
    wrong = error_line(run_cli(predict, [str(path), "--output", str(tmp_path / "out")], expect=2))
    assert "checkpoint_last.pt: not of task skim_squad" in wrong and not (tmp_path / "out").exists()


def test_in_a_process_of_its_own(single: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n")
    out = run_cli(CLASSIFY, [str(single), "--input", str(tmp_path / "in.txt")])
    assert (
        "Traceback" not in out and "2 texts in" in out and len([line for line in out.splitlines() if "\t" in line]) == 2
    )


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_inspection(single: Path, pairs: Path, mode: str) -> None:
    classifier = Classifier.load(single, overrides={"skim_inference": mode, "skim_threshold": 0.3})
    text = "The caf\u00e9 isn't good"
    (found,) = inspect(classifier, [(text,)])
    assert found.tokens[0].text == "<s>" and found.tokens[-1].text == "</s>"
    inner = [token for token in found.tokens if token.part is not None]
    assert all(token.text == text[token.start : token.end] and token.part == 0 for token in inner)
    assert [token.text for token in inner][:2] == ["The", "c"] and "isn't".startswith(inner[5].text)
    layers = len(found.kept)
    assert layers == config().encoder_layers and found.tokens[0].skipped is None
    assert any(token.skipped is not None for token in found.tokens)
    for layer, share in enumerate(found.kept):
        entered = sum(token.skipped is None or token.skipped > layer for token in found.tokens)
        assert share == pytest.approx(entered / len(found.tokens))
    (prediction,) = classifier.predict([(text,)])
    assert found.prediction.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
    assert found.tokens[0].text == "<s>"
    (found,) = inspect(Classifier.load(pairs, overrides={"skim_inference": mode}), [("good film", "a play")])
    assert [(token.text, token.part) for token in found.tokens] == [
        ("<s>", None), ("good", 0), ("film", 0), ("</s>", None), ("</s>", None), ("a", 1), ("play", 1), ("</s>", None),
    ]  # fmt: skip


def test_both_modes_skip_the_same(single: Path) -> None:
    found: list[Any] = []
    for mode in ("masked", "packed"):
        classifier = Classifier.load(single, overrides={"skim_inference": mode, "skim_threshold": 0.5})
        found.append([[token.skipped for token in one.tokens] for one in inspect(classifier, [(t,) for t in TEXTS])])
    assert found[0] == found[1] and torch.is_grad_enabled()
