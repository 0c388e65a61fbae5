"""The skimming benchmark's checks: variants that must compute the same do, in a small model on few sentences."""

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from bench_parts.skimming.models import HEAD, PAD, Setup, batch, build, forward, kept
from fairseq_efficient.bench.parity import Check, difference, relative
from skimming import encoder as encoder_module

TOLERANCE = 1e-4  # of logits, in fp32
BACKENDS = ("auto", "loop", "bucket", "padded")


def parity(setup: Setup) -> Iterator[Check]:
    setup = replace(setup, dtype="fp32", batch=6, layers=3, dim=min(setup.dim, 96), dropout=0.0)
    n = 40
    expected = forward("stock", n, setup)()
    for backend in BACKENDS:
        ours = replace(setup, backend=backend)
        for kind in ("packed", "predictor64", "predictor-full"):
            yield Check(f"{kind} equals stock ({backend})", difference(forward(kind, n, ours)(), expected), TOLERANCE)
        for kind in ("keep0.5", "keep0.1", "uneven"):
            name = f"{kind} equals removal, sentence by sentence ({backend})"
            yield Check(name, difference(forward(kind, n, ours)(), removal(kind, n, setup)), TOLERANCE)
    yield Check(
        "masked equals keep0.5", difference(forward("masked", n, setup)(), removal("keep0.5", n, setup)), TOLERANCE
    )
    yield _gradient(n, setup)


@torch.no_grad()
def removal(kind: str, n: int, setup: Setup) -> Tensor:
    """Logits of stock layers over each sentence's kept tokens alone."""
    model, tokens, chosen = build("stock", n, setup), batch(n, setup), kept(kind, n, setup)
    encoder, firsts = model.encoder.sentence_encoder, []
    embedded = encoder.forward_embedding(tokens)[0]
    for row, keep in zip(embedded, chosen, strict=True):
        x = row[keep].unsqueeze(1)
        for layer in encoder.layers:
            x = layer(x, encoder_padding_mask=None)
        firsts.append(x[0])
    return model.classification_heads[HEAD](torch.stack(firsts))


def _gradient(n: int, setup: Setup) -> Check:
    """Training under a mask that keeps all has stock's gradient."""
    grads = []
    tokens = batch(n, setup)
    for kind in ("stock", "predictor64"):
        model = build(kind, n, setup).train()
        model.zero_grad(set_to_none=True)
        ones = torch.ones(tokens.shape, device=setup.place, requires_grad=True)
        with patch.object(encoder_module, "decide", lambda *_, ones=ones: ones * 1.0):
            model(tokens, classification_head_name=HEAD)[0].square().sum().backward()
        grads.append(model.encoder.sentence_encoder.layers[0].fc1.weight.grad.clone())
        model.eval().zero_grad(set_to_none=True)
    return Check("training that keeps all has stock's gradient", relative(grads[1], grads[0]), TOLERANCE)


__all__ = ["PAD", "parity", "removal"]
