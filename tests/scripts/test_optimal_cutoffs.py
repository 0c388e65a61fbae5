"""``scripts/optimal_cutoffs.py``: what it prints can be pasted, whatever it reads."""

from pathlib import Path

import numpy as np
import pytest
from fairseq.data import Dictionary

from fairseq_efficient.ops.optimal_cutoffs import naive
from tests.util import ROOT, error_line, run_cli

SCRIPT = str(ROOT / "scripts" / "optimal_cutoffs.py")


def cutoffs_of(output: str) -> list[int]:
    return [int(word) for word in output.splitlines()[0].split(",") if word]


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    words = Dictionary()
    for number in range(60):
        words.add_symbol(f"w{number}", n=int(5000 / (number + 1)))
    words.finalize(padding_factor=8)
    words.save(str(tmp_path / "dict.txt"))
    return tmp_path / "dict.txt"


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--cost", "size"),
        ("--cost", "matmul"),
        ("--logit-cost", "3"),
        ("--dim", "32", "--factor", "2", "--clusters", "4"),
    ],
    ids=str,
)
def test_a_dictionary(dictionary: Path, flags: tuple[str, ...]):
    """Cutoffs are ids: special symbols and padding count as ids, and the special ones are in the head
    (par_search property 11)."""
    output = run_cli(SCRIPT, [str(dictionary), *flags])
    words = Dictionary.load(str(dictionary))
    counts = np.array([0] * 4 + words.count[4:])
    assert len(words) == 64 and "64 ids" in output
    model = {} if "size" in flags else {"dim": 32 if "32" in flags else 512, "factor": 2.0 if "2" in flags else 4.0}
    model |= {} if "--cost" in flags else {"logit": 3.0 if "3" in flags else 80.0}
    clusters = 4 if "4" in flags else 3
    expected, cost = naive.optimal_cutoffs(counts, clusters, smallest_head=5, **model)
    assert naive.partition_cost(counts, cutoffs_of(output), **model) == pytest.approx(cost)
    assert cutoffs_of(output) == expected and expected[0] > 4


def test_a_list_in_any_order(tmp_path: Path):
    numbers = [0.5, 0.01, 0.2, 0.04, 0.25]
    (tmp_path / "p.txt").write_text("\n".join(map(str, numbers)) + "\n\n")
    output = run_cli(SCRIPT, [str(tmp_path / "p.txt"), "--cost", "size", "--clusters", "2"])
    assert cutoffs_of(output) == naive.optimal_cutoffs(np.sort(numbers)[::-1], 2)[0]
    single = run_cli(SCRIPT, [str(tmp_path / "p.txt"), "--clusters", "1"])
    assert cutoffs_of(single) == [] and "full softmax" in single


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("5\n4\n", ["--clusters", "0"], "--clusters 0: must be at least 1"),
        ("5\n4\n", ["--clusters", "3"], "--clusters 3: more than the 2 types"),
        ("5\n4\n", ["--dim", "0"], "--dim 0: must be at least 1"),
        ("5\n4\n", ["--logit-cost", "-1"], "--logit-cost -1.0: must be at least 0"),
        ("5\n4\n", ["--cost", "size", "--logit-cost", "1"], "--logit-cost is for --cost time"),
        ("5\n4\n", ["--factor", "nan"], "--factor nan: must be at least 1"),
        ("5\nx\n", [], "counts.txt:2: expected a number, got 'x'"),
        ("5\n-1\n", [], "counts.txt:2: -1 is not a finite number"),
        ("5\ninf\n", [], "counts.txt:2: inf is not a finite number"),
        ("0\n0\n0\n", [], "all counts are 0"),
        ("", [], "is empty"),
        ("a 3\nb\n", [], "Incorrect dictionary format"),
        ("a 3\nb x\n", [], "Incorrect dictionary format"),
        ("a 3\na 2\n", [], "Duplicate"),
        ("a 3\nb -2\nc 1\n", ["--clusters", "2"], "'b' has a negative count"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, flags: list[str], message: str):
    (tmp_path / "counts.txt").write_text(text)
    assert message in error_line(run_cli(SCRIPT, [str(tmp_path / "counts.txt"), *flags], expect=2))


def test_a_missing_file():
    assert "gone.txt: No such file" in error_line(run_cli(SCRIPT, ["gone.txt"], expect=2))
