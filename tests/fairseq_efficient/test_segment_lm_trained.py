"""Task ``segment_lm`` with a trained model: evaluation, validation, generation; Transformer-XL of ``tests/plugins``."""

import json
import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.utils import import_user_module

from fairseq_efficient.errors import UserError
from tests.fairseq_efficient.segment_models import MEMORY, PLUGIN, TOKENS, args, nll, train
from tests.made_data import make_stream_data
from tests.ranks import two_ranks
from tests.stream_models import bits_by_hand, common, eval_lm, last, load
from tests.util import ROOT, assert_close, run_in_process


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    import_user_module(Namespace(user_dir=str(ROOT / PLUGIN)))


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model after 30 updates, into the second epoch; dropout was on."""
    folder = tmp_path_factory.mktemp("trained")
    train(stream_data, folder, "--max-update", "30", "--dropout", "0.1")
    return folder


def test_steps_that_are_not_of_the_stream_have_no_memory(trained: Path, stream_data: Path):
    """Ghost batches (no gradient), and training batches that stand in for missing ones in validation."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([last(trained)], {"data": str(stream_data)})
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


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluated(data: Path, folder: Path, *more: Any) -> tuple[float, int]:
    """Bits per token and number of tokens that fairseq-eval-lm reports."""
    bits, perplexity, count = eval_lm(PLUGIN, data, folder, *more)
    assert abs(perplexity - 2**bits) < 0.01
    return bits, count


def validate(data: Path, folder: Path, *more: Any) -> dict[str, float]:
    more = ("--valid-subset", "test", "--log-format", "json", *map(str, more))
    output = run_in_process("validate", [*common(PLUGIN, data, folder), *more])
    line = next(line for line in output.splitlines() if '"test_loss"' in line or '"loss"' in line)
    values = json.loads(line[line.index("{") :])
    return {name.removeprefix("test_"): float(value) for name, value in values.items()}


@pytest.mark.parametrize("block", [1, 5, 8, 64, 300])
def test_perplexity_is_that_of_one_lane(trained: Path, stream_data: Path, block: int):
    """Whatever the batch size; against a loop that keeps the memory by hand."""
    expected = bits_by_hand(*load(stream_data, trained), block)
    for batch in (1, 7, 50):
        bits, count = evaluated(stream_data, trained, "--tokens-per-sample", block, "--batch-size", batch)
        assert count == 199 and abs(bits - expected) < 1e-4, batch


def test_perplexity_without_warm_up_depends_on_the_batch(trained: Path, stream_data: Path):
    """What --eval-warmup is for: cold lanes predict worse; the test above would see it."""
    cold = [evaluated(stream_data, trained, "--batch-size", batch, "--eval-warmup", "0") for batch in (1, 25)]
    assert cold[0][1] == cold[1][1] == 199 and abs(cold[1][0] - cold[0][0]) > 1e-3


def test_memory_that_covers_the_past_is_a_full_forward(trained: Path, stream_data: Path):
    """Then blocks do not matter either."""
    model, tokens = load(stream_data, trained)
    with torch.no_grad():
        expected = nll(model.decoder(tokens[None, :-1])[0][0], tokens[1:]) / 199 / math.log(2)
    for block in (1, 7, 50, 199):
        bits, count = evaluated(
            stream_data, trained, "--batch-size", 4, "--eval-mem-len", 250, "--eval-tokens-per-sample", block
        )
        assert count == 199 and abs(bits - expected) < 1e-4


def test_shards_add_up(trained: Path, stream_data: Path):
    whole, _ = evaluated(stream_data, trained, "--batch-size", 3)
    parts = [
        evaluated(stream_data, trained, "--batch-size", 2, "--num-shards", 3, "--shard-id", shard) for shard in range(3)
    ]
    assert sum(count for _, count in parts) == 199
    assert abs(sum(bits * count for bits, count in parts) / 199 - whole) < 2e-4


