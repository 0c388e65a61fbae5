"""Whether the weights of a checkpoint are of a model like this one: one line that says which flag is another."""

import re
from typing import Any

from adaptive_span.layers import LayerOptions
from fairseq_efficient.errors import UserError


def check_weights(options: LayerOptions, layers: int, weights: dict[str, Any]) -> None:
    """Raises UserError if ``weights``, by names inside the decoder, are of another span, depth or kind of layer."""
    attention = options.attention
    table = weights.get("positions")
    if table is not None and table.size(0) != attention.longest:
        raise UserError(
            f"the checkpoint was trained with --attn-span {table.size(0)}, the model has {attention.longest}: say "
            f"--attn-span {table.size(0)}"
        )
    numbers = [int(found[1]) for key in weights if (found := re.match(r"layers\.(\d+)\.", key))]
    if not numbers:
        return
    if max(numbers) + 1 != layers:
        raise UserError(
            f"the checkpoint has {max(numbers) + 1} layers, the model has {layers}: say --decoder-layers "
            f"{max(numbers) + 1}"
        )
    first = "layers.0.self_attn."
    persistent = weights.get(f"{first}persistent_key")
    size = 0 if persistent is None else persistent.size(1)
    if size != attention.persistent:
        raise UserError(
            f"the checkpoint has {size} persistent vectors, the model has {attention.persistent}: say --pers-mem-size "
            f"{size}"
        )
    spans, saved, ours = attention.spans, "no learned spans", "no learned spans"
    for key, flags in (("ratio", "--adapt-span"), ("weight", "--adapt-span --dynamic-span")):
        if f"{first}spans.{key}" in weights:
            saved = flags + " --adapt-span-layer" * (len(weights[f"{first}spans.{key}"]) < attention.heads)
        if spans is not None and spans.by_token == (key == "weight"):
            ours = flags + " --adapt-span-layer" * (spans.by_layer and attention.heads > 1)
    if saved != ours:
        raise UserError(f"the checkpoint is of a model with {saved}, this one has {ours}")
