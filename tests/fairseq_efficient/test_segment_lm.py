"""Task ``segment_lm`` through fairseq's commands, with the small Transformer-XL of ``tests/plugins``."""

import itertools
import json
import math
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.utils import import_user_module

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests.ranks import two_ranks
from tests.util import ROOT, assert_close, assert_same_training, error_line, make_stream_data, run_cli, run_in_process

PLUGIN = ROOT / "tests" / "plugins" / "tiny_stream_lm"
TASK = ("--user-dir", str(PLUGIN), "--task", "segment_lm", "--cpu", "--num-workers", "0")
TOKENS, LANES, MEMORY = 8, 4, 12  # of a training; 640 tokens make 20 updates an epoch


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    import_user_module(Namespace(user_dir=str(PLUGIN)))


def args(data: Path, folder: Path, *more: Any) -> list[str]:
    return [
        str(data), *TASK, "--arch", "tiny_stream_lm", "--mem-len", str(MEMORY), "--save-dir", str(folder),
        "--tokens-per-sample", str(TOKENS), "--batch-size", str(LANES), "--optimizer", "adam", "--lr", "0.01",
        "--max-update", "8", "--log-format", "json", "--log-interval", "1", "--seed", "1", *map(str, more),
    ]  # fmt: skip


def train(data: Path, folder: Path, *more: Any) -> str:
    return run_in_process("train", args(data, folder, *more))


def last(folder: Path) -> str:
    return str(folder / "checkpoint_last.pt")


def losses(output: str) -> dict[int, str]:
    """update -> training loss as printed, with or without the names of loggers."""
    found = (json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line)
    return {int(values["num_updates"]): values["loss"] for values in found if "loss" in values}


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model after 30 updates, into the second epoch; dropout was on."""
    folder = tmp_path_factory.mktemp("trained")
    train(stream_data, folder, "--max-update", "30", "--dropout", "0.1")
    return folder


def load(data: Path, folder: Path, **changes: Any) -> tuple[Any, Any]:
    overrides = {"data": str(data), **changes}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([last(folder)], overrides)
    return models[0].eval(), task


def tokens_of(task: Any, split: str) -> torch.Tensor:
    task.load_dataset(split)
    stream = task.dataset(split).stream
    return torch.from_numpy(stream.slice(0, len(stream)))


def nll(logits: torch.Tensor, target: torch.Tensor) -> float:
    return -float(logits.double().log_softmax(-1).gather(-1, target.unsqueeze(-1)).sum())


@torch.no_grad()
def bits_by_hand(model: Any, tokens: torch.Tensor, block: int, length: int | None = None) -> float:
    """Bits per token of a stream read as one lane."""
    total, memory = 0.0, None
    for start in range(0, len(tokens) - 1, block):
        end = min(start + block, len(tokens) - 1)
        logits, extra = model.decoder(tokens[None, start:end], memory=memory, memory_length=length)
        memory = extra["memory"]
        total += nll(logits[0], tokens[start + 1 : end + 1])
    return total / (len(tokens) - 1) / math.log(2)


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
    model, task = load(stream_data, tmp_path)
    expected = rows_by_hand(model, tokens_of(task, "train"), 3, TOKENS)
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


def test_steps_that_are_not_of_the_stream_have_no_memory(trained: Path, stream_data: Path):
    """Ghost batches (no gradient), and training batches that stand in for missing ones in validation."""
    model, task = load(stream_data, trained)
    seen: list[Any] = []

    def criterion(model: Any, sample: Any) -> Any:
        seen.append(sample["net_input"].get("memory"))
        return model(**sample["net_input"])[0].sum(), 1, {}

    task.load_dataset("train")
    task.load_dataset("valid")
    train_batch = task.get_batch_iterator(task.dataset("train"), max_sentences=2, update_epoch_batch_itr=False)
    valid_batch = task.get_batch_iterator(task.dataset("valid"), max_sentences=2).first_batch
    optimizer = type("Optimizer", (), {"backward": staticmethod(lambda loss: loss.backward())})
    for ghost in (False, True):
        for batch in (train_batch.first_batch, valid_batch):
            task.train_step(batch, model, criterion, optimizer, 0, ignore_grad=ghost)
            task.valid_step(batch, model, criterion)
    assert [memory is not None for memory in seen] == [True, False, False, True, False, False, False, True]
    assert task.valid_step({}, model, criterion) == (0.0, 0, {})


def test_hydra_trains_the_same(stream_data: Path, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(
        f"""# @package _group_
