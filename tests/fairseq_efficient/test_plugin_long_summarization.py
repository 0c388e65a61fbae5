"""The task ``long_summarization`` by itself and through fairseq's commands."""

import argparse
import random
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.tasks import TASK_REGISTRY

from fairseq_efficient.data.long_documents import LongDocumentDataset, cut_targets, select_rows
from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.long_summarization import LongSummarizationConfig, generation_args
from fairseq_efficient.text.reading import Example
from fairseq_efficient.text.summarization.generate_log import read_generate_log
from fairseq_efficient.text.summarization.prepare import Options, prepare
from fairseq_efficient.text.summarization.rouge import corpus_rouge
from tests.util import ROOT, SYSTEMS, Command, error_line, run_cli

SYSTEM = SYSTEMS[0]
COUNTS = {"train": 45, "dev-0": 13, "test-A": 11}
WORDS = [a + b for a in "bklmnr" for b in ("ada", "emi", "opu")]
SUMMARY = "The thing is done. It works well."


# --- the dataset ---------------------------------------------------------------------------------------------------


def make_dataset(lengths: list[int], training: bool = True, targets: bool = True) -> LongDocumentDataset:
    """Pairs of equal lengths (EOS included): tokens 4, 5, 6 ... and EOS."""
    words = Dictionary()
    for i in range(50):
        words.add_symbol(f"w{i}")
    rows = [torch.tensor([*range(4, 3 + n), 2] if n else [], dtype=torch.long) for n in lengths]
    target = {"tgt": rows, "tgt_sizes": lengths} if targets else {}
    return LongDocumentDataset(
        rows, lengths, words, tgt_dict=words, left_pad_source=False, name="train", training=training, **target
    )


def test_cutting() -> None:
    data = make_dataset([9, 3, 0])
    assert data.cut_to(5, 4) and not data.cut_to(5, 4)
    assert data[0]["source"].tolist() == [4, 5, 6, 7, 2] and data[0]["target"].tolist() == [4, 5, 6, 7]
    assert data[1]["source"].tolist() == [4, 5, 2] == data[1]["target"].tolist()
    assert data[2]["source"].tolist() == [2] == data[2]["target"].tolist()
    assert data.sizes.tolist() == [[5, 4], [3, 3], [1, 1]]
    said = "train: 1 of 3 sources cut to 5 tokens (mean 56 % kept), 1 targets cut to 4 tokens, 1 empty sources kept"
    assert data.describe_cut() == said
    assert data.src[0].tolist()[-1] == 2 and len(data.src[0]) == 9  # the data itself is left alone
    references = make_dataset([9, 3], training=False)
    references.cut_to(5, 4)
    assert len(references[0]["source"]) == 5 and len(references[0]["target"]) == 9
    assert references.too_long(5, 4).tolist() == [0] and references.too_long(None, 1).tolist() == []
    batch = references.collater([references[0], references[1]])
    cut = cut_targets(batch, 4, pad=1)
    assert cut["target"].tolist() == [[4, 5, 6, 7], [4, 5, 2, 1]] and cut["ntokens"] == 7
    assert cut["net_input"]["prev_output_tokens"].tolist() == [[2, 4, 5, 6], [2, 4, 5, 1]]
    assert batch["target"].size(1) == 9 and cut_targets(batch, 9, pad=1) is batch
    assert select_rows(batch, torch.tensor([False, True]))["id"].tolist() == [1]
    left = references.collater([references[0], references[1]])
    for rows in (left["target"], left["net_input"]["prev_output_tokens"]):
        rows[1] = rows[1].roll(int(rows[1].eq(1).sum()))  # as --left-pad-target collates
    again = cut_targets(left, 4, pad=1)
    assert torch.equal(again["target"], cut["target"]) and again["ntokens"] == 7
    assert torch.equal(again["net_input"]["prev_output_tokens"], cut["net_input"]["prev_output_tokens"])


@pytest.mark.parametrize("count", [1, 4, 5, 16, 21, 40])
@pytest.mark.parametrize("limits", [{"max_sentences": 4}, {"max_sentences": 16}, {"max_tokens": 60}])
@pytest.mark.parametrize("multiple", [1, 8])
def test_no_line_is_dropped(count: int, limits: dict[str, int], multiple: int) -> None:
    data = make_dataset([3 + i % 7 for i in range(count)], targets=count % 2 == 0)
    indices = data.ordered_indices()
    batches = data.batch_by_size(indices, **limits, required_batch_size_multiple=multiple)
    assert [i for batch in batches for i in batch] == indices.tolist()
    assert all(len(batch) <= limits.get("max_sentences", count) for batch in batches)
    tokens = [len(batch) * max(data.num_tokens(i) for i in batch) for batch in batches]
    assert max(tokens) <= limits.get("max_tokens", np.inf)
    assert data.batch_by_size(indices[:0]) == []


