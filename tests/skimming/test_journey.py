"""From a model of Hugging Face and a table of texts to labels: convert, prepare, train, validate, classify."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fairseq_efficient.checkpoints import read_checkpoint
from skimming.hub import Classifier
from tests.bert_reference import write_bert
from tests.squad_data import prepared, random_squad
from tests.util import ROOT, run_cli, run_in_process

SCRIPTS = ROOT / "scripts"
PAIRS = [("good film", "bad film", "no"), ("the play", "the film", "yes"), ("a", "b c", "no"), ("good", "good", "yes")]
HEAD = "classification_heads.sentence_classification_head"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model with a head of two classes, and prepared pairs."""
    folder = tmp_path_factory.mktemp("journey")
    source = write_bert(folder / "hf")
    convert = [str(SCRIPTS / "convert" / "from_huggingface.py"), [str(source), str(folder / "model"), "--head", "2"]]
    log = run_cli(*convert)  # type: ignore[arg-type]
    (folder / "flags.txt").write_text(next(line for line in log.splitlines() if line.startswith("train with: ")))
    for name, times in (("train", 6), ("valid", 3)):
        rows = ["one\ttwo\tlabel", *("\t".join(pair) for pair in PAIRS * times)]
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    splits = [f"--split={name}={folder / name}.tsv" for name in ("train", "valid")]
    args = [str(folder / "data"), *splits, "--text-field", "one,two", "--tokenizer", str(folder / "model")]
    run_cli(str(SCRIPTS / "prepare_classification.py"), [*args, "--max-tokens", "16"])
    return folder


def train(folder: Path, save: str, flags: list[str], *more: str, criterion: str = "skim_sentence_prediction") -> str:
    return run_in_process(
        "train",
        [str(folder / "data"), "--user-dir", str(ROOT / "skimming"), "--task", "sentence_prediction", "--num-classes",
         "2", "--init-token", "0", *flags, "--criterion", criterion, "--max-positions", "16", "--restore-file",
         str(folder / "model" / "model.pt"), "--reset-optimizer", "--reset-dataloader", "--reset-meters", "--cpu",
         "--optimizer", "adam", "--batch-size", "6", "--num-workers", "0", "--save-dir", str(folder / save),
         "--no-epoch-checkpoints", "--log-format", "json", "--dropout", "0", "--attention-dropout", "0", *more],
    )  # fmt: skip


def printed_flags(folder: Path) -> list[str]:
    """What from_huggingface.py says to train with, without the checkpoint (and what train() gives itself)."""
    words = (folder / "flags.txt").read_text().removeprefix("train with: ").split()
    kept = words[: words.index("--restore-file")]
    return [word for place, word in enumerate(kept) if "--max-positions" not in kept[max(place - 1, 0) : place + 1]]


def last(log: str, key: str) -> float:
    lines = [line for line in log.splitlines() if f'"{key}"' in line]
    return float(json.loads(lines[-1][lines[-1].index("{") :])[key])


def test_training_starts_from_the_converted_weights(folder: Path) -> None:
    train(folder, "start", printed_flags(folder), "--lr", "0", "--max-update", "1", "--disable-validation")
    before = read_checkpoint(str(folder / "model" / "model.pt"))["model"]
    after = read_checkpoint(str(folder / "start" / "checkpoint_last.pt"))["model"]
    new = {name for name in after if name not in before}
    assert new and all(".skim_predictors." in name for name in new)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    pooler = load_file(folder / "hf" / "model.safetensors")["pooler.dense.weight"]
    assert torch.equal(after[f"{HEAD}.dense.weight"], pooler)


