"""Searching through fairseq-train: phases, streams, resume, ranks, the end."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

import par_search  # noqa: F401  (registers)
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from par_search.phases import ARCHITECTURE, Phases
from tests.ranks import two_ranks
from tests.util import ROOT, assert_close, assert_same_training, run_cli, run_in_process

SIZES = (
    "--decoder-blocks", "3", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24",
    "--decoder-attention-heads", "2", "--mem-len", "6",
)  # fmt: skip
USER_DIR = ("--user-dir", str(ROOT / "par_search"))
ALPHA = "decoder.alpha"


def args(data: Path, folder: Path, *more: Any) -> list[str]:
    """640 tokens: 128 are held out; 512 in 4 lanes make 16 updates of the weights in an epoch."""
    return [
        str(data), *USER_DIR, "--task", "par_search", "--arch", "par_supernet", *SIZES, "--criterion", "par_search",
        "--optimizer", "par_search", "--lr", "0.01", "--arch-lr", "0.05", "--save-dir", str(folder),
        "--tokens-per-sample", "8", "--batch-size", "4", "--arch-warmup-updates", "3", "--arch-update-share", "0.5",
        "--max-update", "9", "--log-format", "json", "--log-interval", "1", "--seed", "1", "--cpu", "--num-workers",
        "0", *map(str, more),
    ]  # fmt: skip


def train(data: Path, folder: Path, *more: Any) -> str:
    return run_in_process("train", args(data, folder, *more))


def entries(output: str) -> dict[int, dict[str, str]]:
    """update -> what was logged of it."""
    found = (json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line)
    return {int(values["num_updates"]): values for values in found if "loss" in values}


def logged(output: str, *names: str) -> dict[int, tuple[str, ...]]:
    names = names or ("loss", "gnorm", "block/01/a", "tau")
    return {update: tuple(values[name] for name in names) for update, values in entries(output).items()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(str(path))["model"]


# --- phases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "lamb", "adagrad"])
def test_what_is_frozen_does_not_move(stream_data: Path, tmp_path: Path, kind: str):
    """Bitwise: alpha in warm-up and in updates of the weights, the weights in updates of the architecture
    (property 8)."""
    output = train(stream_data, tmp_path, "--save-interval-updates", 1, "--weight-optimizer", kind, "--weight-decay",
                   "0.1", "--disable-validation", "--clip-norm", "1.0")  # fmt: skip
    states = [weights(tmp_path / f"checkpoint_1_{update}.pt") for update in range(1, 10)]
    phases = Phases.of_flags(3, 0.5)
    for update in range(1, 9):
        before, after = states[update - 1], states[update]
        of_architecture = phases.phase(update) == ARCHITECTURE
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == ({ALPHA} if of_architecture else set(before) - {ALPHA}), update
        assert (entries(output)[update + 1].get("arch_loss") is not None) == of_architecture
    assert not states[2][ALPHA].any() and states[8][ALPHA].all()


def even(model: Any) -> Any:
    """The supernet as a mixture of equals, without noise."""
    model.decoder.mixture = True
    with torch.no_grad():
        model.decoder.alpha.zero_()
    return model.eval()


def losses_by_hand(model: Any, tokens: torch.Tensor, count: int, lanes: int = 4, block: int = 8) -> list[float]:
    """Bits per target of the first ``count`` blocks of all lanes, read again from the start when there are no more."""
    edges = [lane * (len(tokens) // lanes) + min(lane, len(tokens) % lanes) for lane in range(lanes + 1)]
    steps = math.ceil(max(end - start - 1 for start, end in pairwise(edges)) / block)
    memories: list[Any] = [None] * lanes
    found = []
    for number in range(count):
        if number % steps == 0:
            memories = [None] * lanes
        total = size = 0.0
        for lane, (start, end) in enumerate(pairwise(edges)):
            low, high = start + number % steps * block, min(start + (number % steps + 1) * block, end - 1)
            with torch.no_grad():
                logits, extra = model.decoder(tokens[None, low:high], memory=memories[lane])
            memories[lane] = extra["memory"]
            log_probs = logits.double().log_softmax(-1)[0]
            total -= float(log_probs.gather(1, tokens[low + 1 : high + 1, None]).sum())
            size += high - low
        found.append(total / size / math.log(2))
    return found


def test_each_stream_has_a_memory_of_its_own(stream_data: Path, tmp_path: Path):
    """Nothing is learned and the noise drowns: losses are those of loops over the two parts of the stream (bug 17)."""
    output = train(stream_data, tmp_path, "--lr", 0, "--arch-lr", 0, "--tau-start", 1e6, "--tau-end", 1e6,
                   "--max-update", 26, "--disable-validation", "--dropout", 0)  # fmt: skip
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "checkpoint_last.pt")], {"data": str(stream_data)}
    )
    task.load_dataset("train")
    stream = torch.from_numpy(task.dataset("train").stream.slice(0, 640))
    model, phases = even(models[0]), Phases.of_flags(3, 0.5)
    kinds = [phases.phase(update) == ARCHITECTURE for update in range(26)]
    parts = {False: losses_by_hand(model, stream[:512], 26), True: losses_by_hand(model, stream[512:], 26)}
    expected = [parts[kind][kinds[:number].count(kind)] for number, kind in enumerate(kinds)]
    found = [float(values["loss"]) for values in entries(output).values()]
    assert len(found) == 26 and kinds.count(True) > 8  # more than the held-out part has blocks
    assert found == pytest.approx(expected, abs=2e-3)


def test_temperature_and_probabilities_are_logged(stream_data: Path, tmp_path: Path):
    output = train(stream_data, tmp_path, "--max-update", 12, "--tensorboard-logdir", tmp_path / "tb")
    found = entries(output)
    for update, values in found.items():
        assert float(values["tau"]) == pytest.approx(5 * 0.02 ** ((update - 1) / 12), rel=1e-4)
        for block in range(3):
            assert sum(float(values[f"block/{block:02d}/{kind}"]) for kind in "afi") == pytest.approx(1, abs=1e-5)
    assert float(found[1]["arch_entropy"]) == pytest.approx(math.log(3), abs=1e-4)
    assert float(found[12]["arch_entropy"]) < 1.0986
    assert {"lr", "ppl", "arch_cost"} <= set(found[1])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb" / "train_inner"))
    events.Reload()
    assert {"tau", "loss", "ppl", "lr", "arch_entropy", "block/00/a", "block/02/i"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("tau")) == 12


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [3, 6, 28, 31], ids=["warm-up", "mid-epoch", "end", "second epoch"])
def test_resume_is_exact(stream_data: Path, tmp_path: Path, start: int):
    """Losses, both memories, optimizers, temperature; the first epoch ends after 28 updates (properties 7 and 16)."""
    flags = ("--dropout", "0.1", "--save-interval-updates", start, "--max-update", start + 5, "--tau-updates", 40)
    output = run_cli("train", args(stream_data, tmp_path / "whole", *flags))
    assert ("begin training epoch 2" in output) == (start > 20)
    name = "checkpoint1.pt" if start == 28 else f"checkpoint_{1 if start < 28 else 2}_{start}.pt"
    rest = run_cli("train", args(stream_data, tmp_path / "rest", *flags, "--restore-file", tmp_path / "whole" / name))
    expected = logged(output)
    assert logged(rest) == {update: expected[update] for update in range(start + 1, start + 6)}
    assert "nothing is remembered" not in rest
    assert_same_training(tmp_path / "rest/checkpoint_last.pt", tmp_path / "whole/checkpoint_last.pt")


def test_two_ranks(stream_data: Path, tmp_path: Path):
    """They train like one with two micro-batches (where the noise, of which these draw more, drowns), and resume."""
    flags = ("--dropout", 0, "--batch-size", 2, "--save-interval-updates", 4, "--disable-validation")
    quiet = ("--tau-start", 1e6, "--tau-end", 1e6, "--arch-lr", "0")
    two = logged(two_ranks(args(stream_data, tmp_path / "two", *flags, *quiet)), "loss", "gnorm")
    one = logged(
        run_cli("train", args(stream_data, tmp_path / "one", *flags, *quiet, "--update-freq", 2)), "loss", "gnorm"
    )
    assert list(two) == list(one) == list(range(1, 10))
    assert all(abs(float(a) - float(b)) < 2e-3 for u in one for a, b in zip(two[u], one[u], strict=True))
    flags += ("--arch-stable-updates", 50)
    expected = logged(two_ranks(args(stream_data, tmp_path / "noisy", *flags)))
    more = ("--restore-file", tmp_path / "noisy" / "checkpoint_1_4.pt")
    found = logged(two_ranks(args(stream_data, tmp_path / "rest", *flags, *more)))
    assert found == {update: expected[update] for update in range(5, 10)}
    assert_same_training(tmp_path / "rest/checkpoint_last.pt", tmp_path / "noisy/checkpoint_last.pt")


def test_resume_without_memory_or_with_other_lanes(stream_data: Path, tmp_path: Path):
    train(stream_data, tmp_path / "bare", "--save-interval-updates", 6, "--no-save-memory")
    assert "memory" not in read_checkpoint(str(tmp_path / "bare/checkpoint_1_6.pt"))["extra_state"]["SearchTask"]
    more = ("--restore-file", tmp_path / "bare" / "checkpoint_1_6.pt")
    output = train(stream_data, tmp_path / "a", *more, "--no-save-memory")
    assert "nothing is remembered" in output and max(entries(output)) == 9
    output = train(stream_data, tmp_path / "b", *more, "--batch-size", 2)
    assert "this epoch goes on at 2" in output and max(entries(output)) == 9


# --- the end ----------------------------------------------------------------------------------------------------------


def test_training_ends_when_the_layout_is_stable(stream_data: Path, tmp_path: Path):
    """With a checkpoint and a validation, as at --max-update; the count goes on after a restart."""
    flags = ("--arch-stable-updates", 4, "--arch-lr", 1e-4, "--max-update", 60)
    output = train(stream_data, tmp_path / "whole", *flags, "--save-interval-updates", 8)
    found = entries(output)
    end = max(found)
    assert 10 <= end < 60 and "has not changed in 4 updates of the architecture" in output
    state = read_checkpoint(str(tmp_path / "whole/checkpoint_last.pt"))
    assert state["optimizer_history"][-1]["num_updates"] == end and state["cfg"]["optimization"]["max_update"] == 60
    assert f'"valid_num_updates": "{end}"' in output and "done training" in output
    more = ("--restore-file", tmp_path / "whole" / "checkpoint_1_8.pt")
    assert max(entries(train(stream_data, tmp_path / "rest", *flags, *more))) == end
    assert max(entries(train(stream_data, tmp_path / "off", "--arch-lr", 1e-4, "--max-update", 30))) == 30


# --- other ways -------------------------------------------------------------------------------------------------------


def test_one_stage_as_the_published_code(stream_data: Path, tmp_path: Path):
    """Task segment_lm and one Adam for all: weights and architecture in every update."""
    flags = ("--task", "segment_lm", "--optimizer", "adam", "--save-interval-updates", 1)
    given = args(stream_data, tmp_path, *flags, "--max-update", 3)
    for name in ("--arch-lr", "--arch-warmup-updates", "--arch-update-share"):
        place = given.index(name)
        del given[place : place + 2]
    run_in_process("train", given)
    one, two = (weights(tmp_path / f"checkpoint_1_{update}.pt") for update in (1, 2))
    assert all(not torch.equal(one[name], two[name]) for name in one)


def test_the_latency_term_makes_attention_rarer(stream_data: Path, tmp_path: Path):
    """In a training (property 18)."""
    found = []
    for weight in (0.0, 20.0):
        flags = (
            "--latency-weight",
            weight,
            "--latency-tokens",
            64,
            "--latency-memory",
            640,
            "--arch-warmup-updates",
            0,
        )
        output = train(stream_data, tmp_path / str(weight), *flags, "--max-update", 20, "--disable-validation")
        values = entries(output)[20]
        found.append(sum(float(values[f"block/{block:02d}/a"]) for block in range(3)))
        assert ("aux/latency" in values) == (weight > 0)
    assert 1 < float(values["aux/latency"]) < 20
    assert found[1] < found[0] - 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tau-start", "0"), "--tau-start 0.0: must be greater than 0"),
        (("--tau-end", "-1"), "--tau-end -1.0: must be greater than 0"),
        (("--tau-updates", "-1"), "--tau-updates -1: must be at least 0"),
        (("--mem-len", "-1"), "--mem-len -1: must be at least 0"),
        (("--clamp-len", "-2"), "--clamp-len -2: must be at least -1"),
        (("--same-length", "--mem-len", "0"), "--same-length needs --mem-len"),
        (("--decoder-blocks", "-3"), "--decoder-blocks -3: must not be negative"),
        (("--decoder-attention-heads", "3"), "--decoder-attention-heads 3 must divide --decoder-embed-dim 16"),
        (("--decoder-embed-dim", "15", "--decoder-attention-heads", "3"), "--decoder-embed-dim 15: must be even"),
        (("--init-std", "0"), "--init-std 0.0: must be greater than 0"),
        (("--adaptive-softmax-cutoff", "9,8"), "--adaptive-softmax-cutoff 9,8: expected rising ids"),
        (("--adaptive-softmax-cutoff", "15"), "15 is beyond the dictionary, which has 15 types"),
        (("--arch-update-share", "0.9999"), "--arch-update-share 0.9999: must be between 0.001 and 0.999"),
        (("--arch-update-share", "0.0001"), "--arch-update-share 0.0001: must be between"),
        (("--arch-update-share", "1"), "--arch-update-share 1.0: must be between 0.001 and 0.999"),
        (("--arch-data-share", "0"), "--arch-data-share 0.0: must be between 0 and 1"),
        (("--arch-warmup-updates", "9"), "--arch-warmup-updates 9: leaves no update for the architecture"),
        (("--arch-stable-updates", "-1"), "--arch-stable-updates -1: must not be negative"),
        (("--arch-lr", "-1"), "--arch-lr -1.0: must not be negative"),
        (("--latency-weight", "-1"), "--latency-weight -1.0: must be at least 0"),
        (("--latency-table", "gone.json"), "--latency-table gone.json: No such file"),
        (("--batch-size", "100"), "tokens are too few for 100 lanes"),
        (("--optimizer", "adam"), "--task par_search needs --optimizer par_search"),
        (("--max-update", "0", "--max-epoch", "1"), "--tau-updates is needed where --max-update does not end training"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_mistakes_are_one_line(stream_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    given = args(stream_data, tmp_path, *more)
    if "adam" in more:
        place = given.index("--arch-lr")
        del given[place : place + 2]
    with pytest.raises(UserError) as caught:
        run_in_process("train", given)
    assert message in str(caught.value)


def test_a_search_that_never_updates_the_architecture_is_told(stream_data: Path, tmp_path: Path):
    output = train(stream_data, tmp_path, "--arch-update-share", "0.01")
    assert "leaves no update for the architecture before --max-update 9, at --arch-update-share 0.01" in output


def test_a_par_lm_has_nothing_to_search(stream_data: Path, tmp_path: Path):
    given = args(stream_data, tmp_path)
    given[given.index("par_supernet")] = "par_lm"
    with pytest.raises(UserError, match="--task par_search trains a par_supernet"):
        run_in_process("train", given)


def test_parts_of_a_batch_draw_one_architecture(stream_data: Path, tmp_path: Path):
    """--batch-split: the same updates as unsplit, noise included."""
    flags = ("--dropout", "0", "--disable-validation")
    whole = logged(train(stream_data, tmp_path / "whole", *flags), "loss", "gnorm", "block/01/a")
    split = logged(train(stream_data, tmp_path / "split", *flags, "--batch-split", 3), "loss", "gnorm", "block/01/a")
    assert list(whole) == list(split)
    assert all(abs(float(a) - float(b)) < 2e-3 for u in whole for a, b in zip(whole[u], split[u], strict=True))


def test_losses_do_not_depend_on_validation_and_workers(stream_data: Path, tmp_path: Path):
    plain = logged(train(stream_data, tmp_path / "plain", "--disable-validation"))
    for number, more in enumerate([("--validate-interval-updates", 2), ("--num-workers", 2, "--data-buffer-size", 3)]):
        assert logged(train(stream_data, tmp_path / str(number), *more)) == plain
    assert_close(weights(tmp_path / "0/checkpoint_last.pt"), weights(tmp_path / "plain/checkpoint_last.pt"), 0, 0)
