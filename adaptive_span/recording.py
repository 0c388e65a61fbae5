"""Compare our modules with recordings of the original's numbers; see ``scripts/check_reference.py``."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive_span.original import decoder_from_original, span_loss
from fairseq_efficient.recording import Difference, difference


@torch.no_grad()
def check_adaptive_span(recording: dict[str, Any]) -> Iterator[Difference]:
    """Log-probabilities (or losses) of a stream, block by block, with the original's behaviour switched on."""
    params, tokens, recorded = recording["params"], recording["tokens"], recording["outputs"]
    decoder = decoder_from_original(recording["model"], params)
    block = int(params["block_size"])
    memory: list[Tensor] | None = None
    for number, expected in enumerate(recorded):
        start = number * block
        states, extra = decoder(tokens[:, start : start + block], memory=memory)
        memory = extra["memory"]
        target = tokens[:, start + 1 : start + block + 1]
        if decoder.adaptive_softmax is None:
            found = states.log_softmax(-1)
        else:
            found = decoder.adaptive_softmax.loss(states, target, reduce=False).view_as(target)
        yield difference(f"outputs of block {number}", found.view_as(expected), expected, 1e-4)
    for number, (ours, theirs) in enumerate(zip(span_loss(decoder), _list(recording["span_loss"]), strict=False)):
        yield difference(f"span_loss of layer {number}", torch.tensor(ours), torch.tensor(float(theirs)), 0.0, 1e-6)
    sizes = [layer.self_attn.cache_size(known) for layer, known in zip(decoder.layers, decoder.known(), strict=True)]
    yield difference("cache_sizes", torch.tensor(sizes), torch.tensor(_list(recording["cache_sizes"])), 0)


def _list(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


CHECKS = {"adaptive_span": check_adaptive_span}
