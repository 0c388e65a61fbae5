"""Checkpoints as safetensors: what goes in comes out, small, without paths; damaged and foreign files are refused."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.tensor_files import KEY, tensor_file
from tests.fairseq_efficient.test_checkpoints import state as stored
from tests.util import assert_close


def state(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    table = torch.randn(50, 40)
    weights = {
        "embed.weight": table, "output.weight": table, "norm.weight": torch.randn(40), "span": torch.rand(4, 1, 1),
        "steps": torch.tensor([7]), "transposed": torch.randn(60, 30).t(), "huge": torch.full((40, 40), 1e30),
    }  # fmt: skip
    whole = stored(12)
    whole["cfg"]["task"]["data"] = "/home/somebody/data"
    return {**whole, "model": weights, **changes}


def write(folder: Path, file: bytes) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(file)
    return str(path)


def test_what_goes_in_comes_out(tmp_path: Path):
    found = read_checkpoint(write(tmp_path, tensor_file(state())))
    assert found["model"].keys() == state()["model"].keys()
    for name, weight in state()["model"].items():
        assert torch.equal(found["model"][name], weight), name
    assert found["model"]["embed.weight"] is found["model"]["output.weight"]
    assert found["cfg"]["model"] == state()["cfg"]["model"] and found["optimizer_history"][-1]["num_updates"] == 12
    assert found["cfg"]["task"] == {"_name": "language_modeling", "data": str(tmp_path)}
    assert "optimizer" not in found["cfg"] and found["last_optimizer_state"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_large_matrices_that_fit(dtype: torch.dtype, tmp_path: Path):
    file = tensor_file(state(), dtype)
    kinds = {name: weight.dtype for name, weight in load(file).items()}
    short = {"embed.weight", "transposed"} | ({"huge"} if dtype == torch.bfloat16 else set())
    assert {name for name, kind in kinds.items() if kind == dtype} == short and "output.weight" not in kinds
    found = read_checkpoint(write(tmp_path, file))["model"]
    for name, weight in state()["model"].items():
        wanted = weight.to(dtype).float() if name in short | {"output.weight"} else weight
        assert torch.equal(found[name], wanted), name


def test_precision_of_training_is_not_that_of_use(tmp_path: Path):
    whole = state()
    whole["cfg"]["model"] = {**whole["cfg"]["model"], "cpu_bf16": True, "width": 3}
    found = read_checkpoint(write(tmp_path, tensor_file(whole)))["cfg"]["model"]
    assert "cpu_bf16" not in found and found["width"] == 3


def test_no_path_leaves_the_machine():
    config = {
        "task": {"_name": "t", "data": "/secret/a", "tokens": 3},
        "model": {"_name": "m", "encoder_embed_path": "/secret/b"},
        "criterion": {"_name": "c", "skim_teacher": "/secret/c", "latency_table": "/secret/d"},
        "bpe": {"_name": "sentencepiece", "sentencepiece_model": "/secret/e"},
        "checkpoint": {"save_dir": "/secret/f"},
        "common": {"user_dir": "/secret/g"},
    }
    assert b"secret" not in tensor_file(state(cfg=config))


def test_no_absolute_path_of_any_option_leaves_the_machine(tmp_path: Path):
    """Neither of one that nobody listed, nor inside another value; what only looks a little like one stays."""
    inside = {"path": "/home/secret/i"}
    kept = {"tokens": 3, "eval_args": '{"beam": 4}', "remove": "@@ ", "rate": "1/2", "at": "https://a.b/c"}
    whole = state()
    whole["cfg"]["task"] = {
        "_name": "t", **kept, "someday": "/home/secret/a", "more": ["/home/secret/b", 1], "url": "file:///secret",
        "args": json.dumps(inside), "both": "/home/secret/d:/home/secret/e", "far": "C:\\secret\\f",
        "deep": {"er": "~/secret/c", "x": 1},
        "whitespace_symbols": "/x",
    }  # fmt: skip
    file = tensor_file(whole)
    assert b"secret" not in file
    found = read_checkpoint(write(tmp_path, file))["cfg"]["task"]
    assert found == {"_name": "t", **kept, "deep": {"x": 1}, "whitespace_symbols": "/x", "data": str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "option", "file"),
    [
        ("sentencepiece", "sentencepiece_model", "spm.model"),
        ("wordpiece", "wordpiece_vocab", "tokenizer.json"),
        ("subword_nmt", "bpe_codes", None),
    ],
)
def test_the_tokenizer_is_the_one_beside_the_model(name: str, option: str, file: str | None, tmp_path: Path):
    whole = state()
    whole["cfg"]["bpe"] = {"_name": name, option: "/home/secret/e", "more": 1}
    path = write(tmp_path, tensor_file(whole))
    assert read_checkpoint(path)["cfg"].get("bpe") is None  # nothing that cannot be read is asked for
    if file is not None:
        (tmp_path / file).write_text("")
        assert read_checkpoint(path)["cfg"]["bpe"] == {"_name": name, option: str(tmp_path / file), "more": 1}


def test_a_namespace_is_read(tmp_path: Path):
    config = {**state()["cfg"], "model": argparse.Namespace(_name="transformer_lm_gpt", decoder_layers=2)}
    found = read_checkpoint(write(tmp_path, tensor_file(state(cfg=config))))
    assert found["cfg"]["model"] == {"_name": "transformer_lm_gpt", "decoder_layers": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"cfg": None}, "stores no cfg"), ({"cfg": {"model": {"x": torch.ones(1)}}}, "not plain data")],
)
def test_what_cannot_be_written(changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        tensor_file(state(**changes))


def damaged(file: bytes, how: str) -> bytes:
    data = bytearray(file)
    if how == "flipped":
        data[-3] ^= 1
    elif how == "header":
        data[:8] = (1 << 60).to_bytes(8, "little")
    else:
        del data[int(len(data) * float(how)) :]
    return bytes(data)


@pytest.mark.parametrize("how", ["0", "0.001", "0.5", "0.99", "flipped", "header"])
def test_damage_is_told(how: str, tmp_path: Path):
    path = write(tmp_path, damaged(tensor_file(state()), how))
    with pytest.raises(UserError, match=f"{path} cannot be read: .*(damaged|altered)"):
        read_checkpoint(path)


def test_no_flipped_bit_goes_unseen(tmp_path: Path):
    """Of all of the file: the configuration in the header decides what the weights mean."""
    file = tensor_file(state())
    path = write(tmp_path, file)
    expected = read_checkpoint(path)
    refused, places = 0, range(0, 8 * len(file), 37)
    for place in places:
        data = bytearray(file)
        data[place // 8] ^= 1 << place % 8
        Path(path).write_bytes(data)
        try:
            found = read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert found["cfg"] == expected["cfg"] and list(found["model"]) == list(expected["model"])
        assert_close(found["model"], expected["model"], 0, 0)
    assert refused > 0.9 * len(places)


@pytest.mark.parametrize("header", [{"format": "pt"}, {KEY: "{"}, {KEY: "[]"}, {KEY: '{"version": 1, "cfg": 3}'}])
def test_files_of_others_are_refused(header: dict[str, str], tmp_path: Path):
    path = write(tmp_path, save({"x": torch.ones(3)}, header))
    with pytest.raises(UserError, match="refused: its header has no configuration"):
        read_checkpoint(path)


def test_a_newer_format_is_told(tmp_path: Path):
    header = '{"version": 9, "cfg": {}, "num_updates": 1, "tied": {}, "sha256": ""}'
    path = write(tmp_path, save({"x": torch.ones(3)}, {KEY: header}))
    with pytest.raises(UserError, match="newer version"):
        read_checkpoint(path)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(str(tmp_path / "model.safetensors"))
