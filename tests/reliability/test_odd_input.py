"""R7, R16, R17: text that takes time, files that are written over, workers that are killed, flags that mean nothing."""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairseq_efficient.compat import mistakes
from fairseq_efficient.errors import CannotWrite, UserError
from fairseq_efficient.files import check_output, write_json
from fairseq_efficient.text import prepared
from fairseq_efficient.text.binarize import bounded_map
from fairseq_efficient.text.boundaries import whole_words
from fairseq_efficient.text.classification.prepare import _readable
from fairseq_efficient.text.classification.read import _HTML_BREAK, Labelled
from fairseq_efficient.text.language_models.read import wiki40b_documents
from fairseq_efficient.text.reading import Bad, parse_json
from fairseq_efficient.text.sentences import split_sentences
from fairseq_efficient.text.subwords import read_subwords
from fairseq_efficient.text.summarization.generate_log import read_generate_log
from tests.util import ROOT, error_line, run_here

# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "size"),
    [
        (lambda n: split_sentences("." * n + "a b"), 200_000),
        (lambda n: split_sentences("no. 5 " * n), 20_000),
        (lambda n: _HTML_BREAK.sub(" ", " " * n), 200_000),
        (lambda n: list(wiki40b_documents(["_START_ARTICLE_\na"] + ["A" * 2**19] * n, "a")), 32),
    ],
    ids=["full stops", "abbreviations", "blanks", "capitals"],
)
def test_time_grows_with_the_length_of_a_text_alone(work: Callable[[int], Any], size: int):
    start = time.process_time()
    work(size)
    assert time.process_time() - start < 2 * float(os.environ.get("TEST_PATIENCE", "1"))


def test_a_word_without_end_is_no_text():
    read = 0

    def blocks() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield "x" * 2**19

    with pytest.raises(UserError, match="1,048,576 symbols without a space: not a text of words"):
        list(whole_words(blocks(), most=2**20))
    assert read < 5 and list(whole_words(["a b", "c d"], most=2)) == ["a ", "bc ", "d"]


def test_runs_of_full_stops_end_sentences_as_before():
    assert split_sentences('Wait... "What?!" He said... no. 5 of them. See Fig. 3. End') == [
        "Wait...", '"What?!"', "He said... no. 5 of them.", "See Fig. 3.", "End",
    ]  # fmt: skip


# --- logs and tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["T-0\ta", "H-0\t-1\ta", "T-999999999\ta"], r"999,999,998 of 1,000,000,000 T- lines are missing, first T-1"),
        (["T-0\ta", "H-0\t-1\ta", "T-3\ta", "H-3\t-1\ta"], r"2 of 4 T- lines are missing, first T-1"),
    ],
)
def test_numbers_of_a_damaged_log(lines: list[str], message: str, tmp_path: Path):
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        read_generate_log(tmp_path / "log")
    (tmp_path / "log").write_text("T-0\ta\nH-0\t-1\ta\nT-" + "9" * 5000 + "\ta\nTranslated , sentences\n")
    assert read_generate_log(tmp_path / "log") == (["a"], ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1, "a": 2}', "the key 'a' is there twice"), ('{"a": NaN}', "NaN is no value of JSON")],
)
def test_json_that_loses_something_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text, strict=True)
    assert parse_json('{"a": {"b": 1}, "c": {"b": 2}}', strict=True) == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize("label", ["\ud800", "c\nd", "c\td", "c\0d"])
def test_labels_are_lines(label: str):
    found = _readable(Labelled("f:1", ("a",), label))
    assert isinstance(found, Bad) and found.why.startswith("its label ")
    assert isinstance(_readable(Labelled("f:1", ("a",), "two words")), Labelled)


