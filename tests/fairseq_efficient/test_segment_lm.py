"""Task ``segment_lm`` in training, with the small Transformer-XL of ``tests/plugins``."""

import itertools
import math
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.utils import import_user_module

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests.fairseq_efficient.segment_models import LANES, MEMORY, PLUGIN, TOKENS, args, nll, train
from tests.ranks import two_ranks
from tests.stream_models import last, load
from tests.util import (
    ROOT,
    assert_close,
    assert_same_training,
    error_line,
    losses,
    run_cli,
    run_in_process,
)


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    import_user_module(Namespace(user_dir=str(ROOT / PLUGIN)))


# --- training ---------------------------------------------------------------------------------------------------------


def rows_by_hand(model: Any, tokens: torch.Tensor, lanes: int, block: int) -> list[float]:
    """Bits per target of each update of an epoch in which the model stays as it is."""
    edges = [lane * (len(tokens) // lanes) + min(lane, len(tokens) % lanes) for lane in range(lanes + 1)]
    totals: dict[int, list[float]] = {}
    for start, end in itertools.pairwise(edges):
        memory = None
        for step, place in enumerate(range(start, end - 1, block)):
            until = min(place + block, end - 1)
            with torch.no_grad():
                logits, extra = model.decoder(tokens[None, place:until], memory=memory)
            memory = extra["memory"]
            found = totals.setdefault(step, [0.0, 0])
            found[0] += nll(logits[0], tokens[place + 1 : until + 1])
            found[1] += until - place
    return [total / count / math.log(2) for total, count in totals.values()]


@pytest.mark.parametrize("more", [(), ("--remember-keys",), ("--same-length",), ("--clamp-len", "5")], ids=str)
def test_losses_are_those_of_a_loop_over_lanes(stream_data: Path, tmp_path: Path, more: tuple[str, ...]):
    """At learning rate 0, over an epoch and into the next, whose memory starts empty."""
    output = train(stream_data, tmp_path, "--lr", "0", "--batch-size", "3", "--max-update", "30", *more)
    expected = rows_by_hand(*load(stream_data, tmp_path, "train"), 3, TOKENS)
    assert len(expected) == 27
    found = [float(one) for one in losses(output).values()]
    assert len(found) == 30
    assert max(abs(a - b) for a, b in zip(found, [*expected, *expected[:3]], strict=True)) < 2e-3


def weights(folder: Path) -> Any:
    return read_checkpoint(last(folder))["model"]


def test_micro_batches_are_lanes(stream_data: Path, tmp_path: Path):
    """--update-freq 2 with n lanes trains like 2n lanes: each micro-batch has its own memory."""
    flags = ("--optimizer", "sgd", "--lr", "0.5", "--max-update", "25")
    one = losses(train(stream_data, tmp_path / "one", *flags))
    two = losses(train(stream_data, tmp_path / "two", *flags, "--batch-size", LANES // 2, "--update-freq", 2))
    assert all(abs(float(one[update]) - float(two[update])) < 2e-3 for update in one) and len(one) == 25
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), 1e-4, 1e-4)


def test_update_freq_may_change_with_the_epoch(stream_data: Path, tmp_path: Path):
    found = losses(train(stream_data, tmp_path, "--batch-size", 2, "--update-freq", "1,4", "--max-update", 55))
    assert len(found) == 55 and len(read_checkpoint(last(tmp_path))["extra_state"]["SegmentLMTask"]["memory"]) == 4


def test_ranks_have_lanes_and_resume(stream_data: Path, tmp_path: Path):
    """Two processes train like one with two micro-batches, and each goes on from the other's checkpoint."""
    saving = ("--batch-size", LANES // 2, "--save-interval-updates", "4")
    ranks = losses(two_ranks(args(stream_data, tmp_path / "two", *saving)))
    single = losses(train(stream_data, tmp_path / "one", *saving, "--update-freq", "2"))
    assert ranks == single and len(ranks) == 8
    assert_same_training(tmp_path / "two/checkpoint_last.pt", tmp_path / "one/checkpoint_last.pt", position=False)
    saved = [tmp_path / name / "checkpoint_1_4.pt" for name in ("two", "one")]
    rest = {update: ranks[update] for update in range(5, 9)}
    for start, name in zip(saved, "ab", strict=True):
        more = (*saving, "--restore-file", start)
        assert losses(train(stream_data, tmp_path / name, *more, "--update-freq", "2")) == rest
    more = (*saving, "--restore-file", saved[1])
    assert losses(two_ranks(args(stream_data, tmp_path / "c", *more))) == rest
    wide = losses(train(stream_data, tmp_path / "wide", "--restore-file", saved[0]))  # the same lanes in one batch
    assert all(abs(float(wide[update]) - float(rest[update])) < 2e-3 for update in rest)


@pytest.mark.parametrize("start", [3, 23], ids=["first epoch", "second epoch"])
def test_resume_is_exact(stream_data: Path, tmp_path: Path, start: int):
    """Losses, weights and memories, with dropout on, in the middle of an epoch."""
    flags = ("--dropout", "0.1", "--save-interval-updates", start, "--max-update", start + 4, "--shift-blocks")
    whole = losses(train(stream_data, tmp_path / "whole", *flags))
    epoch = 1 + start // 20
    restart = ("--restore-file", tmp_path / "whole" / f"checkpoint_{epoch}_{start}.pt")
    rest = losses(run_cli("train", args(stream_data, tmp_path / "rest", *flags, *restart)))
    assert rest == {update: whole[update] for update in range(start + 1, start + 5)}
    assert_same_training(tmp_path / "rest/checkpoint_last.pt", tmp_path / "whole/checkpoint_last.pt")
    assert read_checkpoint(last(tmp_path / "whole"))["extra_state"]["SegmentLMTask"]["step"] > 0


def test_resume_without_the_memory(stream_data: Path, tmp_path: Path):
    """--no-save-memory keeps it out of the file; training goes on, and says that it is not the same."""
    flags = ("--save-interval-updates", "4", "--no-save-memory")
    whole = losses(train(stream_data, tmp_path / "whole", *flags))
    assert "SegmentLMTask" not in read_checkpoint(last(tmp_path / "whole"))["extra_state"]
    restart = ("--restore-file", tmp_path / "whole" / "checkpoint_1_4.pt")
    output = train(stream_data, tmp_path / "rest", *flags, *restart)
    assert "nothing is remembered of the block before step 4" in output
    rest = losses(output)
    assert rest[5] != whole[5] and abs(float(rest[8]) - float(whole[8])) < 0.2


def test_resume_with_other_lanes(stream_data: Path, tmp_path: Path):
    train(stream_data, tmp_path / "whole", "--save-interval-updates", "4")
    restart = ("--restore-file", tmp_path / "whole" / "checkpoint_1_4.pt", "--batch-size", "2")
    output = train(stream_data, tmp_path / "rest", *restart)
    assert "this epoch goes on at 20%" in output and "nothing is remembered of the block before step 8" in output


def test_an_end_of_epoch_needs_no_memory(stream_data: Path, tmp_path: Path):
    whole = losses(train(stream_data, tmp_path / "whole", "--max-update", "23"))
    saved = tmp_path / "whole" / "checkpoint1.pt"
    assert "SegmentLMTask" not in read_checkpoint(str(saved))["extra_state"]
    rest = losses(train(stream_data, tmp_path / "rest", "--max-update", "23", "--restore-file", saved))
    assert rest == {update: whole[update] for update in (21, 22, 23)}


def test_validation_and_loading_change_nothing(stream_data: Path, tmp_path: Path):
    """Neither validation between two updates, nor workers, nor options that round, sort or drop batches elsewhere."""
    plain = losses(train(stream_data, tmp_path / "plain", "--disable-validation"))
    for number, more in enumerate([
        ("--validate-interval-updates", "1"),
        ("--validate-interval-updates", "2", "--max-valid-steps", "1", "--batch-size-valid", "1"),
        ("--num-workers", "2", "--data-buffer-size", "3", "--disable-validation"),
        ("--required-batch-size-multiple", "8", "--skip-remainder-batch", "--skip-invalid-size-inputs-valid-test"),
        ("--grouped-shuffling", "--update-epoch-batch-itr", "True", "--curriculum", "3", "--disable-validation"),
    ]):  # fmt: skip
        assert losses(train(stream_data, tmp_path / str(number), *more)) == plain


def test_a_lost_block_starts_anew(stream_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Out of memory in one update: the next one starts without memory, and nothing else happens."""
    model_class, calls = sys.modules["tiny_stream_lm"].TinyStreamModel, []
    stock = model_class.forward

    def forward(self: Any, *inputs: Any, **flags: Any) -> Any:
        if self.training:
            calls.append(flags["memory"].place.step)
            if len(calls) == 4:
                raise RuntimeError("CUDA out of memory")
        return stock(self, *inputs, **flags)

    monkeypatch.setattr(model_class, "forward", forward)
    output = train(stream_data, tmp_path)
    assert calls == list(range(9)) and output.count("nothing is remembered") == 1
    assert "nothing is remembered of the block before step 4" in output


def test_hydra_trains_the_same(stream_data: Path, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(
        f"""# @package _group_
common: {{user_dir: {ROOT / PLUGIN}, cpu: true, seed: 1}}
task: {{_name: segment_lm, data: {stream_data}, tokens_per_sample: {TOKENS}}}
model: {{_name: tiny_stream_lm, mem_len: {MEMORY}}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
dataset: {{batch_size: {LANES // 2}, num_workers: 0}}
optimization: {{lr: [0.01], max_update: 3, update_freq: [2]}}
checkpoint: {{save_dir: {tmp_path / "yaml"}}}
"""
    )
    config = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}"]
    run_cli("hydra_train", config)
    train(stream_data, tmp_path / "flags", "--batch-size", LANES // 2, "--update-freq", "2", "--max-update", "3")
    assert_close(weights(tmp_path / "yaml"), weights(tmp_path / "flags"), 0, 0)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch-size", "321"), "640 tokens are too few for 321 lanes"),
        (("--batch-size", "161", "--update-freq", "2"), "640 tokens are too few for 322 lanes"),
        (("--sample-break-mode", "eos"), "--sample-break-mode eos: the segment_lm task reads a stream"),
        (("--eval-mem-len", "-1"), "--eval-mem-len -1: must be at least 0"),
        (("--eval-tokens-per-sample", "0"), "--eval-tokens-per-sample 0: must be at least 1"),
        (("--eval-warmup", "-3"), "--eval-warmup -3: must be at least 0"),
        (("--tokens-per-sample", "-8"), "nor is a negative --tokens-per-sample"),
        (("--self-target",), "--self-target is not for the segment_lm task: it predicts the next token only"),
        (("--add-bos-token",), "--add-bos-token is not for the segment_lm task: the stream has no sentences"),
        (("--output-dictionary-size", "5"), "are not for the segment_lm task"),
    ],
)
def test_mistakes_are_one_line(stream_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        train(stream_data, tmp_path, *more)


def test_mistakes_in_data(stream_data: Path, tmp_path: Path):
    flags = [one for one in args(stream_data, tmp_path) if one not in ("--batch-size", str(LANES))]
    with pytest.raises(UserError, match="--max-tokens 5 holds no block of 8 tokens; say --batch-size"):
        run_in_process("train", [*flags, "--max-tokens", "5"])
    with pytest.raises(UserError, match=r"dict\.txt: no such file; prepare the data"):
        train(tmp_path, tmp_path / "save")
    line = error_line(run_cli("train", args(stream_data, tmp_path, "--batch-size", "900"), expect=2))
    assert "640 tokens are too few for 900 lanes" in line
