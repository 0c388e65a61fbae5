"""Small SQuAD files about a paragraph of the tests' vocabulary."""

import json
import random
from pathlib import Path
from typing import Any

from fairseq_efficient.text.subwords import dictionary_text, read_subwords
from tests.fairseq_efficient.test_text_subwords import write_vocabulary
from tests.util import ROOT, run_cli

WORDS = ["good", "bad", "film", "the", "and", "is", "was", "played", "not", "very", "x", "7", "(b)"]
SCRIPT = ROOT / "scripts" / "prepare_classification.py"


def question(name: str, text: str, *answers: tuple[str, int], impossible: bool | None = None) -> dict[str, Any]:
    found = {"id": name, "question": text, "answers": [{"text": one, "answer_start": at} for one, at in answers]}
    return found if impossible is None else {**found, "is_impossible": impossible}


def squad(*paragraphs: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": c, "qas": q} for c, q in paragraphs]}]}


def random_squad(count: int, seed: int = 0, longest: int = 60, impossible: bool = True) -> dict[str, Any]:
    """Two questions a paragraph; the answer to the first is two of its words, the second has none (or is 1.1's)."""
    draw = random.Random(seed)
    paragraphs = []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(4, longest))
        at = draw.randrange(len(words) - 1)
        start = len(" ".join(words[:at])) + (at > 0)
        answer = " ".join(words[at : at + 2])
        asked = " ".join(draw.choices(WORDS, k=4)) + "?"
        first = question(f"{seed}-{number}a", asked, (answer, start), impossible=False if impossible else None)
        second = (
            question(f"{seed}-{number}b", "why not?", impossible=True) if impossible else first | {"id": f"{number}b"}
        )
        paragraphs.append((" ".join(words), [first, second]))
    return squad(*paragraphs)


def tokenizer(folder: Path) -> Path:
    subwords = read_subwords(write_vocabulary(folder / "vocab.txt"))
    (folder / "dict.txt").write_text(dictionary_text(subwords.dictionary()), encoding="utf-8")
    return folder


def prepared(folder: Path, **splits: dict[str, Any]) -> Path:
    """Prepared data of these splits."""
    args = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        args += ["--split", f"{name}={folder / name}.json"]
    given = ["--format", "squad", "--tokenizer", str(tokenizer(folder / "model"))]
    run_cli(str(SCRIPT), [str(folder / "data"), *args, *given])
    return folder / "data"