common: {{user_dir: {PLUGIN}, cpu: true, seed: 1}}
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


# --- evaluation -------------------------------------------------------------------------------------------------------


def common(data: Path, folder: Path) -> list[str]:
    return [str(data), *TASK, "--path", last(folder)]


def eval_lm(data: Path, folder: Path, *more: Any) -> tuple[float, int]:
    """Bits per token and number of tokens that fairseq-eval-lm reports."""
    more = ("--gen-subset", "test", "--log-format", "none", *map(str, more))
    output = run_in_process("eval_lm", [*common(data, folder), *more])
    found = re.search(r"Loss \(base 2\): ([\d.]+)", output), re.search(r"Evaluated ([\d,]+) tokens", output)
    assert found[0] and found[1]
    return float(found[0][1]), int(found[1][1].replace(",", ""))


def validate(data: Path, folder: Path, *more: Any) -> dict[str, float]:
    more = ("--valid-subset", "test", "--log-format", "json", *map(str, more))
    output = run_in_process("validate", [*common(data, folder), *more])
    line = next(line for line in output.splitlines() if '"test_loss"' in line or '"loss"' in line)
    values = json.loads(line[line.index("{") :])
    return {name.removeprefix("test_"): float(value) for name, value in values.items()}


@pytest.mark.parametrize("block", [1, 5, 8, 64, 300])
def test_perplexity_is_that_of_one_lane(trained: Path, stream_data: Path, block: int):
    """Whatever the batch size; against a loop that keeps the memory by hand."""
    model, task = load(stream_data, trained)
    expected = bits_by_hand(model, tokens_of(task, "test"), block)
    for batch in (1, 7, 50):
        bits, count = eval_lm(stream_data, trained, "--tokens-per-sample", block, "--batch-size", batch)
        assert count == 199 and abs(bits - expected) < 1e-4, batch


def test_perplexity_without_warm_up_depends_on_the_batch(trained: Path, stream_data: Path):
    """What --eval-warmup is for: cold lanes predict worse; the test above would see it."""
    cold = [eval_lm(stream_data, trained, "--batch-size", batch, "--eval-warmup", "0") for batch in (1, 25)]
    assert cold[0][1] == cold[1][1] == 199 and abs(cold[1][0] - cold[0][0]) > 1e-3


def test_memory_that_covers_the_past_is_a_full_forward(trained: Path, stream_data: Path):
    """Then blocks do not matter either."""
    model, task = load(stream_data, trained)
    tokens = tokens_of(task, "test")
    with torch.no_grad():
        expected = nll(model.decoder(tokens[None, :-1])[0][0], tokens[1:]) / 199 / math.log(2)
    for block in (1, 7, 50, 199):
        bits, count = eval_lm(
            stream_data, trained, "--batch-size", 4, "--eval-mem-len", 250, "--eval-tokens-per-sample", block
        )
        assert count == 199 and abs(bits - expected) < 1e-4


def test_shards_add_up(trained: Path, stream_data: Path):
    whole, _ = eval_lm(stream_data, trained, "--batch-size", 3)
    parts = [
        eval_lm(stream_data, trained, "--batch-size", 2, "--num-shards", 3, "--shard-id", shard) for shard in range(3)
    ]
    assert sum(count for _, count in parts) == 199
    assert abs(sum(bits * count for bits, count in parts) / 199 - whole) < 2e-4


def test_validation_is_eval_lm(trained: Path, stream_data: Path):
    """fairseq-validate, and the loss that training reports; perplexity is the exponential of the mean loss."""
    bits, _ = eval_lm(stream_data, trained, "--batch-size", 3)
    for more in (("--batch-size", 1), ("--batch-size", 50), ("--max-tokens", 40)):
        found = validate(stream_data, trained, *more)
        assert abs(found["loss"] - bits) < 1e-3 and abs(found["ppl"] - 2**bits) < 1e-2
    other, _ = eval_lm(stream_data, trained, "--eval-mem-len", 3, "--eval-tokens-per-sample", 4, "--batch-size", 2)
    found = validate(stream_data, trained, "--eval-mem-len", 3, "--eval-tokens-per-sample", 4, "--batch-size", 9)
    assert abs(found["loss"] - other) < 1e-3 and other != bits


