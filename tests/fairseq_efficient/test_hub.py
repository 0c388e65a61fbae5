"""Texts in, texts and scores out: the interfaces that ``from_pretrained`` returns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary, data_utils

import efficient_systems  # noqa: F401
from dynamic_pooling.model import DynamicPoolingModel
from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.loading import find_checkpoint
from fairseq_efficient.hub.texts import text_coder
from par_search.model import ParLanguageModel
from tests.util import BLOCKS, HOURGLASS, ROOT, run_cli, run_in_process

PREPARE = str(ROOT / "scripts" / "prepare_lm.py")
LINES = ["The cat, 9 years old, sat.", "It was  there; it sat", "a cat and a dog", "Émile sat on the old cat"] * 9


def prepared(folder: Path, *flags: str) -> Path:
    (folder / "text.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    data = folder / "-".join(("data", *flags)).replace("/", "").replace("--", "")
    run_cli(PREPARE, [str(data), *(f"--split={name}={folder / 'text.txt'}" for name in ("train", "valid")), *flags])
    return data


CODERS = {
    "characters": ("--symbols", "characters"),
    "text8": ("--clean", "text8"),
    "bytes": ("--symbols", "bytes"),
    "words": ("--symbols", "words", "--lower-case"),
    "subwords": ("--symbols", "subwords", "--vocab-size", "60", "--lower-case", "--newlines", "space"),
}


@pytest.mark.parametrize("name", CODERS)
def test_texts_are_encoded_as_the_data_was(name: str, tmp_path: Path):
    data = prepared(tmp_path, *CODERS[name])
    words = Dictionary.load(str(data / "dict.txt"))
    coder = text_coder(data, words)
    assert coder is not None
    stored = data_utils.load_indexed_dataset(str(data / "train"), words)
    documents = ["\n".join(LINES) + "\n"] if name == "bytes" else LINES[:4]  # raw bytes are one document
    for line, tokens in zip(documents, stored, strict=False):
        clean = coder.clean(line)
        assert coder.encode(clean).tolist() == tokens[:-1].tolist(), line
        symbols = [words[one] for one in tokens[:-1].tolist()]
        again = coder.decode(symbols)
        if name == "subwords":  # sentencepiece does the cleaning
            assert again == " ".join(line.casefold().replace("é", "é").split())
        else:
            assert again == (" ".join(clean.split()) if name == "words" else clean)
    if name in ("characters", "text8"):
        assert coder.clean("the cat ").endswith("cat ")


def test_no_report_no_coder_and_a_damaged_one_is_told(tmp_path: Path):
    words = Dictionary()
    assert text_coder(tmp_path, words) is None
    (tmp_path / "prepare.json").write_text("{")
    with pytest.raises(UserError, match=r"prepare\.json: damaged"):
        text_coder(tmp_path, words)


# --- language models --------------------------------------------------------------------------------------------------


def trained(data: Path, folder: Path, user_dir: str, arch: str, *flags: str) -> Path:
    run_in_process(
        "train",
        [str(data), "--user-dir", str(ROOT / user_dir), "--arch", arch, *flags, "--save-dir", str(folder), "--cpu",
         "--optimizer", "adam", "--lr", "0.01", "--batch-size", "4", "--max-update", "6", "--num-workers", "0",
         "--disable-validation", "--no-epoch-checkpoints", "--seed", "1", "--dropout", "0.1"],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """name -> (data, save dir) of one model with memory and one without."""
    folder = tmp_path_factory.mktemp("hub")
    data = prepared(folder, "--clean", "spaces")
    stream = ("--tokens-per-sample", "16")
    pooled = ("--task", "dynamic_pooling_lm", "--criterion", "dynamic_pooling_cross_entropy", *stream, *HOURGLASS)
    blocks = ("--task", "segment_lm", "--criterion", "par_search", *stream, *BLOCKS, "--layout", "afaf")
    return {
        "dynamic_pooling": (
            data,
            trained(data, folder / "dp", "dynamic_pooling", "dynamic_pooling_lm_gumbel", *pooled),
        ),
        "par_search": (data, trained(data, folder / "par", "par_search", "par_lm", *blocks)),
    }


CLASSES: dict[str, Any] = {"dynamic_pooling": DynamicPoolingModel, "par_search": ParLanguageModel}


@pytest.mark.parametrize("name", CLASSES)
def test_continuations(name: str, models: dict[str, tuple[Path, Path]]):
    data, folder = models[name]
    lm = CLASSES[name].from_pretrained(folder)
    prompts = ["the cat ", "it", "a", ""]
    found = lm.generate(prompts, length=12)
    assert len(found) == 4 and all(len(one) <= 12 for one in found)
    assert [lm.generate(prompt, length=12) for prompt in prompts] == found
    output = run_cli(
        "interactive",
        [str(data), "--user-dir", str(ROOT / name), "--task", "dynamic_pooling_lm" if name[0] == "d" else "segment_lm",
         "--path", str(folder / "checkpoint_last.pt"), "--bpe", "dp_characters", "--beam", "1", "--max-len-b", "14"],
        typed="it\n",
    )  # fmt: skip
    line = next(line for line in output.splitlines() if line.startswith("D-0"))
    assert line.split("\t")[2] == "it" + found[1]
    sampled = {lm.generate("the ", length=20, sampling=True, sampling_topk=5) for _ in range(4)}
    assert len(sampled) > 1
    assert lm.sample("the cat").startswith("the cat")  # fairseq's own
    with pytest.raises(UserError, match="length=0"):
        lm.generate("a", length=0)


@pytest.mark.parametrize("name", CLASSES)
def test_scores(name: str, models: dict[str, tuple[Path, Path]]):
    data, folder = models[name]
    lm = CLASSES[name].from_pretrained(folder / "checkpoint_last.pt", data_name_or_path=data)
    text = "it was there; it sat on the old cat, and the dog sat"
    one, other = lm.score([text, "a"])
    assert len(one["tokens"]) == len(text) == len(one["positional_scores"])
    assert one["bits_per_character"] == pytest.approx(-one["score"] / math.log(2))
    assert one["perplexity"] == pytest.approx(math.exp(-one["score"])) and len(other["tokens"]) == 1
    for place in (0, 1, 20, len(text) - 1):  # each is the probability that the model gives after what stands before
        before = torch.cat([torch.tensor([lm.dictionary.eos()]), one["tokens"]])[: place + 1]
        if name == "par_search":
            logits, extra = None, {"memory": None}
            for block in before.split(16):
                logits, extra = lm.model.decoder(block[None], memory=extra["memory"])
        else:
            logits, extra = lm.model(before[None])
        wanted = lm.model.get_normalized_probs((logits, extra), log_probs=True)[0, -1, one["tokens"][place]]
        assert float(one["positional_scores"][place]) == pytest.approx(float(wanted.detach()), abs=1e-4)
    assert math.isnan(lm.score("")["score"])


def test_long_texts_are_read_in_windows(models: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch):
    from fairseq_efficient.hub import language_models

    lm = DynamicPoolingModel.from_pretrained(models["dynamic_pooling"][1])
    tokens = lm.encode("it was there; it sat on the old cat")[:-1]
    whole = lm.log_probabilities(tokens)
    monkeypatch.setattr(language_models, "WINDOW", 10)
    parts = lm.log_probabilities(tokens)
    assert parts.shape == whole.shape and torch.allclose(parts[:10], whole[:10], atol=1e-5)
    assert not torch.allclose(parts, whole)


def test_segments(models: dict[str, tuple[Path, Path]]):
    lm = DynamicPoolingModel.from_pretrained(models["dynamic_pooling"][1])
    assert "".join(lm.segment("it sat  there")) == "it sat there"
    assert len(lm.segment(["a cat", "it"])) == 2


def test_where_a_checkpoint_is(models: dict[str, tuple[Path, Path]], tmp_path: Path):
    folder = models["par_search"][1]
    assert find_checkpoint(folder) == find_checkpoint(folder, "checkpoint_last.pt") == folder / "checkpoint_last.pt"
    for place, name, said in (
        (tmp_path, None, "no model.safetensors"),
        (tmp_path / "x", None, "no such file or folder"),
        (folder, "best.pt", "no best.pt inside"),
    ):
        with pytest.raises(UserError, match=said):
            find_checkpoint(place, name)


def test_the_config_is_not_that_of_the_training(models: dict[str, tuple[Path, Path]]):
    lm = ParLanguageModel.from_pretrained(models["par_search"][1])
    assert lm.cfg.dataset.batch_size is None and lm.cfg.generation.beam == 5
    assert json.loads((models["par_search"][0] / "prepare.json").read_text())["options"]["clean"] == "spaces"
