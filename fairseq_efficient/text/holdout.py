"""Parts held out of a split: the same ones in every run, and copies of one text never on both sides."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import TokenWriter


def spread(hashes: Sequence[bytes], sizes: dict[str, int], rest: str) -> dict[str, np.ndarray]:
    """Places of the items of each part, ascending, int64; those of no part under the name ``rest``.

    Items are taken in the order of their hashes, which is as good as random and does not depend on their order.
    Items of one hash go to one part (a group too large for the room that is left is passed over).
    UserError if the parts ask for more than there is, or copies leave no way to fill them.
    """
    if sum(sizes.values()) >= len(hashes):
        raise UserError(f"--holdout: {sum(sizes.values()):,} of {len(hashes):,} texts would leave none for {rest}")
    order = sorted(range(len(hashes)), key=lambda place: (hashes[place], place))
    groups = [list(group) for _, group in groupby(order, key=lambda place: hashes[place])]
    found: dict[str, np.ndarray] = {}
    taken = np.zeros(len(hashes), dtype=bool)
    for name, size in sizes.items():
        part: list[int] = []
        for group in groups:
            if not taken[group[0]] and len(part) + len(group) <= size:
                part += group
                taken[group] = True
            if len(part) == size:
                break
        if len(part) < size:
            raise UserError(f"--holdout {name}={size}: only {len(part):,} texts can be held out with all their copies")
        found[name] = np.array(sorted(part), dtype=np.int64)
    return {rest: np.flatnonzero(~taken), **found}


def split_tokens(prefix: Path, parts: dict[str, np.ndarray], dtype: np.dtype) -> None:
    """Distribute ``PREFIX.bin`` to the files of the parts, beside it; ``PREFIX`` itself may be one of them."""
    whole = prefix.with_name(f".{prefix.name}.whole")
    for suffix in (".bin", ".idx"):
        prefix.with_name(prefix.name + suffix).rename(whole.with_name(whole.name + suffix))
    tokens, sizes = read_tokens(whole, dtype)
    ends = np.cumsum(sizes, dtype=np.int64)
    for name, places in parts.items():
        with TokenWriter(prefix.with_name(name), dtype) as writer:
            for place in places:
                writer.add(tokens[ends[place] - sizes[place] : ends[place]])
    del tokens
    for suffix in (".bin", ".idx"):
        whole.with_name(whole.name + suffix).unlink()


def read_tokens(prefix: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """What :class:`TokenWriter` wrote: all tokens (mapped, not read) and the sizes of the items, int32."""
    header = 9 + 8 + 1  # magic, version, type
    with open(f"{prefix}.idx", "rb") as index:
        index.seek(header)
        count = int(np.frombuffer(index.read(8), dtype=np.uint64)[0])
        sizes = np.frombuffer(index.read(4 * count), dtype=np.int32)
    total = int(sizes.sum(dtype=np.int64))
    return (np.memmap(f"{prefix}.bin", dtype=dtype, mode="r") if total else np.zeros(0, dtype)), sizes


def split_lines(path: Path, parts: dict[str, np.ndarray]) -> None:
    """Distribute the lines of a file to ``PART`` files of the same suffix beside it."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for name, places in parts.items():
        text = "".join(f"{lines[place]}\n" for place in places)
        path.with_name(name + path.suffix).write_text(text, encoding="utf-8", newline="\n")
