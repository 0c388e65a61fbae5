"""What fairseq's example port does wrong and ours does not; the numbers are those of the list of its faults."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.segment_lm import SegmentLMTask
from tests.adaptive_span.helpers import SPANS, VARIANTS, sequential_lm
from tests.adaptive_span.test_cli import MODELS, common, last, losses, train
from tests.stream_models import blockwise, tokens
from tests.util import ROOT, assert_close, run_in_process

variants = pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(stream_data, folder, *MODELS["spans"])
    return folder


def test_f10_a_span_that_crosses_a_multiple_of_64_moves_nothing():
    """There the mask comes after the softmax, unnormalised, so that what is trimmed away was part of the result."""
    outs = []
    for span in (95.999, 96.001):  # with the ramp 128 distances or 129: trimmed to 128 or to 192
        model = sequential_lm(attn_span=512, adapt_span=True, adapt_span_cache=True)
        with torch.no_grad():
            for layer in model.decoder.layers:
                layer.self_attn.spans.ratio.fill_(span / 512)
        outs.append(blockwise(model, tokens(2, 400), [100] * 4))
    assert_close(outs[0], outs[1], 1e-3, 1e-3)


def test_f11_spans_are_brought_back_by_the_step_and_not_by_a_forward():
    """There the clamp is inside the forward, after the sizes were read."""
    model = sequential_lm(**SPANS).train()
    spans = model.decoder.layers[1].self_attn.spans.ratio

    def step(*_: object, **__: object) -> None:
        with torch.no_grad():
            spans.fill_(1.7)

    task = object.__new__(SegmentLMTask)
    task.optimizer_step(SimpleNamespace(step=step), model, 3)
    assert spans.tolist() == [1.0] * 3
    before = [one.detach().clone() for one in model.parameters()]
    model(tokens())
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))


def test_f12_perplexity_is_that_of_the_loss(stream_data: Path, tmp_path: Path):
    """There the mean loss is divided by the tokens once more: 1.01 instead of 3.7."""
    output = train(stream_data, tmp_path, *MODELS["spans"])
    lines = [json.loads(line[line.index("{") :]) for line in output.splitlines() if '"ppl"' in line]
    assert len(lines) >= 6
    for values in lines:
        prefix = next((key.removesuffix("ppl") for key in values if key.endswith("_ppl") and "best" not in key), "")
        bits, perplexity = float(values[f"{prefix}loss"]), float(values[f"{prefix}ppl"])
        assert perplexity == pytest.approx(2**bits, rel=0.01) and perplexity > 1.5
        assert math.isclose(float(values.get(f"{prefix}nll_loss", bits)), bits, abs_tol=1e-3)


@variants
def test_f14_a_model_keeps_nothing_between_calls(flags: dict):
    """There memory lies on the decoder: the same input twice gives two results, another number of rows an error."""
    model, stream = sequential_lm(**flags), tokens(3, 20)
    first = model(stream)[0]
    model(tokens(2, 9, seed=4))
    model.train()(tokens(1, 11, seed=5))
    assert torch.equal(model.eval()(stream)[0], first)


def test_f14_validation_leaves_training_alone(stream_data: Path, tmp_path: Path):
    """And lanes may be others there."""
    flags = (*MODELS["spans"], "--dropout", "0.1")
    quiet = losses(train(stream_data, tmp_path / "a", *flags, "--disable-validation"))
    often = ("--validate-interval-updates", "2", "--batch-size-valid", "3")
    found = train(stream_data, tmp_path / "b", *flags, *often)
    assert {update: losses(found)[update] for update in quiet} == quiet and "valid: 3 lane(s)" in found
    ours, theirs = (read_checkpoint(last(tmp_path / name))["model"] for name in "ab")
    assert_close(ours, theirs, 0, 0)


def test_f16_lanes_must_be_said_and_are_believed(stream_data: Path, tmp_path: Path, trained: Path):
    """There --batch-size is missed by a type error, and --batch-size-valid ignored."""
    args = [str(stream_data), "--user-dir", str(ROOT / "adaptive_span"), "--task", "segment_lm", "--arch",
            "sequential_lm_tiny", "--optimizer", "adam", "--save-dir", str(tmp_path), "--cpu"]  # fmt: skip
    with pytest.raises(AssertionError, match="--batch-size"):
        run_in_process("train", args)
    none = ("--batch-size", "2", "--batch-size-valid", "0", "--tokens-per-sample", "16", "--max-update", "1")
    with pytest.raises(UserError, match=r"no lanes; say --batch-size \(lanes\), for validation --batch-size-valid"):
        run_in_process("train", [*args, *none])
    with pytest.raises(UserError, match=r"--max-tokens 9 holds no block of 512 tokens; say --batch-size \(lanes\)"):
        run_in_process("train", [*args, "--max-tokens", "9"])
    output = run_in_process("validate", [*common(stream_data, trained), "--valid-subset", "test", "--batch-size", "2"])
    assert "test: 2 lane(s)" in output
    output = run_in_process("eval_lm", [*common(stream_data, trained), "--gen-subset", "test"])  # fairseq's own limit
    assert "Evaluated 199 tokens" in output


def test_f16_a_context_window_is_refused(stream_data: Path, trained: Path):
    with pytest.raises(UserError, match="--context-window is not for the segment_lm task: memory is the context"):
        run_in_process("eval_lm", [*common(stream_data, trained), "--context-window", "4", "--batch-size", "2"])


def test_f16_fairseqs_own_task_evaluates_it(stream_data: Path, trained: Path):
    """Without memory, of which that task knows nothing."""
    args = [str(stream_data), "--user-dir", str(ROOT / "adaptive_span"), "--task", "language_modeling", "--path",
            last(trained), "--gen-subset", "test", "--sample-break-mode", "none", "--tokens-per-sample", "16",
            "--context-window", "8", "--batch-size", "2", "--cpu"]  # fmt: skip
    assert "Evaluated 200 tokens" in run_in_process("eval_lm", args)


def test_f17_no_file_is_a_link():
    """There the task is a symbolic link into another example, and registered twice (see tests/test_layout.py)."""
    folder = ROOT / "adaptive_span"
    assert not [path for path in folder.rglob("*") if path.is_symlink()] and (folder / "model.py").is_file()


def test_f18_a_stream_may_be_longer_than_spans():
    """There positions end at the span, and one span for a layer has another shape than one for a head."""
    model = sequential_lm(**SPANS)
    assert model.max_positions() >= 10**6
    assert model(tokens(1, 100))[0].shape == (1, 100, 34)
    for flags, count in ((SPANS, 3), ({**SPANS, "adapt_span_layer": True}, 1)):
        found = sequential_lm(**flags).decoder
        assert [layer.self_attn.spans.ratio.shape for layer in found.layers] == [(count,)] * 3
        assert [len(one) for one in found.span_widths()] == [3] * 3  # known by head either way
