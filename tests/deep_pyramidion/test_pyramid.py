"""``--enc-layers-and-token-width``: read without running anything, checked with one line per mistake."""

import builtins
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deep_pyramidion.pyramid import check_widths, parse_widths, pooling_layers
from fairseq_efficient.errors import UserError


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("{0: 2048, 1: 512}", {0: 2048, 1: 512}),
        ("0:2048,1:512", {0: 2048, 1: 512}),
        (" 1:512 , 0:2048, ", {0: 2048, 1: 512}),
        ("{3:7}", {3: 7}),
        ("", {}),
        (" {} ", {}),
        ("None", {}),
        (None, {}),
    ],
)
def test_both_spellings(text: str | None, widths: dict[int, int]):
    assert parse_widths(text) == widths


NOT_WIDTHS = [
    "512", "0:", ":512", "0-512", "0:512;1:256", "{0:512", "0:512}", "{0:512},1", "[512]", "{512}", "(0, 512)",
    "0:a", "a:512", "0:1.5", "0:512.0", "'0':512", "0:'512'", "True:512", "0:True", "0:None", "0:[512]", "0:{1:2}",
    "0:2**9", "0:1+1",
    "{**{0: 512}}", "**{0:512}", "0:512,**{1:2}", "{0:512 for x in (1,)}", "lambda: 1", "\0", "\ud800",
    "0:512\nimport os", "(" * 3000, "0:" + "9" * 5000, "-" * 4000 + "1:1",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_WIDTHS, ids=range(len(NOT_WIDTHS)))
def test_anything_else_is_refused_in_one_line(text: str):
    with pytest.raises(UserError) as caught:
        parse_widths(text)
    message = str(caught.value)
    assert message.startswith("--enc-layers-and-token-width: ") and "\n" not in message and len(message) < 5000


@pytest.mark.parametrize("text", ["0:512,0:256", "{1: 2, 0: 3, 1: 2}"])
def test_a_layer_named_twice_is_refused(text: str):
    with pytest.raises(UserError, match="named twice"):
        parse_widths(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {file}')", "{{0: __import__('os').system('touch {file}')}}",
        "0:open('{file}','w').write('x')", "{{0: 512}}.update(x=open('{file}', 'w'))",
        "0:(lambda: open('{file}', 'w'))()", "0:512}} if open('{file}', 'w') else {{0:1",
        "0:512, 1:f\"{{open('{file}', 'w')}}\"",
    ],
)  # fmt: skip
def test_p19_code_is_refused_not_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("executed")

    file = tmp_path / "made"
    monkeypatch.setattr(builtins, "eval", forbidden)
    monkeypatch.setattr(builtins, "exec", forbidden)
    with pytest.raises(UserError, match="expected layer:width pairs"):
        parse_widths(text.format(file=file))
    assert not file.exists()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.sampled_from("0123456789:,{} \n-'*()[]abtTrue\\\0#"), max_size=20))
@example("0:1,#")
def test_any_text_is_read_or_refused(text: str):
    try:
        widths = parse_widths(text)
    except UserError as err:
        assert "\n" not in str(err)
    else:
        assert all(type(n) is int for pair in widths.items() for n in pair)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, 50), st.integers(1, 10**6)))
def test_what_is_written_is_read(widths: dict[int, int]):
    assert parse_widths(str(widths)) == widths
    assert parse_widths(",".join(f"{layer}:{width}" for layer, width in widths.items())) == widths


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({4: 8}, "layer 4 does not exist, the encoder has layers 0 to 3"),
        ({-1: 8}, "layer -1 does not exist"),
        ({1: 0}, "layer 1 must keep at least 1 token, not 0"),
        ({1: -5}, "layer 1 must keep at least 1 token, not -5"),
        ({2: 64, 0: 32}, "layer 2 keeps 64 tokens but only 32 reach it"),
        ({0: 8, 1: 4, 2: 5, 3: 2}, "layer 2 keeps 5 tokens but only 4 reach it"),
    ],
)
def test_p19_impossible_pyramids(widths: dict[int, int], message: str):
    with pytest.raises(UserError, match=message):
        check_widths(widths, 4)


def test_possible_pyramids():
    for widths in ({}, {3: 1}, {0: 64, 1: 64, 3: 7}, {3: 4, 0: 9}):
        check_widths(widths, 4)


@pytest.mark.parametrize(
    ("widths", "limit", "pools"),
    [
        ({0: 2048, 1: 512}, 2048, {1: 512}),
        ({0: 2048, 1: 512}, 8192, {0: 2048, 1: 512}),
        ({0: 2048, 1: 512}, 512, {}),
        ({0: 2048, 1: 512}, 513, {1: 512}),
        ({3: 5, 0: 9, 1: 9}, 10, {0: 9, 3: 5}),
        ({}, 100, {}),
    ],
)
def test_only_layers_that_can_pool_have_a_pool(widths: dict[int, int], limit: int, pools: dict[int, int]):
    assert pooling_layers(widths, limit) == pools