# --- the task ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: documents of 12 to 300 words; most summaries are the same, so that a few updates learn it."""
    folder = tmp_path_factory.mktemp("summaries") / "data"
    draw = random.Random(1)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=6)).capitalize() + "."

    def read() -> Any:
        for name, count in COUNTS.items():
            for i in range(count):
                document = " ".join(sentence() for _ in range(draw.randint(2, 50)))
                yield name, Example(f"{name}:{i}", document, (SUMMARY if i % 6 else " ".join([SUMMARY] * 4),))

    prepare(read, list(COUNTS), Options(folder, vocab_size=100, keep_text=True))
    return folder


def command(data: Path, *more: object) -> list[str]:
    base = [str(data), "--user-dir", str(ROOT / SYSTEM.user_dir), "--task", "long_summarization", "--cpu"]
    return [*base, "--batch-size", "8", "--num-workers", "0", *map(str, more)]


def train_command(data: Path, save_dir: Path, *more: object) -> list[str]:
    flags = ["--arch", SYSTEM.arch, *SYSTEM.flags, "--save-dir", save_dir, "--valid-subset", "dev-0"]
    flags += ["--optimizer", "adam", "--lr", "0.01", "--log-format", "json", "--seed", "1"]
    lengths = ["--max-source-positions", 64, "--max-target-positions", 64]
    return command(data, *flags, *lengths, "--max-update", 48, "--no-epoch-checkpoints", *more)