def test_validation_in_training_repeats_itself(stream_data: Path, tmp_path: Path):
    """At learning rate 0 every validation in every epoch, one rank or two, reports what eval-lm reports."""
    flags = ("--lr", "0", "--max-update", "22", "--validate-interval-updates", "7", "--valid-subset", "valid,test")
    output = train(stream_data, tmp_path / "one", *flags)
    ranks = two_ranks(args(stream_data, tmp_path / "two", *flags, "--batch-size", "2", "--batch-size-valid", "3"))
    found = [re.findall(r'"test_loss": "([\d.]+)"', text) for text in (output, ranks)]
    assert len(found[0]) == len(found[1]) >= 5 and len({*found[0], *found[1]}) == 1
    bits, _ = eval_lm(stream_data, tmp_path / "one", "--batch-size", 2)
    assert abs(bits - float(found[0][0])) < 1e-3


def test_a_rank_without_lanes(trained: Path, stream_data: Path, tmp_path: Path):
    """A split of three tokens on two ranks."""
    for file in stream_data.iterdir():
        if "valid" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    make_stream_data(tmp_path / "tiny", train=4, valid=3, test=2)
    for suffix in ("bin", "idx"):
        (tmp_path / f"valid.{suffix}").symlink_to(tmp_path / "tiny" / f"valid.{suffix}")
    flags = ("--batch-size", "2", "--max-update", "2")
    output = two_ranks(args(tmp_path, tmp_path / "save", *flags))
    alone = train(tmp_path, tmp_path / "alone", *flags, "--update-freq", "2")
    found = [re.findall(r'"valid_loss": "([\d.]+)"', text) for text in (output, alone)]
    assert found[0] == found[1] and found[0]


def test_a_model_without_memory(stream_data: Path, tmp_path: Path):
    """fairseq's own language models read the same blocks, each by itself."""
    model = ("--arch", "transformer_lm", "--decoder-layers", 1, "--decoder-embed-dim", 16, "--max-update", 3,
             "--decoder-attention-heads", 2, "--decoder-ffn-embed-dim", 16)  # fmt: skip
    flags = [one for one in args(stream_data, tmp_path, *model) if one not in ("--mem-len", str(MEMORY))]
    flags.remove("tiny_stream_lm"), flags.remove("--arch")
    run_in_process("train", flags)
    model, task = load(stream_data, tmp_path)
    tokens = tokens_of(task, "test")
    with torch.no_grad():
        total = sum(
            nll(model(tokens[None, start : min(start + TOKENS, 199)])[0][0], tokens[start + 1 : start + 1 + TOKENS])
            for start in range(0, 199, TOKENS)
        )
    for batch in (1, 6):
        assert abs(eval_lm(stream_data, tmp_path, "--batch-size", batch)[0] - total / 199 / math.log(2)) < 1e-4
    with pytest.raises(UserError, match="--tokens-per-sample 9: the model reads at most 8"):
        eval_lm(stream_data, tmp_path, "--tokens-per-sample", 9)


# --- generation -------------------------------------------------------------------------------------------------------


def generate(data: Path, folder: Path, *more: Any) -> str:
    return run_in_process("generate", [*common(data, folder), "--gen-subset", "test", *map(str, more)])


def hypotheses(output: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for number, words in re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE):
        found.setdefault(int(number), []).append(words)
    return found


