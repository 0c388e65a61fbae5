"""The published implementation's numbers, its weights under other names, and text cut by a model."""

from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary

from dynamic_pooling.original import decoder_from_original, model_from_original, rename, weights_for_dictionary
from dynamic_pooling.recording import CHECKS
from dynamic_pooling.segmentation import TextSegmenter
from fairseq_efficient.errors import UserError
from tests.dynamic_pooling.helpers import WORDS, decoder, model
from tests.util import ROOT, assert_close, error_line, run_cli

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDINGS = [*sorted(FIXTURES.glob("hourglass_*.pt")), FIXTURES / "shortening_1.pt"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings_agree(path: Path):
    recording = torch.load(path, weights_only=True)
    found = list(CHECKS[recording["kind"]](recording))
    assert len(found) >= 3 and all(one.within for one in found), found


def test_a_wrong_number_is_found():
    recording = torch.load(FIXTURES / "hourglass_fixed_1.pt", weights_only=True)
    recording["model_state"]["r_r_bias"] = recording["model_state"]["r_r_bias"] + 0.1
    assert not all(one.within for one in CHECKS["hourglass"](recording))


def test_check_reference_reads_them(tmp_path: Path):
    output = run_cli("scripts/check_reference.py", [*map(str, RECORDINGS)])
    assert "all within tolerance" in output


def test_a_foreign_weight_is_named():
    with pytest.raises(UserError, match="weights hold decoder\\.x, which no"):
        rename({"decoder.x": torch.zeros(1)})


def test_an_original_model_over_a_fairseq_dictionary_gives_the_same_probabilities():
    recording = torch.load(FIXTURES / "hourglass_whitespaces_2.pt", weights_only=True)
    original = decoder_from_original(recording["args"], recording["model_state"], 0)
    words = Dictionary()
    for symbol in ["\u2581", *map(str, range(29))]:
        words.add_symbol(symbol)
    ours = model_from_original(recording["args"], recording["model_state"], words)
    tokens = recording["data"].t()
    expected = original(tokens)[0].log_softmax(-1)
    assert_close(ours(tokens + words.nspecial)[0].log_softmax(-1)[..., words.nspecial :], expected, 1e-5, 1e-5)
    words.add_symbol("more")
    with pytest.raises(UserError, match="31 symbols, the checkpoint 30"):
        weights_for_dictionary(rename(recording["model_state"]), words)


@pytest.mark.parametrize("text", ["", "a", "abc de  f ", " x\u00e4b", "ab" * 200])
@pytest.mark.parametrize("kind", ["whitespaces", "fixed", "gumbel"])
def test_segments_join_to_the_text(text: str, kind: str):
    segmenter = TextSegmenter(model(kind, double=False), WORDS, window=64)
    pieces = segmenter.segments(text)
    assert "".join(pieces) == text and all(pieces) == bool(text or pieces == [])
    if kind == "whitespaces":
        assert all(piece.endswith(" ") for piece in pieces[:-1])
    unknown = sum(character not in " abcdefghijklmnopqrs" for character in text)
    assert segmenter.unknown == unknown


@pytest.mark.parametrize("size", [2, 3, 5])
def test_fixed_segments_keep_their_phase_over_windows(size: int):
    """Of several windows the segments are those of one."""
    text = "abcdefghij" * 40
    whole = TextSegmenter(model("fixed", double=False, fixed_sf=size), WORDS, window=1000).segments(text)
    parts = TextSegmenter(model("fixed", double=False, fixed_sf=size), WORDS, window=64).segments(text)
    assert parts == whole and {len(piece) for piece in whole[1:-1]} == {size}


def test_a_model_without_segments_is_refused():
    with pytest.raises(UserError, match="has no segments"):
        TextSegmenter(model("none"), WORDS)
    assert decoder("none").boundary_rule is None


def test_an_original_checkpoint_converts_and_is_evaluated(stream_data: Path, tmp_path: Path):
    """A file as the original writes it, over the data's own characters, through fairseq-eval-lm."""
    recording = torch.load(FIXTURES / "hourglass_entropy_3.pt", weights_only=True)
    words = Dictionary.load(str(stream_data / "dict.txt"))
    types = len(words) - words.nspecial
    state = recording["model_state"]
    for name in ("word_emb.weight", "final_cast.weight", "final_cast.bias"):
        state[name] = state[name][:types].clone()
    torch.save({"args": recording["args"], "model_config": {}, "model_state": state}, tmp_path / "original.pt")
    convert = ["dynamic_pooling", tmp_path / "original.pt", tmp_path / "ours.pt", "--dict", stream_data / "dict.txt"]
    assert "wrote" in run_cli("scripts/convert/from_original.py", convert)
    assert "exists" in error_line(run_cli("scripts/convert/from_original.py", convert, expect=2))
    output = run_cli(
        "eval_lm", [stream_data, "--user-dir", ROOT / "dynamic_pooling", "--task", "dynamic_pooling_lm", "--path",
                    tmp_path / "ours.pt", "--gen-subset", "test", "--cpu", "--tokens-per-sample", "50"]
    )  # fmt: skip
    assert "Evaluated 200 tokens" in output
