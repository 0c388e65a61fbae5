"""Which block stands where: strings over a (attention), f (feed-forward), i (identity: nothing)."""

import math

from fairseq_efficient.errors import UserError

KINDS = "afi"  # in this order everywhere: logits, probabilities, costs
DEFAULT_BLOCKS = 32
RULES = ("interleaved", "par", "sandwich")


def parse_layout(text: str, blocks: int = 0) -> str:
    """``"affaff"``, also with blanks or commas between; nothing is evaluated.

    Args:
        blocks: how many blocks it must have; 0: any number.

    Raises:
        UserError: no block, another letter, another length.
    """
    layout = "".join(text.replace(",", " ").split())
    if not layout:
        raise UserError(f"--layout {text!r}: has no block")
    wrong = sorted(set(layout) - set(KINDS))
    if wrong:
        raise UserError(f"--layout {text}: {wrong[0]!r} is not one of a (attention), f (feed-forward), i (identity)")
    if blocks and len(layout) != blocks:
        raise UserError(f"--layout {text}: has {len(layout)} blocks, but --decoder-blocks says {blocks}")
    return layout


def rule_layout(rule: str, blocks: int, par_ratio: float = 5.0, sandwich: int = 0) -> str:
    """The layout of ``blocks`` blocks by a rule of :data:`RULES`.

    Raises:
        UserError: fewer than one block; a ratio or coefficient that makes no sense.
    """
    if blocks < 1:
        raise UserError(f"--decoder-blocks {blocks}: must be at least 1")
    if rule == "par":
        return par_layout(blocks, par_ratio)
    if rule == "sandwich":
        return sandwich_layout(blocks, sandwich)
    return ("af" * blocks)[:blocks]


def par_layout(blocks: int, ratio: float = 5.0) -> str:
    """One block in ``ratio`` is attention, evenly spread over the first two thirds; the others are feed-forward.

    The rule that the PAR paper (Mandava et al. 2020) reads off its searches; 5 is its best ratio for Transformer-XL.
    """
    if not ratio >= 1.5 or not math.isfinite(ratio):
        raise UserError(f"--par-ratio {ratio}: must be at least 1.5, so that attention fits into two thirds")
    count, region = math.floor(blocks / ratio), 2 * blocks // 3
    places = {number * region // count for number in range(count)}
    return "".join("a" if place in places else "f" for place in range(blocks))


def sandwich_layout(blocks: int, coefficient: int) -> str:
    """``a^k (af)^(n-k) f^k`` of 2n blocks (Press et al. 2020, arXiv 1911.03864)."""
    if blocks % 2:
        raise UserError(f"--decoder-blocks {blocks}: --layout-rule sandwich needs an even number")
    if not 0 <= coefficient <= blocks // 2:
        raise UserError(f"--sandwich-coefficient {coefficient}: must be from 0 to {blocks // 2} (half the blocks)")
    return "a" * coefficient + "af" * (blocks // 2 - coefficient) + "f" * coefficient


def build_layout(layout: str, rule: str, blocks: int, par_ratio: float, sandwich: int) -> str:
    """What the flags say: ``--layout`` if given, else ``--layout-rule`` for ``--decoder-blocks`` blocks."""
    if blocks < 0:
        raise UserError(f"--decoder-blocks {blocks}: must not be negative")
    if layout:
        return parse_layout(layout, blocks)
    return rule_layout(rule, blocks or DEFAULT_BLOCKS, par_ratio, sandwich)


def counts(layout: str) -> dict[str, int]:
    """How many blocks of each kind."""
    return {kind: layout.count(kind) for kind in KINDS}
