"""scripts/prepare_summarization.py from files to what fairseq reads."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_summarization.py"
SYLLABLES = [a + b for a in "bklmnrst" for b in ("a", "e", "i", "o")]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of a few made-up sentences, summarised by the first two."""
    draw = random.Random(seed)

    def sentence() -> str:
        words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(3, 8))]
        return " ".join(words).capitalize() + "."

    documents = [[sentence() for _ in range(draw.randint(3, 12))] for _ in range(count)]
    return [{"document": " ".join(document), "abstract": " ".join(document[:2])} for document in documents]


def write_jsonl(path: Path, records: list[dict[str, str]]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def prepare(*args: object, expect: int = 0) -> str:
    """Output of the script (stderr if it is to fail: one line)."""
    command = [sys.executable, str(SCRIPT), *map(str, args), "--vocab-size", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == expect, done.stderr
    if expect:
        assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "train.jsonl.gz", rows(60, 1))
    write_jsonl(folder / "dev.jsonl", rows(7, 2))
    write_jsonl(folder / "test.jsonl", rows(5, 3))
    return folder


def splits(corpus: Path) -> list[str]:
    names = {"train": "train.jsonl.gz", "dev-0": "dev.jsonl", "test-A": "test.jsonl"}
    return [part for name, file in names.items() for part in ("--split", f"{name}={corpus / file}")]


@pytest.fixture(scope="module")
def data(corpus: Path) -> Path:
    out = prepare(corpus / "data", *splits(corpus), "--keep-text", "--workers", 2)
    assert "train: 60 documents" in out and "test-A: 5 documents" in out
    return corpus / "data"


def decode(folder: Path, split: str, side: str) -> list[str]:
    words = Dictionary.load(str(folder / f"dict.{side}.txt"))
    found = data_utils.load_indexed_dataset(str(folder / f"{split}.src-tgt.{side}"), words, "mmap")
    assert all(item[-1] == words.eos() and (item[:-1] > words.pad()).all() for item in found)
    assert [len(item) for item in found] == found.sizes.tolist()
    return [words.string(item, "sentencepiece") for item in found]


def test_fairseq_reads_what_was_written(data: Path, corpus: Path) -> None:
    for split, seed, count in (("train", 1, 60), ("dev-0", 2, 7), ("test-A", 3, 5)):
        records = rows(count, seed)
        assert decode(data, split, "src") == [row["document"] for row in records]
        marked = [row["abstract"].replace(". ", ".<q> ") for row in records]
        assert decode(data, split, "tgt") == marked == (data / f"{split}.target.txt").read_text().splitlines()


def test_dictionary(data: Path) -> None:
    words = Dictionary.load(str(data / "dict.src.txt"))
    assert (data / "dict.src.txt").read_bytes() == (data / "dict.tgt.txt").read_bytes()
    spm = sentencepiece.SentencePieceProcessor(model_file=str(data / "spm.model"))
    pieces = [spm.id_to_piece(i) for i in range(spm.get_piece_size()) if not spm.is_unknown(i)]
    assert words.symbols[4:] == pieces and "<q>" in pieces and len(words) <= 120
    assert words.get_count(words.index("<q>")) == 60
    assert spm.encode("a.<q> b", out_type=str).count("<q>") == 1
    report = json.loads((data / "prepare.json").read_text())
    assert report["types"] == len(words) and report["splits"]["train"]["documents"] == 60
    assert report["splits"]["train"]["unknown"] == 0 and report["splits"]["dev-0"]["target_tokens"]["p50"] > 5


def test_same_input_same_bytes(data: Path, corpus: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again", *splits(corpus), "--workers", 1, "--keep-text")
    for path in sorted(data.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_run_again(data: Path, corpus: Path, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    args = [dest, *splits(corpus)]
    prepare(*args)
    before = (dest / "spm.model").stat().st_mtime_ns
    assert "nothing to do" in prepare(*args) and (dest / "spm.model").stat().st_mtime_ns == before
    assert "with other options" in prepare(*args, "--normalization", "nfc", expect=2)
    prepare(*args, "--normalization", "nfc", "--overwrite")
    (dest / "checkpoint.pt").touch()
    assert "would delete checkpoint.pt" in prepare(*args, "--overwrite", expect=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "was not made by this script" in prepare(tmp_path / "mine", *splits(corpus), "--overwrite", expect=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine"]


def test_reuse_of_a_model(data: Path, corpus: Path, tmp_path: Path) -> None:
    split = ["--split", f"extra={corpus / 'dev.jsonl'}"]
    prepare(tmp_path / "new", *split, "--spm", data / "spm.model")
    for name in ("src.bin", "tgt.bin"):
        old, new = data / f"dev-0.src-tgt.{name}", tmp_path / "new" / f"extra.src-tgt.{name}"
        assert old.read_bytes() == new.read_bytes()
    (tmp_path / "dict.txt").write_text("<q> 1\nother 2\n")
    wrong = prepare(tmp_path / "x", *split, "--spm", data / "spm.model", "--dict", tmp_path / "dict.txt", expect=2)
    assert "dict.txt: is not the model's dictionary" in wrong
    (tmp_path / "dict.txt").write_text("<q> 1\nother\n")
    wrong = prepare(tmp_path / "x", *split, "--spm", data / "spm.model", "--dict", tmp_path / "dict.txt", expect=2)
    assert "dict.txt:2: not '<symbol> <count>'" in wrong
    (tmp_path / "no.model").write_bytes(b"no model")
    assert "no.model: not a sentencepiece model" in prepare(
        tmp_path / "x", *split, "--spm", tmp_path / "no.model", expect=2
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ba ke li mo"] * 9), model_prefix=str(tmp_path / "plain"), vocab_size=12, minloglevel=2
    )
    wrong = prepare(tmp_path / "x", *split, "--spm", tmp_path / "plain.model", expect=2)
    assert "plain.model: does not have the piece <q>" in wrong
    assert not (tmp_path / "x").exists()


def test_text_files_geval_and_cohan(tmp_path: Path) -> None:
    records = rows(20)
    source, target = tmp_path / "s.txt", tmp_path / "t.txt"
    source.write_bytes("\ufeff".encode() + "\r\n".join(row["document"] for row in records).encode())
    target.write_bytes("\n".join(row["abstract"] for row in records).encode())
    prepare(tmp_path / "text", "--source", source, "--target", target)
    for split in ("train", "dev-0"):
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / split / "in.tsv").write_bytes(source.read_bytes())
        (tmp_path / "raw" / split / "expected.tsv").write_bytes(target.read_bytes())
    prepare(tmp_path / "geval", "--geval", tmp_path / "raw")
    cohan = [
        {
            "article_text": row["document"].split(". "),
            "abstract_text": [f"<S> {s} </S>" for s in row["abstract"].split(". ")],
        }
        for row in records
    ]
    write_jsonl(tmp_path / "cohan.txt", cohan)  # type: ignore[arg-type]
    prepare(tmp_path / "cohan", "--format", "cohan", "--split", f"train={tmp_path / 'cohan.txt'}")
    expected = [row["document"] for row in records]
    assert decode(tmp_path / "text", "train", "src") == decode(tmp_path / "geval", "dev-0", "src") == expected
    assert all("<q>" in text and "<S>" not in text for text in decode(tmp_path / "cohan", "train", "tgt"))


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"document": "a", "abstract": "\xff"}', "not UTF-8"),
        (b'{"document": "a"}', "no field 'abstract'"),
        (b'{"document": " ", "abstract": "b"}', "empty document"),
        (b'{"document": "a", "abstract": " "}', "empty summary"),
        (b'{"document": "a", "abstract": "b\0"}', "contains a NUL character"),
        (b'{"document": "a", "abstract": "b\\u0000"}', "contains a NUL character"),
        (b'{"document": "a", "abstract": "b\\ud800"}', "half of a surrogate pair"),
        (b"{", "not JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: bytes, why: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(9))
    path.write_bytes(path.read_bytes() + line + b"\n")
    message = prepare(tmp_path / "out", "--split", f"train={path}", expect=2)
    assert message.startswith(f"error: {path}:10: ") and why in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_skip_bad(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*rows(9), {"document": "x"}, {"document": "", "abstract": "x"}])
    out = prepare(tmp_path / "out", "--split", f"train={path}", "--skip-bad")
    assert "train: 9 documents, 2 dropped" in out and f"dropped {path}:10: no field" in out
    write_jsonl(path, [{"document": "x"}])
    assert "split train: no documents (1 dropped)" in prepare(
        tmp_path / "o2", "--split", f"train={path}", "--skip-bad", expect=2
    )


def test_bad_commands(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(3))
    other = tmp_path / "b.txt"
    other.write_text("one\n")
    split = ["--split", f"train={path}"]
    for args, why in (
        ([], "give one kind of input"),
        ([*split, "--corpus", "plos"], "give one kind of input"),
        (["--corpus", "imdb"], "--corpus imdb: not a built-in corpus"),
        (["--split", "train"], "--split train: expected NAME=FILE"),
        (["--split", f"a.b={path}"], "a split name has"),
        ([*split, *split], "given twice"),
        ([*split, "--split", f"train1={path}"], "fairseq-train would join them"),
        (["--split", f"train={tmp_path}/no.jsonl"], "no.jsonl: No such file"),
        (["--source", path, "--target", other], "has 3 lines but"),
        (["--source", path], "--source has splits"),
        ([*split, "--workers", "0"], "--workers 0"),
        ([*split, "--dict", other], "--dict: belongs to"),
    ):
        assert why in prepare(tmp_path / "out", *args, expect=2)
    assert not (tmp_path / "out").exists()


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "train.jsonl"
    write_jsonl(pipe, rows(30))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--split", f"train={pipe}", "--workers", "2"]
    code = (
        "import runpy, signal, sys, time; import fairseq_efficient.text.spm as spm; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # which a background job of a shell ignores
        "spm.train_spm = lambda *a: (print('now', flush=True), time.sleep(60)); "
        f"sys.argv = {command[1:]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    while process.stdout.readline().strip() != "now":
        assert process.poll() is None
        time.sleep(0.01)
    assert any(entry.name.startswith(".out.tmp") for entry in tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert process.returncode == 130 and process.stderr.read().strip() == "interrupted"
    assert not [entry.name for entry in tmp_path.iterdir() if "out" in entry.name]
