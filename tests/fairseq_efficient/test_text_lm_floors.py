"""Count models and xz: against a plain count, and as distributions."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_efficient.text.language_models.floors import count_models, written, xz_bits
from tests.fairseq_efficient.test_hub import CODERS, prepared
from tests.util import ROOT, error_line, run_cli

SCRIPT = str(ROOT / "scripts" / "floors.py")


def share(train: list[int], context: tuple[int, ...], token: int, types: int) -> float:
    """Witten-Bell by the formula, with dictionaries."""
    below = share(train, context[1:], token, types) if context else 1 / types
    padded = [2] * len(context) + train
    seen = Counter(
        padded[place] for place in range(len(context), len(padded))
        if tuple(padded[place - len(context) : place]) == context
    )  # fmt: skip
    total = seen.total()
    return (seen[token] + len(seen) * below) / (total + len(seen)) if total else below


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=30), st.lists(st.integers(2, 6), min_size=1, max_size=12),
    st.integers(0, 3),
)  # fmt: skip
def test_count_models_are_those_of_the_formula(train: list[int], test: list[int], order: int):
    found = count_models(np.array(train), np.array(test), 7, order)
    assert len(found) == order + 1
    numbers = 0
    for size, (bits, kept) in enumerate(found):
        padded = [2] * size + test
        places = [(tuple(padded[place : place + size]), token) for place, token in enumerate(test)]
        expected = [-math.log2(share(train, context, token, 7)) for context, token in places]
        assert bits == pytest.approx(sum(expected) / len(test))
        seen = {tuple(([2] * size + train)[place : place + size + 1]) for place in range(len(train))}
        numbers += len(seen) + 2 * len({event[:-1] for event in seen})  # of a context: its sum, its types
        assert kept == numbers


def test_count_models_are_distributions():
    """Whatever stands before, the shares of all types add up to 1."""
    train = np.array([2, 4, 5, 4, 5, 6, 4, 4])
    for before in ([], [4, 5], [6, 6, 3], [4, 5, 4]):
        alone = [count_models(train, np.array([*before, token]), 8, 3) for token in range(8)]
        known = count_models(train, np.array(before), 8, 3) if before else None
        for size in range(4):
            whole = [2 ** -(alone[token][size].bits * (len(before) + 1)) for token in range(8)]
            assert sum(whole) == pytest.approx(2 ** -(known[size].bits * len(before)) if known else 1)


def test_context_helps_where_it_tells():
    train = np.tile([4, 5, 6, 7], 200)
    models = count_models(train, train[:40], 9, 2)
    assert models[0].bits == pytest.approx(2, abs=0.05) and models[1].bits < 0.1


def test_xz_has_read_the_training_text():
    draw = np.random.default_rng(0)
    train = bytes(draw.integers(0, 256, 4000, dtype=np.uint8))
    assert xz_bits(train, train[1000:3000]) < 0.05 * xz_bits(b"", train[1000:3000])
    assert xz_bits(train, bytes(draw.integers(0, 256, 2000, dtype=np.uint8))) > 7.9 * 2000


def test_text_is_written_back():
    tokens = np.array([4, 5, 2, 6, 3])
    assert written(tokens, ["▁", "é", "<0x0A>"], "characters") == " é\0\n\ufffd".encode()
    assert written(tokens, ["▁", "<0xE9>", "<0x0A>"], "bytes") == b" \xe9\0\n" + "\ufffd".encode()


@pytest.mark.parametrize("name", CODERS)
def test_the_script(name: str, tmp_path: Path):
    data, out = prepared(tmp_path, *CODERS[name]), tmp_path / "floors.json"
    said = run_cli(SCRIPT, [str(data), "--subset", "valid", "--order", "2", "--json", str(out)])
    found = json.loads(out.read_text())
    tokens = json.loads((data / "prepare.json").read_text())["splits"]["valid"]["tokens"]
    assert found["tokens"] == tokens and f"{tokens:,} tokens ({found['kind']})" in said
    models = found["count_models"]
    assert len(models) == 3 and models[2]["bits"] < models[0]["bits"]  # valid is train
    assert ("xz_bits" in found) == (found["kind"] in ("characters", "bytes"))
    assert f"perplexity {2 ** models[1]['bits']:,.2f}" in said


def refused(flags: list[str]) -> str:
    return error_line(run_cli(SCRIPT, flags, expect=2))


def test_mistakes(tmp_path: Path):
    data = prepared(tmp_path, *CODERS["text8"])
    for flags, said in (
        ([str(data), "--subset", "test"], f"{data}: no split test"),
        ([str(data), "--order", "-1"], "--order -1: must be from 0 to 20"),
        ([str(tmp_path)], "neither labelled texts nor data of a language model"),
        ([str(data), "--subset", "valid", "--json", str(tmp_path)], "is a folder"),
    ):
        assert said in refused(flags)
    (data / "prepare.json").write_text("{}")
    assert "not prepared by scripts/prepare_lm.py" in refused([str(data)])