ROUGE = ("--eval-rouge", "--eval-rouge-args", '{"beam": 2, "max_len_b": 40}', "--best-checkpoint-metric", "rougeLsum")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(save_dir, log) of a short training with --eval-rouge."""
    save_dir = tmp_path_factory.mktemp("trained")
    more = [*ROUGE, "--maximize-best-checkpoint-metric", "--eval-rouge-print-samples"]
    return save_dir, run_cli("train", train_command(data, save_dir, *more))


def logged(log: str, key: str) -> list[float]:
    return [float(value) for value in re.findall(rf'"{key}": "([-\d.]+)"', log)]


def test_training(trained: tuple[Path, str]) -> None:
    save_dir, log = trained
    assert re.search(r"train: \d+ of 45 sources cut to 64 tokens \(mean \d\d % kept\), 8 targets cut to 64 tokens", log)
    assert re.search(r"dev-0: \d+ of 13 sources cut to 64 tokens", log)
    assert "dev-0: 13 documents, 13 hypotheses" in log and set(logged(log, "dev-0_rouge_n")) == {13}
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert 20 < max(logged(log, f"dev-0_{kind}")) <= 100
    assert logged(log, "dev-0_best_rougeLsum")[-1] == max(logged(log, "dev-0_rougeLsum"))
    # whole references: the longest have more words than 64 target tokens hold
    assert log.count("example 0 reference: " + SUMMARY.replace(". ", ".<q> ") + "<q> The") >= 2
    assert {float(n) for n in re.findall(r'"train_bsz": "([\d.]+)"', log)} == {7.5}  # 45 lines in 6 batches
    saved = torch.load(save_dir / "checkpoint_best.pt", weights_only=True)
    assert not any(isinstance(value, argparse.Namespace) for value in saved.values())
    torch.load(save_dir / "checkpoint_last.pt", weights_only=True)


def test_validation_does_not_disturb_training(data: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    sampled = ["--eval-rouge", "--eval-rouge-args", '{"sampling": true, "beam": 1, "max_len_b": 9}']
    log = run_cli("train", train_command(data, tmp_path, *sampled, "--eval-rouge-max-samples", 4))
    assert set(logged(log, "dev-0_rouge_n")) == {4} and "dev-0: 4 documents, 4 hypotheses" in log
    ours, theirs = (torch.load(p / "checkpoint_last.pt", weights_only=True)["model"] for p in (tmp_path, trained[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def two_ranks(args: list[str]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--distributed-world-size", "2", "--distributed-init-method", f"tcp://127.0.0.1:{port}"]
    shared += ["--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp"]
    started = [Command("train", [*args, *shared, "--distributed-rank", str(rank)]) for rank in (0, 1)]
    return [process.wait() for process in started]


def test_two_ranks_add_up(data: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    """The same weights (a learning rate of nothing) validated by two ranks and by one."""
    restore = ["--restore-file", str(trained[0] / "checkpoint_best.pt"), "--lr", "1e-30", "--max-update", 1]
    resets = [f"--reset-{what}" for what in ("optimizer", "dataloader", "lr-scheduler", "meters")]
    more = [*ROUGE, "--maximize-best-checkpoint-metric", *restore, *resets]
    one = run_cli("train", train_command(data, tmp_path / "one", *more))
    two = two_ranks(train_command(data, tmp_path / "two", *more))[0]
    assert logged(two, "dev-0_rouge_n") == [13]
    for key in ("rouge1", "rougeLsum", "loss"):
        assert logged(two, f"dev-0_{key}") == pytest.approx(logged(one, f"dev-0_{key}"), abs=2e-3)


def generate(data: Path, trained: tuple[Path, str], *more: object, task: str = "long_summarization") -> str:
    args = command(data, "--path", trained[0] / "checkpoint_best.pt", "--gen-subset", "test-A", "--scoring", "rouge")
    args[args.index("long_summarization")] = task
    return run_cli("generate", [*args, "--beam", "2", "--max-len-b", "40", *map(str, more)])


def rouge_line(log: str) -> str:
    return re.findall(r"Generate test-A with beam=2: (ROUGE.*)", log)[0]


def test_generate(data: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    spm = ["--bpe", "sentencepiece", "--sentencepiece-model", data / "spm.model"]
    log = generate(data, trained, "--max-source-positions", 4096, *spm)
    assert re.search(r"test-A: \d+ of 11 sources cut to 64 tokens \(mean \d+ % kept\)\n", log)
    assert "test-A: 64 tokens is the checkpoint's limit, below the 4,096 asked for" in log
    assert "test-A: 11 documents, 11 hypotheses" in log
    (tmp_path / "log.txt").write_text(log)
    references, hypotheses = read_generate_log(tmp_path / "log.txt")
    assert references == (data / "test-A.target.txt").read_text().splitlines() and len(hypotheses) == 11
    assert rouge_line(log) == str(corpus_rouge(references, hypotheses)) and "n=11)" in rouge_line(log)
    # the same from pieces, from words, and from stock translation
    plain = rouge_line(log)
    assert rouge_line(generate(data, trained, "--max-tokens", 70)) == plain
    stock = ["--truncate-source", "--max-source-positions", 64, "--max-target-positions", 64, "-s", "src", "-t", "tgt"]
    stock += ["--required-batch-size-multiple", 1, "--left-pad-source", "--skip-invalid-size-inputs-valid-test"]
    assert "n=9)" in rouge_line(generate(data, trained, *stock, "--post-process", "sentencepiece", task="translation"))
    scored = generate(data, trained, "--score-reference", "--rouge-bootstrap", 0, "--rouge-no-stemmer")
    assert "stemmer=no, sentences=<q>, bootstrap=0" in rouge_line(scored)


def test_interactive(data: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    lines = tmp_path / "in.txt"
    lines.write_text("Bada kemi. " * 300 + "\n\nBada.\n")
    args = [arg for arg in command(data) if arg not in ("--batch-size", "8")]
    bpe = ["--bpe", "sentencepiece", "--sentencepiece-model", str(data / "spm.model"), "--input", str(lines)]
    more = ["--path", str(trained[0] / "checkpoint_best.pt"), "--max-source-positions", "48", "--max-len-b", "9"]
    log = run_cli("interactive", [*args, *bpe, *more])
    assert len(re.findall(r"^D-\d\t", log, re.MULTILINE)) == 3
    assert "input: 1 of 1 sources cut to 48 tokens" in log


def test_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    save = tmp_path / "save"

    def fails(*more: object, folder: Path = data) -> str:
        return error_line(run_cli("train", train_command(folder, save, *more), expect=2))

    assert "no-data" in fails(folder=tmp_path / "no-data")
    assert "dict.src.txt: No such file" in fails(folder=tmp_path)
    assert "no split 'dev-1' (src-tgt)" in fails("--valid-subset", "dev-1")
    assert re.search(r"--no-truncate: (train|dev-0): \d+ of \d+ pairs are too long, first #", fails("--no-truncate"))
    assert "--eval-rouge-args: not JSON" in fails("--eval-rouge", "--eval-rouge-args", "{beam: 4}")
    assert "--num-batch-buckets: not supported" in fails("--num-batch-buckets", 4)


def test_generation_args() -> None:
    assert generation_args('{"beam": 4, "max_len_b": 200}') == {"beam": 4, "max_len_b": 200}
    assert generation_args(None) == {}
    for wrong, why in (("[1]", "not a JSON object"), ('{"bean": 4}', "'bean'"), ("{", "not JSON")):
        with pytest.raises(UserError, match=why):
            generation_args(wrong)


def test_missing_hypotheses_are_noticed(data: Path) -> None:
    cfg = LongSummarizationConfig(data=str(data))
    cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", "mmap", 1
    task = TASK_REGISTRY["long_summarization"].setup_task(cfg)
    task.load_dataset("test-A")
    sample = {"id": torch.tensor([0]), "net_input": {"src_tokens": torch.zeros(1, 3)}}

    class Generator:
        answers: list[list[dict[str, Any]]] = [[{"tokens": torch.tensor([4, 2])}]]

        def generate(self, *_: Any, **__: Any) -> list[list[dict[str, Any]]]:
            return self.answers

    batches = task.get_batch_iterator(task.dataset("test-A"), max_sentences=4).next_epoch_itr(shuffle=False)
    with pytest.raises(RuntimeError, match="test-A: 10 documents got no hypothesis, first #1"):
        for _ in batches:
            task.inference_step(Generator(), [], sample)
    Generator.answers = [[]]
    with pytest.raises(RuntimeError, match="0 of 1 documents of a batch"):
        task.inference_step(Generator(), [], sample)
    unused = task.get_batch_iterator(task.dataset("test-A"), max_sentences=4).next_epoch_itr(shuffle=False)
    assert sum(len(batch["id"]) for batch in unused) == 11
