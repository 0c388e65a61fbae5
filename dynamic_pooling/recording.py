"""Compare our modules with recordings of the original's numbers; see ``scripts/check_reference.py``."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dynamic_pooling.original import decoder_from_original
from fairseq_efficient.ops.segment_pool import segment_ids, segment_pool, upsample
from fairseq_efficient.recording import Difference, difference


@torch.no_grad()
def check_hourglass(recording: dict[str, Any]) -> Iterator[Difference]:
    """Whole models: outputs of the original for its weights."""
    args = recording["args"]
    decoder = decoder_from_original(args, recording["model_state"], args.get("whitespace_id"))
    tokens, target, given = (recording[key] for key in ("data", "target", "boundaries_gt"))
    given = None if given is None else given.t().bool()
    forced = given if args["boundaries_type"] in ("fixed", "whitespaces") else None
    logits, extra = decoder(tokens.t(), boundary_targets=given, boundaries=forced)
    logits = logits.transpose(0, 1)
    yield difference("logits", logits, recording["logits"], 1e-4)
    loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    yield difference("token_loss", loss, recording["token_loss"].view_as(loss), 1e-4)
    own, _ = decoder(tokens.t()) if forced is not None else (logits.transpose(0, 1), None)
    yield difference("logits, boundaries by our rule", own.transpose(0, 1), recording["logits"], 1e-4)
    stats = recording["stats"]
    if not stats:
        return
    boundary_loss = extra["aux"].get("boundary", torch.zeros(())) / tokens.numel()
    # entropies that tie may be ordered either way: one of these targets then differs
    tolerance = 3e-3 if args["boundaries_type"] == "entropy" else 1e-4
    yield difference("boundary_loss", boundary_loss, torch.tensor(float(recording["boundary_loss"])), tolerance)
    closed = extra["boundaries"]
    yield difference("p_ones", closed.double().mean(), torch.tensor(float(stats["p_ones"])), 1e-6)
    lengths = closed.sum(1).max() + 1
    yield difference("shortened_length", lengths.double(), torch.tensor(float(stats["shortened_length"])), 0)


def check_shortening(recording: dict[str, Any]) -> Iterator[Difference]:
    """The operators: pooling and upsampling."""
    for number, case in enumerate(recording["cases"]):
        boundaries = case["boundaries"].bool()
        hidden = case["hidden"].transpose(0, 1)
        pooled = segment_pool(hidden, boundaries, null=case["null_group"].flatten())
        expected = case["shortened"].transpose(0, 1)
        real = torch.arange(expected.size(1)) < pooled.lengths.unsqueeze(1)
        where = f"{number}, {tuple(boundaries.shape)}: "
        if pooled.values.shape != expected.shape:
            yield difference(where + "shortened", pooled.values, expected, 1e-5)
            continue
        # behind its last closed segment a row of the original holds what nothing reads
        yield difference(where + "shortened", pooled.values[real], expected[real], 1e-5)
        ids = segment_ids(boundaries)[1]
        upsampled = upsample(pooled.values, ids).transpose(0, 1)
        yield difference(where + "upsampled", upsampled, case["upsampled"], 1e-5)


CHECKS = {"hourglass": check_hourglass, "shortening": check_shortening}
