"""Holding out parts of a split."""

from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.binarize import TokenWriter
from fairseq_efficient.text.classification.rows import longest_first
from fairseq_efficient.text.holdout import read_tokens, split_lines, split_tokens, spread


def hashes(texts: list[str]) -> list[bytes]:
    return [sha256(text.encode()).digest() for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=20, max_size=60), st.integers(1, 6), st.integers(1, 6))
def test_parts_have_their_sizes_and_no_common_texts(numbers: list[int], first: int, second: int) -> None:
    texts = [str(number) for number in numbers]
    try:
        parts = spread(hashes(texts), {"valid": first, "test": second}, "train")
    except UserError:
        assert len(set(texts)) < 20  # copies can leave no way
        return
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(texts)))
    assert len(parts["valid"]) == first and len(parts["test"]) == second
    held = [{texts[place] for place in places} for places in parts.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = [f"text {number}" for number in range(500)]
    parts = spread(hashes(texts), {"valid": 50}, "train")
    again = spread(hashes(texts[::-1]), {"valid": 50}, "train")
    assert {texts[place] for place in parts["valid"]} == {texts[::-1][place] for place in again["valid"]}
    assert parts["valid"].tolist() == sorted(parts["valid"])
    blocks = Counter(int(place) // 100 for place in parts["valid"])
    assert all(2 <= blocks[block] <= 20 for block in range(5))  # spread over the whole
    more = spread(hashes(texts), {"valid": 60}, "train")
    assert set(parts["valid"]) < set(more["valid"])


def test_too_much_is_refused() -> None:
    with pytest.raises(UserError, match="--holdout: 3 of 3 texts would leave none for train"):
        spread(hashes(["a", "b", "c"]), {"valid": 3}, "train")
    with pytest.raises(UserError, match="--holdout valid=2: only 1 texts"):
        spread(hashes(["a", "b", "b", "b", "b"]), {"valid": 2}, "train")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_files_are_distributed(tmp_path: Path, dtype: type) -> None:
    kind = np.dtype(dtype)
    rows = [np.arange(number % 7, dtype=kind) for number in range(40)]
    with TokenWriter(tmp_path / "train", kind) as writer:
        for row in rows:
            writer.add(row)
    (tmp_path / "train.jsonl").write_text("".join(f"{number}\n" for number in range(40)))
    parts = {"train": np.arange(0, 40, 2), "valid": np.arange(1, 40, 2)[:-1], "test": np.array([39])}
    split_tokens(tmp_path / "train", parts, kind)
    split_lines(tmp_path / "train.jsonl", parts)
    for name, places in parts.items():
        tokens, sizes = read_tokens(tmp_path / name, kind)
        assert sizes.tolist() == [len(rows[place]) for place in places]
        assert tokens.tolist() == np.concatenate([rows[place] for place in places]).tolist()
        assert (tmp_path / f"{name}.jsonl").read_text().split() == [str(place) for place in places]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin"] * 3 + [".idx"] * 3 + [".jsonl"] * 3


def one_by_one(lengths: list[int], room: int) -> list[int]:
    lengths = list(lengths)
    while sum(lengths) > room:
        lengths[0 if len(lengths) == 1 or lengths[0] > lengths[1] else 1] -= 1
    return lengths


@given(st.lists(st.integers(0, 40), min_size=1, max_size=2), st.integers(2, 50))
def test_pairs_are_cut_longest_first(lengths: list[int], room: int) -> None:
    assert longest_first(lengths, room) == one_by_one(lengths, room)
