"""What ``fairseq-eval-lm`` says at its end."""

import re
from dataclasses import dataclass
from pathlib import Path

from fairseq_efficient.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """``bits`` per token over ``tokens`` targets, scored in ``seconds`` (loading not counted)."""

    bits: float
    tokens: int
    seconds: float


_SPEED = re.compile(r"Evaluated ([\d,]+) tokens in ([\d.]+)s")
_LOSS = re.compile(r"Loss \(base 2\): ([\d.]+)")


def read_evaluation(path: Path) -> Evaluation:
    """The last evaluation in a log. UserError if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None
    speeds, losses = _SPEED.findall(text), _LOSS.findall(text)
    if not speeds or not losses:
        raise UserError(f"{path}: no result of fairseq-eval-lm in it")
    tokens, seconds = speeds[-1]
    return Evaluation(float(losses[-1]), int(tokens.replace(",", "")), float(seconds))
