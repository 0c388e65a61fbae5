"""The published predictor's numbers."""

from pathlib import Path

import torch

from skimming.recording import CHECKS
from tests.util import run_cli

RECORDING = Path(__file__).parents[1] / "fixtures" / "skim_predictor.pt"


def test_the_recording_agrees():
    recording = torch.load(RECORDING, weights_only=True)
    found = list(CHECKS[recording["kind"]](recording))
    assert len(found) == 2 * len(recording["cases"]) > 0 and all(one.within for one in found), found


def test_a_wrong_number_is_found():
    recording = torch.load(RECORDING, weights_only=True)
    case = recording["cases"][0]
    recording["cases"].append({**case, "keep": ~case["keep"].bool(), "logits": case["logits"] + 1e-3})
    found = list(CHECKS["skim_predictor"](recording))
    assert [one.within for one in found[-2:]] == [False, False] and all(one.within for one in found[:-2])


def test_names_below_a_module_and_another_width():
    """State dicts cut from a whole model: names with a prefix; a hidden size of its own, and none."""
    from skimming.predictor import SkimPredictor

    cases = []
    for hidden in (None, 5):
        predictor, x = SkimPredictor(12, hidden or 12, init_bias=0.0), torch.randn(3, 4, 12)
        logits = predictor(x).detach()
        state = {f"predictor.{name}": value for name, value in predictor.state_dict().items()}
        cases.append({"input_size": 12, "hidden_size": hidden, "state": state, "x": x, "logits": logits,
                      "keep": logits.argmax(-1)})  # fmt: skip
    assert all(one.within for one in CHECKS["skim_predictor"]({"cases": cases}))


def test_check_reference_reads_it():
    assert "all within tolerance" in run_cli("scripts/check_reference.py", [str(RECORDING)])