def tokenizer(**model: Any) -> dict[str, Any]:
    vocabulary = {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, **model}  # fmt: skip
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "truncation": None, "padding": None, "model": model}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tokenizer(vocab={"[UNK]": 3, "zz": 2**31}), "has ids up to 2,147,483,648 for 2 tokens"),
        (tokenizer(vocab={"[CLS]": 0, "a": 1}), "not a tokenizer that the tokenizers library reads"),
        (
            {**tokenizer(), "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "not a tokenizer that the tokenizers library reads",
        ),
    ],
    ids=["far ids", "no unknown", "panic"],
)
def test_tokenizers_that_the_library_trips_over(content: dict[str, Any], message: str, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        read_subwords(path)
    assert time.process_time() - start < 2 * float(os.environ.get("TEST_PATIENCE", "1"))


# --- what is written --------------------------------------------------------------------------------------------------


def test_nothing_is_written_over_what_is_read(tmp_path: Path):
    hypotheses, references = tmp_path / "hyp", tmp_path / "ref"
    for path in (hypotheses, references):
        path.write_text("a b c\n")
    status, output = run_here("scripts/score_rouge.py", [str(hypotheses), str(references), "--json", str(hypotheses)])
    assert status == 2 and f"--json {hypotheses}: is read, too" in error_line(output)
    assert hypotheses.read_text() == "a b c\n"
    with pytest.raises(UserError, match="no such folder"):
        check_output(tmp_path / "no" / "x", "--json")
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path, "--json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("OLD")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        with pytest.raises(CannotWrite, match=r"--json .*a\.json: File too large"):
            write_json(path, ["x"] * 1000, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "OLD" and os.listdir(tmp_path) == ["a.json"]
    write_json(Path(os.devnull), [])
    assert not Path(os.devnull).is_file()  # a device is written to, not replaced


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line():
    code = "from fairseq_efficient.errors import run_main; run_main(lambda: print('x'))"
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1 and found.stderr == "error: standard output: No space left on device\n"


def _kill_itself(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_told():
    with (
        ProcessPoolExecutor(2, get_context("fork")) as pool,
        pytest.raises(ChildProcessError, match=r"a worker process ended .* fewer --workers"),
    ):
        list(bounded_map(pool, _kill_itself, range(50)))


def options(destination: Path) -> Any:
    return SimpleNamespace(destination=destination, overwrite=False, fingerprint=dict)


def test_folders_of_prepared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / f".out.tmp-{os.getpid()}").mkdir()  # left by a killed process of the same number
    with prepared.staging(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "out" / "a").read_text() == "1"
    (tmp_path / "link").symlink_to("elsewhere")
    with prepared.staging(tmp_path / "link") as folder:
        (folder / "a").write_text("2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "a").read_text() == "2"
    with pytest.raises(UserError, match="File name too long"):
        prepared.existing(options(Path("x" * 300)))
    with pytest.raises(UserError, match="File name too long"):
        prepared.describe([Path("y" * 300, "a.txt")])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^\.: is the folder you are in"):
        prepared.existing(options(Path()))
    for files in (7, [None], ["x" * 300]):
        (tmp_path / "out" / "prepare.json").write_text(json.dumps({"format": 1, "files": files}))
        with pytest.raises(UserError, match="was not made by this script"):
            prepared.existing(options(tmp_path / "out"))


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lenpen", float("nan"), "--lenpen nan: must be a number"),
        ("adam_eps", float("nan"), "--adam-eps nan: must be a number"),
        ("num_workers", 9_999_999, "--num-workers 9999999: must be at most"),
        ("prefix_size", -1, "--prefix-size -1: must not be negative"),
        ("no_repeat_ngram_size", -1, "--no-repeat-ngram-size -1: must not be negative"),
        ("context_window", -1, "--context-window -1: must not be negative"),
        ("softmax_batch", 0, "--softmax-batch 0: must be positive"),
        ("num_shards", 0, "--num-shards 0: must be positive"),
        ("curriculum", -2, "--curriculum -2: must not be negative"),
        ("max_tokens_valid", 0, "--max-tokens-valid 0: must be positive"),
    ],
)
def test_values_without_a_meaning(name: str, value: Any, message: str):
    with pytest.raises(UserError, match=message):
        mistakes.check_values([(name, value)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 2, "nbest": 5}, "--nbest 5: must be at most --beam 2"),
        ({"num_shards": 2, "shard_id": 5}, "--shard-id 5: must be below --num-shards 2"),
        ({"beam": 2, "num_shards": 2, "gen_subset": "test"}, "--num-shards: fairseq-generate would give"),
        ({"bpe": "sentencepiece", "sentencepiece_model": "???"}, "--bpe sentencepiece needs --sentencepiece-model"),
        ({"bpe": "sentencepiece", "sentencepiece_model": "no/file"}, "no/file: No such file"),
    ],
)
def test_decoding_flags_that_do_not_go_together(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        mistakes.check_decoding(argparse.Namespace(**values))


@pytest.mark.parametrize(
    ("scheduler", "values", "message"),
    [
        ("polynomial_decay", {"total_num_update": 0}, "needs --total-num-update"),
        ("inverse_sqrt", {"warmup_updates": 0}, "--warmup-updates: say at least 1"),
    ],
)
def test_schedules_without_an_end(scheduler: str, values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        mistakes.check_decay(scheduler, values)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AssertionError("Sentences lengths should not exceed max_tokens=30"), "--max-tokens 30: an example has more"),
        (AssertionError("min_len cannot be larger than max_len, please adjust these!"), "--min-len: longer than"),
        (NotImplementedError("Unknown post_process_symbol: x"), "--post-process x: unknown"),
        (ValueError("Unsupported language modeling target: future"), "--path: no model of this task"),
    ],
)
def test_what_stock_says_without_a_flag(error: BaseException, message: str):
    assert (mistakes.user_message(error) or "").startswith(message)
