"""The published implementation's numbers, and its checkpoints as ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from adaptive_span.original import config_from_weights, decoder_from_original, model_from_original, rename
from adaptive_span.recording import CHECKS
from fairseq_efficient.errors import UserError
from tests.made_data import make_stream_data
from tests.util import ROOT, assert_close, error_line, run_cli, run_in_process

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDINGS = sorted(FIXTURES.glob("adaptive_span_*.pt"))
recordings = pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_there_are_recordings():
    kinds = {path.stem.removeprefix("adaptive_span_").rpartition("_")[0] for path in RECORDINGS}
    assert kinds == {"adaptive_io", "persistent", "span", "span_cache", "span_persistent", "trimmed_cache"}


@recordings
def test_recordings_agree(path: Path):
    recording = read(path)
    found = list(CHECKS[recording["kind"]](recording))
    assert len(found) >= 3 and all(one.within for one in found), found


@recordings
def test_the_exact_mask_is_close_and_sees_no_zeros_if_asked(path: Path):
    """With tame scores softmax(s + log m) is the original's number too; the empty cache is not."""
    recording = read(path)
    decoder = decoder_from_original(recording["model"], recording["params"])
    tokens = recording["tokens"][:, : recording["params"]["block_size"]]
    expected = decoder(tokens)[0]
    if decoder.options.layer.attention.spans is None or decoder.adaptive_softmax is not None:
        return
    cfg = config_from_weights(recording["model"], recording["params"])
    from adaptive_span.decoder import SequentialDecoder
    from adaptive_span.model import decoder_options
    from fairseq_efficient.originals import BareTypes

    outs = []
    for empty in ("zeros", "masked"):
        cfg.adapt_span_mask, cfg.empty_cache = "exact", empty
        types = BareTypes(expected.size(-1))
        ours = SequentialDecoder(types, decoder_options(cfg, types)).eval()
        ours.load_state_dict(rename(recording["model"]))
        outs.append(ours(tokens)[0])
    assert_close(outs[0], expected, 2e-2, 1e-3)
    assert (outs[1] - expected).abs().max() > 0.05


def test_a_wrong_number_is_found():
    recording = read(RECORDINGS[0])
    recording["model"]["module.key_pe"] = recording["model"]["module.key_pe"] + 0.1
    assert not all(one.within for one in CHECKS["adaptive_span"](recording))


def test_check_reference_reads_them():
    assert "all within tolerance" in run_cli("scripts/check_reference.py", [*map(str, RECORDINGS)])


def test_a_foreign_weight_is_named():
    with pytest.raises(UserError, match="weights hold decoder\\.x, which no"):
        rename({"decoder.x": torch.zeros(1)})
    with pytest.raises(UserError, match="not a model of adaptive-span"):
        config_from_weights({"decoder.x": torch.zeros(1)})


def words_of(types: int, eos: int | None = None) -> Dictionary:
    words = Dictionary()
    for number in range(types):
        words.add_symbol("<eos>" if number == eos else f"w{number}", n=9)
    return words


@recordings
def test_a_model_over_a_fairseq_dictionary_gives_the_same_probabilities(path: Path):
    recording = read(path)
    original = decoder_from_original(recording["model"])
    types = len(original.dictionary)
    words = words_of(types)
    ours = model_from_original(recording["model"], words)[0]
    tokens = recording["tokens"][:, :20]

    def log_probs(decoder: Any, given: torch.Tensor) -> torch.Tensor:
        out, extra = decoder(given)
        found: torch.Tensor = decoder.get_normalized_probs((out, extra), log_probs=True)
        return found

    expected = log_probs(original, tokens)
    found = log_probs(ours, tokens + words.nspecial)
    assert_close(found[..., words.nspecial :], expected, 2e-4, 1e-4)
    assert float(found[..., : words.nspecial].exp().max()) == 0.0
    words.add_symbol("more")
    with pytest.raises(UserError, match=f"{types + 1} symbols, the checkpoint {types}"):
        model_from_original(recording["model"], words)


@pytest.mark.parametrize("made_up", ["layers.999999999.norm1.weight", "layers.999.ff.fc1.weight"])
def test_names_do_not_make_layers(made_up: str):
    """The number of layers is read off the names: one name more is no model of a billion layers."""
    weights = read(FIXTURES / "adaptive_span_span_21.pt")["model"]
    weights = {**weights, made_up: torch.ones(1)}
    words = words_of(len(decoder_from_original(read(FIXTURES / "adaptive_span_span_21.pt")["model"]).dictionary))
    with pytest.raises(UserError, match=r"much larger than the weights|do not fit the model"):
        decoder_from_original(weights)
    with pytest.raises(UserError, match=r"much larger than the weights|do not fit the model"):
        model_from_original(weights, words, "crafted.pt")


def test_its_end_of_line_is_ours():
    recording = read(FIXTURES / "adaptive_span_span_21.pt")
    original = decoder_from_original(recording["model"])
    words = words_of(len(original.dictionary), eos=7)
    ours, _ = model_from_original(recording["model"], words)
    tokens = recording["tokens"][:, :20].clone()
    tokens[:, 3] = 7
    expected = original(tokens)[0].log_softmax(-1)
    moved = tokens + words.nspecial
    moved[tokens == 7] = words.eos()
    found = ours(moved)[0].log_softmax(-1)
    assert_close(found[..., words.eos()], expected[..., 7], 1e-4, 1e-4)
    assert float(found[..., words.nspecial + 7].exp().max()) == 0.0


@pytest.mark.parametrize("name", ["span_cache_22", "span_persistent_24", "adaptive_io_29"])
def test_a_published_checkpoint_becomes_ours(name: str, tmp_path: Path):
    """From the keys that its trainer writes to fairseq-eval-lm."""
    recording = read(FIXTURES / f"adaptive_span_{name}.pt")
    original = tmp_path / "original.pt"
    state = {"iter_no": 3, "model": recording["model"], "optimizer": {"state": {}, "param_groups": []}, "logger": {}}
    torch.save(state, original)
    types = len(decoder_from_original(recording["model"]).dictionary)
    words = words_of(types)
    data = make_stream_data(tmp_path / "data")
    words.save(str(data / "dict.txt"))
    args = ["adaptive_span", str(original), str(tmp_path / "ours.pt"), "--dict", str(data / "dict.txt")]
    assert "weights" in run_cli("scripts/convert/from_original.py", args)
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "ours.pt")], {"data": str(data)})
    assert models[0].decoder.options.layer.attention.published_mask and task.__class__.__name__ == "SegmentLMTask"
    flags = [str(data), "--user-dir", str(ROOT / "adaptive_span"), "--task", "segment_lm", "--path",
             str(tmp_path / "ours.pt"), "--cpu", "--gen-subset", "test", "--batch-size", "2"]  # fmt: skip
    assert "Evaluated 199 tokens" in run_in_process("eval_lm", flags)
    line = error_line(run_cli("scripts/convert/from_original.py", args, expect=2))
    assert "exists" in line
    torch.save({"iter_no": 3}, tmp_path / "empty.pt")
    args[1:3] = [str(tmp_path / "empty.pt"), str(tmp_path / "other.pt")]
    line = error_line(run_cli("scripts/convert/from_original.py", args, expect=2))
    assert "not a checkpoint of adaptive-span" in line
