"""Layout strings and the rules that make them."""

import re
from itertools import pairwise

import pytest

from fairseq_efficient.errors import UserError
from par_search.layout import build_layout, counts, par_layout, parse_layout, rule_layout, sandwich_layout


def test_strings_are_read():
    assert parse_layout("affi") == "affi" and parse_layout(" a f,f a\n", 4) == "affa"
    assert counts("affia") == {"a": 2, "f": 2, "i": 1}


@pytest.mark.parametrize(
    ("text", "blocks", "message"),
    [
        ("", 0, "--layout '': has no block"),
        (" , ", 0, "has no block"),
        ("afx", 0, "--layout afx: 'x' is not one of"),
        ("aF", 0, "'F' is not one of"),
        ("__import__('os')", 0, "is not one of"),
        ("aff", 4, "--layout aff: has 3 blocks, but --decoder-blocks says 4"),
    ],
)
def test_mistakes_name_the_flag(text: str, blocks: int, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_layout(text, blocks)


def test_the_par_rule():
    """The paper's 6 of 32 (property 14)."""
    assert par_layout(32) == "affafffaffafffaffaffffffffffffff"
    assert (counts(par_layout(36))["a"], counts(par_layout(24))["a"]) == (7, 4)
    assert par_layout(4) == "ffff" and par_layout(1) == "f" and par_layout(6, 3) == "afafff"


@pytest.mark.parametrize("ratio", [1.5, 2, 2.5, 3, 4, 5, 7.3])
def test_the_par_rule_counts(ratio: float):
    """Lengths, counts, the first two thirds, even gaps (property 14)."""
    for blocks in range(1, 70):
        layout = par_layout(blocks, ratio)
        assert len(layout) == blocks and set(layout) <= {"a", "f"}
        assert layout.count("a") == int(blocks / ratio)
        assert layout.rfind("a") < 2 * blocks / 3
        assert not layout.count("a") or layout[0] == "a"
        at = [place for place, kind in enumerate(layout) if kind == "a"]
        gaps = [after - before for before, after in pairwise(at)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_other_rules():
    assert rule_layout("interleaved", 5) == "afafa"
    assert (
        sandwich_layout(8, 0) == "afafafaf" and sandwich_layout(8, 2) == "aaafafff" and sandwich_layout(4, 2) == "aaff"
    )
    assert build_layout("", "par", 0, 5, 0) == par_layout(32)
    assert build_layout("aff", "par", 0, 5, 0) == "aff"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "par", 8, 1.0, 0), "--par-ratio 1.0: must be at least 1.5"),
        (("", "par", 8, float("nan"), 0), "--par-ratio nan"),
        (("", "interleaved", -1, 5, 0), "--decoder-blocks -1: must not be negative"),
        (("", "sandwich", 5, 5, 0), "--decoder-blocks 5: --layout-rule sandwich needs an even number"),
        (("", "sandwich", 6, 5, 4), "--sandwich-coefficient 4: must be from 0 to 3"),
        (("", "sandwich", 6, 5, -1), "--sandwich-coefficient -1"),
    ],
)
def test_rules_that_make_no_sense(arguments: tuple, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        build_layout(*arguments)
