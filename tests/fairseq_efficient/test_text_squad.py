"""SQuAD files: reading, windows, the tokens of an answer, and what is written."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.squad.prepare import read_squad
from fairseq_efficient.text.squad.windows import answer_tokens, cut_windows
from fairseq_efficient.text.subwords import read_subwords
from tests.fairseq_efficient.test_text_subwords import write_bytes_bpe, write_vocabulary
from tests.squad_data import SCRIPT, question, random_squad, squad, tokenizer
from tests.util import error_line, run_cli

TEXT = "the caf\u00e9 \U0001f642 was good"


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_read(tmp_path: Path) -> None:
    content = squad(
        (TEXT, [question("1", "what?", ("good", 15), ("was good", 11)), question("2", "why?", impossible=True)]),
        ("x", [question("3", "who?", ("x", 0), impossible=False)]),
    )
    path = tmp_path / "a.json.xz"
    path.write_bytes(lzma.compress(json.dumps(content).encode()))
    found = read_squad(path)
    assert found.paragraphs == [TEXT, "x"] and found.version2 and not found.bad and not found.mismatched
    assert [(one.id, one.paragraph, one.usable, one.impossible) for one in found.questions] == [
        ("1", 0, (True, True), False),
        ("2", 0, (), True),
        ("3", 1, (True,), False),
    ]
    assert not read_squad(write(tmp_path / "b.json", squad(("x", [question("1", "q", ("x", 0))])))).version2


def test_answers_that_do_not_match_and_bad_questions(tmp_path: Path) -> None:
    content = squad(
        (TEXT, [
            question("1", "what?", ("good", 14), ("good", 15)), question("1", "again?", ("the", 0)),
            question("2", " ", ("the", 0)), question("3", "why?"), question("4", "q", ("the", -1)),
            question("5", "half \ud800", ("the", 0)), question("6", "q", (" ", 3)),
            question("\ud8007", "q", ("the", 0)), question("8", "q", ("\ud800", 0)),
        ]),
    )  # fmt: skip
    found = read_squad(write(tmp_path / "a.json", content))
    assert [one.id for one in found.questions] == ["1", "4", "6"]
    assert [one.usable for one in found.questions] == [(False, True), (False,), (False,)]
    assert [one.why for one in found.bad] == [
        "question 1 is there twice",
        "question 2: empty question",
        "question 3: neither an answer nor is_impossible",
        "question 5: holds half of a surrogate pair",
        "question \\ud8007: holds half of a surrogate pair",
        "question 8: holds half of a surrogate pair",
    ]
    assert "qas[0].answers[0]" in found.mismatched[0].where and len(found.mismatched) == 3
    assert found.mismatched[0].why == "question 1: answer 'good' is not at character 14, where ' goo' is"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", r":1: not JSON"),
        (b'{"data": "\xe9"}', "not UTF-8"),
        (b"[]", "no 'data' that is a list"),
        (b'{"data": [{}]}', r"data\[0\]: no 'paragraphs'"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', r"paragraphs\[0\]: no 'context' that is a str"),
        (b'{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1"}]}]}]}', r"qas\[0\]: no 'question'"),
        (
            b'{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1, "question": "q", "answers": [{}]}]}]}]}',
            r"answers\[0\]: no 'text'",
        ),
        (
            b'{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1, "question": "q", "answers": 5}]}]}]}',
            r"qas\[0\]: no 'answers' that is a list",
        ),
    ],
)
def test_not_squad(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=why):
        read_squad(tmp_path / "a.json")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(3, 12), st.integers(0, 90)), max_size=8), st.integers(0, 7))
def test_windows_cover_each_text(sizes: list[tuple[int, int]], stride: int) -> None:
    fixed, lengths = (np.array([pair[side] for pair in sizes], dtype=np.int64) for side in (0, 1))
    text, start, length = cut_windows(fixed, lengths, 20, stride)
    assert (np.diff(text) >= 0).all() and (length + fixed[text] <= 20).all()
    for number in range(len(sizes)):
        mine = text == number
        starts, stops = start[mine], (start + length)[mine]
        assert starts[0] == 0 and stops[-1] == lengths[number]
        assert (starts[1:] == stops[:-1] - stride).all()  # neighbours share exactly the stride
        assert (length[mine][:-1] == 20 - fixed[number]).all()  # full, so no fewer windows would do
        assert len(starts) == 1 or length[mine][-1] > stride


def test_windows_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="--doc-stride 8: windows of --max-seq-length 20 leave only 8 tokens"):
        cut_windows(np.array([3, 12]), np.array([5, 5]), 20, 8)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_tokens_of_an_answer(tmp_path: Path, kind: str) -> None:
    folder = write_vocabulary(tmp_path / "vocab.txt") if kind == "wordpiece" else write_bytes_bpe(tmp_path)
    subwords = read_subwords(folder)
    offsets = subwords.encode_offsets([TEXT])[0][1]
    for start in range(len(TEXT)):
        for end in range(start + 1, len(TEXT) + 1):
            if not TEXT[start:end].strip():
                continue
            found = answer_tokens(offsets, start, end)
            assert found is not None
            first, last = found
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
            assert (first, last) == (inside[0], inside[-1])
    assert answer_tokens(offsets, 3, 4) is None or kind == "bytes"  # a blank has no token
    assert TEXT[offsets[0, 0] : offsets[0, 1]] in ("the", "t")


def test_prepare(tmp_path: Path) -> None:
    content = random_squad(6)
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    train, model = write(tmp_path / "train.json", content), tokenizer(tmp_path / "model")
    args = [str(tmp_path / "data"), "--split", f"train={train}", "--format", "squad", "--tokenizer", str(model)]
    out = run_cli(str(SCRIPT), args)
    assert "train: 12 questions about 6 paragraphs, 6 without an answer; 1 answers do not match" in out
    assert len([line for line in out.splitlines() if line.startswith("answer not used: ")]) == 1
    assert "--task skim_squad" in out and "1 questions cannot be trained on" in out
    report = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert report["version2"] and report["splits"]["train"]["mismatched_answers"] == 1
    lines = (tmp_path / "data" / "label" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["usable"] for line in lines[:3]] == [[False], [], [True]]
    assert "nothing to do" in run_cli(str(SCRIPT), args)
    content["data"][0]["paragraphs"][0]["qas"][1]["question"] = ""
    write(train, content)
    out = run_cli(str(SCRIPT), [*args, "--overwrite"], expect=2)
    assert "question 0-0b: empty question" in error_line(out)
    assert "1 dropped" in run_cli(str(SCRIPT), [*args, "--overwrite", "--skip-bad"])
    assert "not for --format squad" in error_line(run_cli(str(SCRIPT), [*args, "--holdout", "2"], expect=2))


def test_answerable_only(tmp_path: Path) -> None:
    """SQuAD 2.0 as 1.1; a paragraph of unanswerable questions alone goes with them."""
    content = random_squad(6)
    del content["data"][0]["paragraphs"][2]["qas"][0]
    train, model = write(tmp_path / "train.json", content), tokenizer(tmp_path / "model")
    args = [str(tmp_path / "data"), "--split", f"train={train}", "--tokenizer", str(model), "--answerable-only"]
    out = run_cli(str(SCRIPT), [*args, "--format", "squad"])
    assert "train: 5 questions about 5 paragraphs, 0 without an answer" in out
    assert "6 without an answer left out" in out
    assert not json.loads((tmp_path / "data" / "prepare.json").read_text())["version2"]
    folder = tmp_path / "data"
    questions = [json.loads(line) for line in (folder / "label" / "train.jsonl").read_text().splitlines()]
    texts = [json.loads(line) for line in (folder / "input1" / "train.jsonl").read_text().splitlines()]
    assert [one["paragraph"] for one in questions] == [0, 1, 2, 3, 4] and len(texts) == 5
    for one in questions:
        (answer, start), text = one["answers"][0], texts[one["paragraph"]]
        assert text[start : start + len(answer)] == answer
    assert "nothing to do" in run_cli(str(SCRIPT), [*args, "--format", "squad"])
    assert "other options" in error_line(run_cli(str(SCRIPT), [*args[:-1], "--format", "squad"], expect=2))
    none = write(tmp_path / "none.json", squad(("x", [question("1", "q", impossible=True)])))
    out = run_cli(
        str(SCRIPT), [str(tmp_path / "no"), "--split", f"train={none}", *args[3:], "--format", "squad"], expect=2
    )
    assert error_line(out).endswith("--answerable-only: split train has no question with an answer")
    out = run_cli(str(SCRIPT), [str(tmp_path / "no"), "--split", f"train={none}", *args[3:]], expect=2)
    assert error_line(out).endswith("--answerable-only: belongs to --format squad")
