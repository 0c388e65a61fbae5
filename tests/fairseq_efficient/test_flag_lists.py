"""Flags that are lists: what they give, and the line that says what is wrong."""

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import chosen, numbers


def test_lists_keep_their_order_and_no_copies() -> None:
    assert chosen("--rows", "b,a,b", "abc") == ["b", "a"]
    assert numbers("--sizes", "8,2,8") == [8, 2]
    assert numbers("--ratios", "0.5,1", float) == [0.5, 1.0]


def test_mistakes_name_the_flag() -> None:
    with pytest.raises(UserError, match=r"^--rows x: not one of a, b$"):
        chosen("--rows", "a,x", "ab")
    for text in ("", "1,", "1.5", "1,x", "3,1"):
        with pytest.raises(UserError, match=rf"^--sizes {text}: not a comma list of whole numbers from 2 up$"):
            numbers("--sizes", text, least=2)
    for text in ("nan", "inf", "-1"):
        with pytest.raises(UserError, match=rf"^--penalties {text}: not a comma list of numbers from 0 up$"):
            numbers("--penalties", text, float)
