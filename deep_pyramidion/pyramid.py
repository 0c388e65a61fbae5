"""The pyramid: how many tokens are kept after which encoder layer (``--enc-layers-and-token-width``)."""

import ast

from fairseq_efficient.errors import UserError

FLAG = "--enc-layers-and-token-width"


def parse_widths(text: str | None) -> dict[int, int]:
    """Read ``"{0: 2048, 1: 512}"`` or ``"0:2048,1:512"`` into {layer: tokens kept after it}; empty means no pooling.

    Raises:
        UserError: not such a mapping of whole numbers.
    """
    text = (text or "").strip()
    if text in ("", "{}", "None"):
        return {}
    literal = text if text.startswith("{") else "{" + text + "}"
    wrong = UserError(f"{FLAG}: expected layer:width pairs such as 0:2048,1:512, got {text!r}")
    if len(text) > 4096:
        raise UserError(f"{FLAG}: longer than 4096 characters")
    try:
        node = ast.parse(literal, mode="eval").body
        keys = [ast.literal_eval(key) for key in node.keys]  # type: ignore[attr-defined]
        values = [ast.literal_eval(value) for value in node.values]  # type: ignore[attr-defined]
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        raise wrong from None
    if not isinstance(node, ast.Dict) or not all(type(n) is int for n in keys + values):
        raise wrong
    if len(set(keys)) < len(keys):
        raise UserError(f"{FLAG}: a layer is named twice in {text!r}")
    return dict(zip(keys, values, strict=True))


def check_widths(widths: dict[int, int], num_layers: int) -> None:
    """Raises UserError unless layers exist, widths are positive and never grow."""
    previous = None
    for layer, width in sorted(widths.items()):
        if not 0 <= layer < num_layers:
            raise UserError(f"{FLAG}: layer {layer} does not exist, the encoder has layers 0 to {num_layers - 1}")
        if width < 1:
            raise UserError(f"{FLAG}: layer {layer} must keep at least 1 token, not {width}")
        if previous is not None and width > previous:
            raise UserError(f"{FLAG}: layer {layer} keeps {width} tokens but only {previous} reach it")
        previous = width


def pooling_layers(widths: dict[int, int], max_source_positions: int) -> dict[int, int]:
    """Only the layers that can ever pool: those that keep fewer tokens than reach them.

    A width at or above ``max_source_positions`` (or equal to the one before) keeps everything. Scorers are built for
    these layers alone: a scorer that never pools would have no gradient, and DistributedDataParallel would stop.
    """
    current, pools = max_source_positions, {}
    for layer, width in sorted(widths.items()):
        if width < current:
            pools[layer] = current = width
    return pools
