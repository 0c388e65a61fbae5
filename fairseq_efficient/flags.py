"""Values of flags, read and checked: one line that names the flag, worded alike everywhere."""

import math
from collections.abc import Iterable
from typing import Any

from fairseq_efficient.errors import UserError

ANY_LENGTH = 10**9  # where fairseq wants a number of positions and there is no limit
FARTHEST = 1e6  # from 1, of a temperature or a deviation: beyond it half of a model's numbers leave fp32's range


def flag(name: str) -> str:
    """The flag of a configuration's field."""
    return "--" + name.replace("_", "-")


def check_least(cfg: Any, least: float, *names: str) -> None:
    """UserError for values below ``least``, infinite ones and NaN; None is no value."""
    for name in names:
        value = getattr(cfg, name)
        if value is not None and not least <= value < math.inf:
            wanted = "finite" if value == math.inf else f"at least {least}"
            raise UserError(f"{flag(name)} {value}: must be {wanted}")


def check_shares(cfg: Any, *names: str) -> None:
    """UserError unless each value is at least 0 and below 1, as what is dropped must be; None is no value."""
    for name in names:
        value = getattr(cfg, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{flag(name)} {value}: must be at least 0 and below 1")


def check_scales(cfg: Any, *names: str) -> None:
    """UserError unless each value is a factor that fp32 can compute with: greater than 0, from 10^-6 to 10^6."""
    for name in names:
        value = getattr(cfg, name)
        if not value > 0:
            raise UserError(f"{flag(name)} {value}: must be greater than 0")
        if not 1 / FARTHEST <= value <= FARTHEST:
            raise UserError(f"{flag(name)} {value}: must be between {1 / FARTHEST:g} and {FARTHEST:g}")


def check_blocks(cfg: Any, *widths: str) -> None:
    """UserError where ``--quant-noise-pq`` has blocks of weights that do not divide the widths."""
    size = cfg.quant_noise_pq_block_size
    for name in widths if cfg.quant_noise_pq else ():
        if getattr(cfg, name) % size:
            raise UserError(f"--quant-noise-pq-block-size {size}: must divide {flag(name)} {getattr(cfg, name)}")


def chosen(flag: str, text: str, known: Iterable[str]) -> list[str]:
    """``b,a`` -> ["b", "a"], each once. UserError for a name that is not known."""
    names, known = list(dict.fromkeys(text.split(","))), list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {name}: not one of {', '.join(known)}")
    return names


def numbers(flag: str, text: str, kind: type = int, least: float = 0) -> list[Any]:
    """``2,1`` -> [2, 1], each once. UserError for anything else, infinite ones and NaN among it."""
    try:
        found = list(dict.fromkeys(map(kind, text.split(","))))
    except ValueError:
        found = []
    if not found or not all(least <= one < math.inf for one in found):
        whole = "whole " if kind is int else ""
        raise UserError(f"{flag} {text}: not a comma list of {whole}numbers from {least} up")
    return found


def parse_cutoffs(flag: str, text: str | None, types: int, pad: int) -> list[int]:
    """``"2000,10000"`` -> [2000, 10000]; none -> [].

    Raises:
        UserError: no numbers; not rising; the first not beyond the special symbols; the last not inside the dictionary.
    """
    if text is None or not str(text).strip():
        return []
    wrong = UserError(f"--{flag} {text}: expected rising ids with commas between them, e.g. 2000,10000")
    try:
        found = [int(word) for word in str(text).strip(" ()[]").split(",") if word.strip()]
    except ValueError:
        raise wrong from None
    if not found or sorted(set(found)) != found:
        raise wrong
    if found[0] <= pad < types:
        raise UserError(f"--{flag} {text}: the first must be beyond the special symbols (at least {pad + 1})")
    if found[-1] >= types:
        raise UserError(f"--{flag} {text}: {found[-1]} is beyond the dictionary, which has {types:,} types")
    return found
