"""Flags whose value is a list with commas: one line that names the flag, worded alike everywhere."""

import math
from collections.abc import Iterable
from typing import Any

from fairseq_efficient.errors import UserError


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
