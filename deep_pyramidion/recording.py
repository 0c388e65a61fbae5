"""Compare our modules with recordings of the original's numbers; see ``scripts/check_reference.py``."""

from collections.abc import Iterator
from typing import Any

import torch

from deep_pyramidion.original import build_from_original
from fairseq_efficient.ops.topk_halving import topk_halving
from fairseq_efficient.recording import Difference, difference


@torch.no_grad()
def check_pyramidion(recording: dict[str, Any]) -> Iterator[Difference]:
    """Whole models: outputs of the original for its weights."""
    model = build_from_original(recording["args"], recording["dictionary"], recording["model"])
    encoded = model.encoder(recording["src_tokens"], return_all_hiddens=True)
    states = encoded["encoder_states"]
    if len(states) != len(recording["encoder_states"]):
        yield Difference(
            f"{len(states)} encoder states, not {len(recording['encoder_states'])}", float("inf"), False, "0"
        )
    for number, (ours, recorded) in enumerate(zip(states, recording["encoder_states"], strict=False)):
        yield difference(f"encoder_states[{number}]", ours, recorded, 1e-4)
    yield difference("encoder_out", encoded["encoder_out"][0], recording["encoder_out"], 1e-4)
    logits, _ = model.decoder(recording["prev_output_tokens"], encoder_out=encoded)
    yield difference("logits", logits, recording["logits"], 1e-4)


def check_successive_halving(recording: dict[str, Any]) -> Iterator[Difference]:
    """The operator: outputs and gradients."""
    for case in recording["cases"]:
        values = case["embeddings"].clone().requires_grad_()
        scores = case["scores"].squeeze(-1).clone().requires_grad_()
        pooled = topk_halving(
            values,
            scores,
            case["pooled_len"],
            base=case["base"],
            flip_right=bool(case["flip_right"]),
            sort_back=bool(case["sort_back"]),
        )
        (pooled.values * case["cotangent"]).sum().backward()
        assert values.grad is not None and scores.grad is not None
        where = f"{case['input_len']}->{case['pooled_len']} flip {case['flip_right']} sort {case['sort_back']}: "
        yield difference(where + "pooled", pooled.values, case["pooled"], 1e-5)
        yield difference(where + "pooled_scores", pooled.scores, case["pooled_scores"].view_as(pooled.scores), 1e-5)
        yield difference(where + "grad_embeddings", values.grad, case["grad_embeddings"], 1e-5)
        yield difference(where + "grad_scores", scores.grad, case["grad_scores"].view_as(scores.grad), 1e-4, 1e-4)


CHECKS = {"pyramidion": check_pyramidion, "successive_halving": check_successive_halving}