@pytest.mark.parametrize("same_length", [False, True])
def test_generation_with_cached_keys_is_a_full_forward(trained: Path, stream_data: Path, same_length: bool):
    """Greedy, far beyond memory, from prompts shorter and longer than it."""
    flags = ("--model-overrides", f"{{'same_length': {same_length}}}", "--beam", "1", "--max-len-b", "70")
    model, task = load(stream_data, trained, same_length=same_length)
    words, window = task.dictionary, MEMORY + (not same_length)
    tokens = tokens_of(task, "test")
    for prefix, block in ((3, 20), (30, 40)):
        output = generate(stream_data, trained, *flags, "--prefix-size", prefix, "--tokens-per-sample", block)
        found = hypotheses(output)
        assert sorted(found) == list(range(-(-199 // block)))
        for number, (line,) in found.items():
            prompt = tokens[number * block + 1 : number * block + 1 + prefix].tolist()
            prompt = prompt[: prompt.index(words.eos())] if words.eos() in prompt else prompt
            ours = [words.index(word) for word in line.split()]
            assert ours[: len(prompt)] == prompt
            whole = torch.tensor([[words.eos(), *ours]])
            best = windowed(model, whole, window)[0, len(prompt) :].clone()
            best[:, words.pad()] = -math.inf
            if not prompt:
                best[0, words.eos()] = -math.inf
            expected = best.argmax(-1).tolist()
            assert expected[: len(ours) - len(prompt)] == ours[len(prompt) :]


@torch.no_grad()
def windowed(model: Any, tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Logits of one forward in which every query sees at most ``window`` keys."""
    from fairseq_efficient.modules.relative_self_attention import sinusoids

    decoder = model.decoder
    x = decoder.embed(tokens)
    positions = sinusoids(x.size(1), x.size(2))
    for layer in decoder.layers:
        attended = layer.attention(x, positions, decoder.content_bias, decoder.position_bias, window=window)
        x = layer.after(x, attended)
    return decoder.output(x)


def test_steps_are_a_full_forward_with_reordering(trained: Path, stream_data: Path):
    model, task = load(stream_data, trained)
    decoder, tokens = model.decoder, tokens_of(task, "test")
    rows = tokens[:160].view(4, 40)
    for read_at_once in (1, 5, 30):
        state: dict[str, Any] = {}
        seen = rows
        for end in range(read_at_once, 40):
            logits = decoder(seen[:, :end], incremental_state=state)[0]
            expected = windowed(model, seen[:, :end], MEMORY + 1)
            assert_close(logits[:, -1], expected[:, -1], 1e-5)
            if end == read_at_once:
                assert_close(logits, expected, 1e-5)
            order = torch.tensor([[1, 0, 3, 2], [0, 0, 2, 3], [0, 1, 2, 3]][end % 3])
            decoder.reorder_incremental_state(state, order)
            seen = seen[order]


def test_beam_search_and_interactive(trained: Path, stream_data: Path, tmp_path: Path):
    """Beams do not disturb one another or other prompts: a batch of all is each alone."""
    flags = ("--beam", "4", "--nbest", "4", "--max-len-b", "40", "--prefix-size", "10", "--tokens-per-sample", "25")
    batches = [hypotheses(generate(stream_data, trained, *flags, "--batch-size", size)) for size in (1, 8)]
    assert batches[0] == batches[1] and len(batches[0]) == 8
    assert any(len(set(lines)) > 1 for lines in batches[0].values())
    (tmp_path / "lines").write_text("a b c d e f g h\n\na b\n")
    output = run_in_process(
        "interactive", [*common(stream_data, trained), "--input", str(tmp_path / "lines"), "--buffer-size", "3",
                        "--max-len-b", "30", "--beam", "2"]
    )  # fmt: skip
    found = hypotheses(output)
    assert sorted(found) == [0, 1, 2] and found[0][0].startswith("a b c d e f g h") and found[2][0].startswith("a b")


def test_scoring_the_reference_is_evaluation(trained: Path, stream_data: Path):
    expected, _ = eval_lm(stream_data, trained, "--batch-size", 1)
    for batch in (1, 6):
        output = generate(stream_data, trained, "--score-reference", "--batch-size", batch)
        scores = [float(one) for line in re.findall(r"^P-\d+\t(.*)$", output, re.MULTILINE) for one in line.split()]
        assert len(scores) == 199 and abs(sum(scores) / 199 + expected) < 2e-4


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
        (("--tokens-per-sample", "-8"), "--tokens-per-sample must not be negative"),
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


def test_a_context_window_is_refused(trained: Path, stream_data: Path):
    for more in (("--context-window", 5), ("--context-window", 5, "--tokens-per-sample", 20)):
        with pytest.raises(UserError, match="--context-window is not for the segment_lm task"):
            eval_lm(stream_data, trained, *more)
