"""Schedules as pure functions of the update number: nothing to save, exact on resume."""


def geometric(start: float, end: float, updates: int, num_updates: int | None) -> float:
    """Move from ``start`` to ``end`` by a constant factor per update; exact at both ends.

    Args:
        start, end: positive values before the first and after the last of ``updates`` updates.
        num_updates: updates done; None (a model outside training) means all.
    """
    if num_updates is None or num_updates >= updates:
        return end
    if num_updates <= 0:
        return start
    return start * (end / start) ** (num_updates / updates)


def linear(start: float, end: float, updates: int, num_updates: int | None) -> float:
    """Move from ``start`` to ``end`` in equal steps; exact at both ends, ``end`` at once if ``updates`` is 0.

    Args:
        num_updates: updates done; None (a model outside training) means all.
    """
    if num_updates is None or num_updates >= updates:
        return end
    return start + (end - start) * max(num_updates, 0) / updates
