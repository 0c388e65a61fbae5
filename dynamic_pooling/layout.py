"""``--model-config``: how many layers see tokens before pooling, pooled segments, and tokens again after."""

import ast
import re
from typing import NamedTuple

from fairseq_efficient.errors import UserError


class Layout(NamedTuple):
    """Layers of the three stacks. No shortened layers: a plain transformer of ``pre`` layers."""

    pre: int
    shortened: int
    post: int

    def __str__(self) -> str:
        return f"[{self.pre}, ({self.shortened},), {self.post}]"


def parse_layout(text: str) -> Layout:
    """``"[2, (8,), 2]"``, ``"2,8,2"`` or ``"2-8-2"`` -> Layout(2, 8, 2). Nothing is evaluated.

    Raises:
        UserError: another form; a negative or no layer; post layers without shortened ones.
    """
    wrong = UserError(f"--model-config {text}: expected [before, (shortened,), after], e.g. '[2, (8,), 2]'")
    if re.fullmatch(r"\s*\d+\s*[-,]\s*\d+\s*[-,]\s*\d+\s*", text):
        numbers = [int(number) for number in re.findall(r"\d+", text)]
    else:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise wrong from None
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise wrong
        middle = value[1] if isinstance(value[1], (list, tuple)) else [value[1]]
        if len(middle) != 1:
            raise UserError(f"--model-config {text}: one level of pooling only, e.g. '[2, (8,), 2]'")
        numbers = [value[0], middle[0], value[2]]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise wrong
    layout = Layout(*numbers)
    if layout.shortened == 0 and layout.post:
        raise UserError(f"--model-config {text}: without shortened layers write all layers as the first number")
    if layout.pre + layout.shortened == 0:
        raise UserError(f"--model-config {text}: has no layer")
    return layout
