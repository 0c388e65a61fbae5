"""Recorded numbers of the published implementations: ours agree, and a wrong number is noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deep_pyramidion.original import build_from_original, config_from_original
from deep_pyramidion.recording import CHECKS, difference
from fairseq_efficient.errors import UserError
from tests.util import ROOT, error_line, run_cli

FIXTURES = ROOT / "tests" / "fixtures"
MODEL, OPERATOR = FIXTURES / "pyramidion_topk_61.pt", FIXTURES / "successive_halving.pt"
SCRIPT = "scripts/check_reference.py"


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("path", [MODEL, OPERATOR], ids=lambda path: path.stem)
def test_ours_agree(path: Path):
    recording = read(path)
    found = list(CHECKS[recording["kind"]](recording))
    assert len(found) > 4 and all(one.within for one in found), found
    assert all(0 < one.largest < 2e-4 or one.largest == 0 for one in found)
    names = {one.name.split()[-1] for one in found}
    if path == MODEL:
        states = {f"encoder_states[{n}]" for n in range(len(recording["encoder_states"]))}
        assert names == {*states, "encoder_out", "logits"}
    else:
        assert len(found) == 4 * len(recording["cases"])
        assert names == {"pooled", "pooled_scores", "grad_embeddings", "grad_scores"}


@pytest.mark.parametrize("key", ["encoder_out", "logits", "encoder_states", "model"])
def test_a_wrong_number_of_the_model_is_noticed(key: str):
    recording = read(MODEL)
    if key == "model":
        recording["model"]["encoder.layers.0.fc1.bias"][0] += 0.01
    else:
        tensor = recording[key][-1] if key == "encoder_states" else recording[key]
        tensor[0, 0, 7] += 2e-4
    assert not all(one.within for one in CHECKS["pyramidion"](recording))


@pytest.mark.parametrize("key", ["pooled", "pooled_scores", "grad_embeddings", "grad_scores", "base", "sort_back"])
def test_a_wrong_number_of_the_operator_is_noticed(key: str):
    recording = read(OPERATOR)
    case = recording["cases"][-1]
    if isinstance(case[key], torch.Tensor):
        case[key].flatten(1)[0, 3] += 2e-5 if key != "grad_scores" else 1e-2
    else:
        case[key] = 19 if key == "base" else 1 - case[key]
    assert not all(one.within for one in CHECKS["successive_halving"](recording))


def test_difference():
    one = difference("x", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), atol=0.1, rtol=0.1)
    assert one.largest == 0.5 and not one.within
    assert difference("x", torch.tensor([2.0]), torch.tensor([2.5]), atol=0.26, rtol=0.1).within
    assert difference("x", torch.zeros(2), torch.zeros(3), atol=1).largest == float("inf")
    assert not difference("x", torch.zeros(2), torch.zeros(1, 2), atol=1).within
    assert not difference("x", torch.tensor([float("nan")]), torch.zeros(1), atol=1).within
    assert difference("x", torch.zeros(0), torch.zeros(0), atol=0).within


def test_flags_that_the_original_ignored_stay_ignored():
    args = read(MODEL)["args"]
    cfg = config_from_original({**args, "topk_softmax_base": 3, "no_decoder_positional_embeddings": True})
    assert cfg.topk_softmax_base == 20 and not cfg.no_decoder_positional_embeddings
    assert cfg.encoder_embed_dim == args["encoder_embed_dim"] and cfg.encoder_pooling == "topk"
    vanilla = config_from_original({**args, "encoder_pooling": "lambda", "use_sparse_attn": "only_blockwise"})
    assert vanilla.use_sparse_attn == "pooler_no_block", "its lambda path was always full attention"


def test_weights_of_other_sizes_are_one_line():
    recording = read(MODEL)
    with pytest.raises(UserError, match="weights do not fit the model") as caught:
        build_from_original({**recording["args"], "decoder_layers": 1}, recording["dictionary"], recording["model"])
    assert "\n" not in str(caught.value)


def test_script(tmp_path: Path):
    output = run_cli(SCRIPT, [MODEL, OPERATOR])
    assert "pyramidion_topk_61.pt (pyramidion)" in output and "logits: largest difference" in output
    assert output.rstrip().endswith("all within tolerance") and "FAIL" not in output
    wrong = read(MODEL)
    wrong["logits"] += 1
    torch.save(wrong, tmp_path / "wrong.pt")
    output = run_cli(SCRIPT, [OPERATOR, tmp_path / "wrong.pt"], expect=1)
    assert "FAIL logits: largest difference" in output and "1 quantities differ" in output


def test_script_refuses_in_one_line(tmp_path: Path):
    torch.save({"kind": "teapot"}, tmp_path / "kind.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"kind": "successive_halving", "cases": []}, tmp_path / "empty.pt")
    (tmp_path / "zero.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "cut.pt").write_bytes(MODEL.read_bytes()[:5000])
    for name in ("kind", "list", "empty", "zero", "text", "cut", "missing"):
        line = error_line(run_cli(SCRIPT, [tmp_path / f"{name}.pt"], expect=2))
        assert f"{name}.pt" in line


def test_script_refuses_a_recording_that_lacks_something(tmp_path: Path):
    recording = read(MODEL)
    del recording["logits"]
    torch.save(recording, tmp_path / "lacking.pt")
    assert "logits" in error_line(run_cli(SCRIPT, [tmp_path / "lacking.pt"], expect=2))
