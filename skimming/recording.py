"""Compare our modules with recordings of the original's numbers; see ``scripts/check_reference.py``."""

from collections.abc import Iterator
from typing import Any

import torch

from fairseq_efficient.recording import Difference, difference
from skimming.predictor import SkimPredictor, decide


@torch.no_grad()
def check_skim_predictor(recording: dict[str, Any]) -> Iterator[Difference]:
    """Predictors with the original's weights: their logits, and which tokens they keep without noise."""
    for number, case in enumerate(recording["cases"]):
        predictor = SkimPredictor(case["input_size"], case["hidden_size"] or case["input_size"])
        # the original's names may stand below a module's own
        state = {".".join(key.split(".")[-2:]): value for key, value in case["state"].items()}
        predictor.load_state_dict(state)
        logits = predictor(case["x"])
        where = f"{number}, {tuple(case['x'].shape)}: "
        yield difference(where + "logits", logits, case["logits"], 1e-5)
        yield difference(where + "keep", decide(logits, sample=False), case["keep"].to(logits.dtype), 0)


CHECKS = {"skim_predictor": check_skim_predictor}
