"""Longest common subsequences for ROUGE, bit-parallel: the same numbers as ``rouge_score``'s tables, much sooner.

Row i of the table L[i][j] (reference prefix i, candidate prefix j) is kept as one integer V_i whose zero bits mark
the columns where the row steps up, so L[i][j] = j - popcount(V_i & (2^j - 1)) (Hyyro 2004).
"""

from collections.abc import Hashable, Sequence


def _rows(reference: Sequence[Hashable], candidate: Sequence[Hashable]) -> list[int]:
    """V_0 ... V_n for n reference tokens."""
    full = (1 << len(candidate)) - 1
    places: dict[Hashable, int] = {}
    for j, token in enumerate(candidate):
        places[token] = places.get(token, 0) | (1 << j)
    row = full
    rows = [row]
    for token in reference:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
        rows.append(row)
    return rows


def lcs_length(reference: Sequence[Hashable], candidate: Sequence[Hashable]) -> int:
    """Length of a longest common subsequence."""
    return len(candidate) - _rows(reference, candidate)[-1].bit_count()


def lcs_indices(reference: Sequence[Hashable], candidate: Sequence[Hashable]) -> list[int]:
    """Places in ``reference`` of one longest common subsequence, descending: the one ``rouge_score`` reads out."""
    rows = _rows(reference, candidate)
    i, j, found = len(reference), len(candidate), []
    while i and j:
        if reference[i - 1] == candidate[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
            continue
        left = j - 1 - (rows[i] & ((1 << (j - 1)) - 1)).bit_count()
        up = j - (rows[i - 1] & ((1 << j) - 1)).bit_count()
        if left > up:
            j -= 1
        else:
            i -= 1
    return found