def test_validation_is_eval_lm(trained: Path, stream_data: Path):
    """fairseq-validate, and the loss that training reports; perplexity is the exponential of the mean loss."""
    bits, _ = evaluated(stream_data, trained, "--batch-size", 3)
    for more in (("--batch-size", 1), ("--batch-size", 50), ("--max-tokens", 40)):
        found = validate(stream_data, trained, *more)
        assert abs(found["loss"] - bits) < 1e-3 and abs(found["ppl"] - 2**bits) < 1e-2
    other, _ = evaluated(stream_data, trained, "--eval-mem-len", 3, "--eval-tokens-per-sample", 4, "--batch-size", 2)
    found = validate(stream_data, trained, "--eval-mem-len", 3, "--eval-tokens-per-sample", 4, "--batch-size", 9)
    assert abs(found["loss"] - other) < 1e-3 and other != bits


def test_validation_in_training_repeats_itself(stream_data: Path, tmp_path: Path):
    """At learning rate 0 every validation in every epoch, one rank or two, reports what eval-lm reports."""
    flags = ("--lr", "0", "--max-update", "22", "--validate-interval-updates", "7", "--valid-subset", "valid,test")
    output = train(stream_data, tmp_path / "one", *flags)
    ranks = two_ranks(args(stream_data, tmp_path / "two", *flags, "--batch-size", "2", "--batch-size-valid", "3"))
    found = [re.findall(r'"test_loss": "([\d.]+)"', text) for text in (output, ranks)]
    assert len(found[0]) == len(found[1]) >= 5 and len({*found[0], *found[1]}) == 1
    bits, _ = evaluated(stream_data, tmp_path / "one", "--batch-size", 2)
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
    model, tokens = load(stream_data, tmp_path)
    with torch.no_grad():
        total = sum(
            nll(model(tokens[None, start : min(start + TOKENS, 199)])[0][0], tokens[start + 1 : start + 1 + TOKENS])
            for start in range(0, 199, TOKENS)
        )
    for batch in (1, 6):
        assert abs(evaluated(stream_data, tmp_path, "--batch-size", batch)[0] - total / 199 / math.log(2)) < 1e-4
    with pytest.raises(UserError, match="--tokens-per-sample 9: the model reads at most 8"):
        evaluated(stream_data, tmp_path, "--tokens-per-sample", 9)


def test_a_context_window_is_refused(trained: Path, stream_data: Path):
    for more in (("--context-window", 5), ("--context-window", 5, "--tokens-per-sample", 20)):
        with pytest.raises(UserError, match="--context-window is not for the segment_lm task"):
            evaluated(stream_data, trained, *more)


# --- generation -------------------------------------------------------------------------------------------------------


def generate(data: Path, folder: Path, *more: Any) -> str:
    return run_in_process("generate", [*common(PLUGIN, data, folder), "--gen-subset", "test", *map(str, more)])


def hypotheses(output: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for number, words in re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE):
        found.setdefault(int(number), []).append(words)
    return found


@pytest.mark.parametrize("same_length", [False, True])
def test_generation_with_cached_keys_is_a_full_forward(trained: Path, stream_data: Path, same_length: bool):
    """Greedy, far beyond memory, from prompts shorter and longer than it."""
    flags = ("--model-overrides", f"{{'same_length': {same_length}}}", "--beam", "1", "--max-len-b", "70")
    model, tokens = load(stream_data, trained, same_length=same_length)
    words, window = Dictionary.load(str(stream_data / "dict.txt")), MEMORY + (not same_length)
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
    return decoder.output_layer(x)


def test_steps_are_a_full_forward_with_reordering(trained: Path, stream_data: Path):
    model, tokens = load(stream_data, trained)
    decoder = model.decoder
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
        "interactive", [*common(PLUGIN, stream_data, trained), "--input", str(tmp_path / "lines"), "--buffer-size", "3",
                        "--max-len-b", "30", "--beam", "2"]
    )  # fmt: skip
    found = hypotheses(output)
    assert sorted(found) == [0, 1, 2] and found[0][0].startswith("a b c d e f g h") and found[2][0].startswith("a b")


def test_scoring_the_reference_is_evaluation(trained: Path, stream_data: Path):
    expected, _ = evaluated(stream_data, trained, "--batch-size", 1)
    for batch in (1, 6):
        output = generate(stream_data, trained, "--score-reference", "--batch-size", batch)
        scores = [float(one) for line in re.findall(r"^P-\d+\t(.*)$", output, re.MULTILINE) for one in line.split()]
        assert len(scores) == 199 and abs(sum(scores) / 199 + expected) < 2e-4
