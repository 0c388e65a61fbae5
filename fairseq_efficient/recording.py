"""Quantities compared with recordings of published implementations; the systems' ``recording.py`` use it."""

from typing import NamedTuple

from torch import Tensor


class Difference(NamedTuple):
    """One compared quantity: where, largest absolute difference, and whether it is within tolerance."""

    name: str
    largest: float
    within: bool
    tolerance: str


def difference(name: str, ours: Tensor, recorded: Tensor, atol: float, rtol: float = 0.0) -> Difference:
    """A shape mismatch counts as an infinite difference."""
    tolerance = f"{atol:g}" + (f" + {rtol:g} x |recorded|" if rtol else "")
    if ours.shape != recorded.shape:
        return Difference(f"{name} {tuple(ours.shape)} vs {tuple(recorded.shape)}", float("inf"), False, tolerance)
    gap = (ours.detach().double() - recorded.double()).abs()
    within = bool((gap <= atol + rtol * recorded.double().abs()).all())
    return Difference(name, float(gap.max()) if gap.numel() else 0.0, within, tolerance)