def test_the_whole_way(folder: Path) -> None:
    log = train(folder, "ck", printed_flags(folder), "--lr", "0.01", "--max-epoch", "12", "--skim-lambda", "0.1")
    assert last(log, "valid_accuracy") == 100.0
    path = folder / "ck" / "checkpoint_best.pt"
    for mode in ("masked", "packed"):
        log = run_in_process(
            "validate",
            [str(folder / "data"), "--user-dir", str(ROOT / "skimming"), "--task", "sentence_prediction", "--path",
             str(path), "--batch-size", "5", "--cpu", "--num-classes", "2", "--log-format", "json", "--criterion",
             "skim_sentence_prediction", "--model-overrides", str({"skim_inference": mode})],
        )  # fmt: skip
        assert last(log, "valid_accuracy" if '"valid_accuracy"' in log else "accuracy") == 100.0
    (folder / "in.txt").write_text("".join(f"{one}\t{two}\n" for one, two, _ in PAIRS))
    out = run_cli(str(SCRIPTS / "classify.py"), [str(path), "--input", str(folder / "in.txt")])
    labels = [line.split("\t")[0] for line in out.splitlines() if "\t" in line]
    assert labels == [label for _, _, label in PAIRS]
    run_cli(str(SCRIPTS / "convert" / "to_huggingface.py"), [str(path), str(folder / "back")])
    assert json.loads((folder / "back" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    assert (folder / "back" / "vocab.txt").read_bytes() == (folder / "hf" / "vocab.txt").read_bytes()


def test_segments_reach_the_model(folder: Path) -> None:
    """The second text of a pair has other token types than the first, as BERT's tokenizer numbers them."""
    train(folder, "types", printed_flags(folder), "--lr", "0", "--max-update", "1", "--disable-validation")
    classifier = Classifier.load(folder / "types" / "checkpoint_last.pt")
    (row,) = classifier.rows([("good film", "bad")])
    seen: list[Any] = []
    embedding = classifier.model.encoder.sentence_encoder.segment_embeddings
    handle = embedding.register_forward_hook(lambda module, given, out: seen.append(given[0].tolist()))
    classifier.logits([row.tokens])
    handle.remove()
    assert seen[0] in ([[0, 0, 0, 0, 1, 1]], [0, 0, 0, 0, 1, 1])  # <s> good film </s> bad </s>


def test_stock_roberta_starts_from_it_too(tmp_path: Path, folder: Path) -> None:
    source = write_bert(tmp_path / "hf", layer_norm_eps=1e-5)
    convert = str(SCRIPTS / "convert" / "from_huggingface.py")
    run_cli(convert, [str(source), str(tmp_path / "model"), "--stock", "--no-segments", "--head", "2"])
    (tmp_path / "data").symlink_to(folder / "data")
    sizes = printed_flags(folder)
    sizes = sizes[sizes.index("--encoder-layers") : sizes.index("--layer-norm-eps")]
    flags, budget = ["--arch", "roberta", *sizes], ["--lr", "0", "--max-update", "1", "--disable-validation"]
    train(tmp_path, "ck", flags, *budget, criterion="sentence_prediction")
    before = read_checkpoint(str(tmp_path / "model" / "model.pt"))["model"]
    after = read_checkpoint(str(tmp_path / "ck" / "checkpoint_last.pt"))["model"]
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_squad_with_a_teacher(folder: Path, tmp_path: Path) -> None:
    """Questions from the same converted model, then a student that learns from the first one's answers."""
    data = prepared(tmp_path, train=random_squad(6), valid=random_squad(3, seed=1))
    common = [
        str(data), "--user-dir", str(ROOT / "skimming"), "--task", "skim_squad", "--criterion",
        "skim_question_answering", *printed_flags(folder), "--max-positions", "16", "--max-seq-length", "16",
        "--doc-stride", "2", "--max-query-length", "4", "--cpu", "--optimizer", "adam", "--lr", "0.01", "--batch-size",
        "8", "--num-workers", "0", "--no-epoch-checkpoints", "--log-format", "json", "--max-epoch", "1",
    ]  # fmt: skip
    fresh = [
        "--restore-file",
        str(folder / "model" / "model.pt"),
        "--reset-optimizer",
        "--reset-dataloader",
        "--reset-meters",
    ]
    run_in_process("train", [*common, *fresh, "--save-dir", str(tmp_path / "dense"), "--skim-layers", "none"])
    teacher = str(tmp_path / "dense" / "checkpoint_last.pt")
    log = run_in_process("train", [*common, *fresh, "--save-dir", str(tmp_path / "ck"), "--skim-teacher", teacher])
    assert last(log, "train_aux/distill") > 0 and 0 <= last(log, "valid_f1") <= 100
