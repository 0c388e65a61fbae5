"""sequential_lm through fairseq's commands: training, evaluation, generation, configurations."""

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.options import get_training_parser, parse_args_and_arch

import adaptive_span  # noqa: F401  (registers)
from adaptive_span.config import ARCHITECTURES
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests import stream_models
from tests.stream_models import bits_by_hand, check_greedy_generation, check_interactive, last, load
from tests.util import ROOT, assert_close, error_line, refused, run_cli, run_in_process

USER_DIR = ("--user-dir", str(ROOT / "adaptive_span"))
common, eval_lm = (partial(tool, "adaptive_span") for tool in (stream_models.common, stream_models.eval_lm))
SIZES = (
    "--decoder-layers", "2", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads",
    "2", "--attn-span", "20",
)  # fmt: skip
SPANS = ("--adapt-span", "--adapt-span-ramp", "4", "--adapt-span-loss", "1e-4")
MODELS = {
    "fixed": (),
    "spans": (*SPANS, "--adapt-span-cache"),
    "tokens": (*SPANS, "--dynamic-span"),
    "orig": (*SPANS, "--adapt-span-mask", "orig", "--empty-cache", "zeros"),
    "tied": (*SPANS, "--pers-mem-size", "6", "--adaptive-softmax-cutoff", "6,10", "--adaptive-softmax-factor", "2",
             "--adaptive-input", "--adaptive-input-factor", "2", "--tie-adaptive-weights", "--tie-adaptive-proj"),
}  # fmt: skip

OPTIMIZER = ("--optimizer", "adagrad_with_grad_clip", "--adagrad-clip", "0.1")


def train_args(data: Path, folder: Path, *more: Any) -> list[str]:
    ours = () if "--optimizer" in more else OPTIMIZER
    return [
        str(data), *USER_DIR, "--task", "segment_lm", "--arch", "sequential_lm", *SIZES, "--criterion",
        "adaptive_span_loss", *ours, "--lr", "0.07",
        "--lr-scheduler", "fixed", "--warmup-updates", "4", "--batch-size", "4", "--tokens-per-sample", "8",
        "--max-update", "6", "--save-dir", str(folder), "--log-format", "json", "--log-interval", "1", "--seed", "1",
        "--cpu", "--num-workers", "0", *map(str, more),
    ]  # fmt: skip


def train(data: Path, folder: Path, *more: Any, tool: Any = run_in_process) -> str:
    return str(tool("train", train_args(data, folder, *more)))


def losses(output: str) -> dict[int, str]:
    """update -> training loss as printed, with or without the names of loggers."""
    found = (json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line)
    return {int(values["num_updates"]): values["loss"] for values in found if "loss" in values}


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, flags in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        assert "done training" in train(stream_data, folders[name], *flags, "--max-update", 40)
    return folders


@pytest.mark.parametrize("name", MODELS)
def test_p15_f13_perplexity_is_that_of_one_lane_whatever_the_batch(
    trained: dict[str, Path], stream_data: Path, name: str
):
    """Every token but the first is scored once, and blocks of any length say the same."""
    model, tokens = load(stream_data, trained[name])
    expected, short = bits_by_hand(model, tokens, 8), bits_by_hand(model, tokens, 8, 3)
    if name == "tokens":  # spans of a block are bounded by its own longest one, which rounds differently
        assert bits_by_hand(model, tokens, 199) == pytest.approx(expected, abs=1e-5)
    for bits, more in (
        (expected, ("--batch-size", 1)),
        (expected, ("--batch-size", 3)),
        (expected, ("--batch-size", 3, "--tokens-per-sample", 5)),
        (short, ("--batch-size", 3, "--eval-mem-len", 3)),
    ):
        found, perplexity, count = eval_lm(stream_data, trained[name], *more)
        assert count == len(tokens) - 1 == 199
        assert abs(found - bits) < 2e-3 and abs(perplexity - 2**bits) < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_p15_validation_says_the_same(trained: dict[str, Path], stream_data: Path, name: str):
    """In training and after it; perplexity is that of the loss."""
    expected = bits_by_hand(*load(stream_data, trained[name]), 8)
    flags = ("--valid-subset", "test", "--batch-size", "3", "--log-format", "json")
    output = run_in_process("validate", [*common(stream_data, trained[name]), *flags])
    line = next(line for line in output.splitlines() if '"test_loss"' in line or '"loss"' in line)
    for key, value in (("loss", expected), ("bpc", expected), ("ppl", 2**expected)):
        assert abs(float(re.search(rf'"(?:test_)?{key}": "?([\d.]+)', line)[1]) - value) < 0.02
    state = read_checkpoint(last(trained[name]))
    saved = state["extra_state"]["val_loss"]
    valid = run_in_process("eval_lm", [*common(stream_data, trained[name]), "--gen-subset", "valid"])
    assert float(re.search(r"Loss \(base 2\): ([\d.]+)", valid)[1]) == pytest.approx(saved, abs=2e-3)


def test_the_log_holds_spans_apart_from_bits(stream_data: Path, tmp_path: Path):
    output = train(stream_data, tmp_path, *SPANS, "--adapt-span-loss", "0.01")
    lines = [json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line]
    first = lines[0]
    assert float(first["loss"]) == pytest.approx(float(first["bpc"]), abs=1e-3)
    assert float(first["bpc"]) == pytest.approx(math.log2(float(first["ppl"])), abs=0.01)
    assert {f"span/{layer:02d}/{head:02d}" for layer in (0, 1) for head in (0, 1)} <= set(first)
    assert float(first["mean_span"]) == 4.0 and float(first["aux/span"]) == 0.0
    assert float(lines[-1]["aux/span"]) >= 0.0


def test_training_with_fairseqs_criterion_and_task(stream_data: Path, tmp_path: Path):
    """Without span loss, which is told, and without memory: other tasks know nothing of either."""
    output = train(stream_data, tmp_path / "a", *SPANS, "--criterion", "cross_entropy")
    assert "done training" in output and "--adapt-span-loss 0.0001 has no effect" in output
    assert "has no effect" not in train(stream_data, tmp_path / "c", *SPANS)
    more = ("--task", "language_modeling", "--sample-break-mode", "none", "--tokens-per-sample", "16")
    assert "done training" in train(stream_data, tmp_path / "b", *SPANS, *more)


def test_p7_spans_stay_in_range(stream_data: Path, tmp_path: Path):
    train(stream_data, tmp_path, *SPANS, "--adapt-span-loss", "1.0", "--lr", "3.0", "--max-update", "12")
    weights = read_checkpoint(last(tmp_path))["model"]
    for name, value in weights.items():
        if "spans" in name:
            assert ((value >= 0) & (value <= 1)).all()


def test_p18_checkpoints_load_without_any_environment_variable(trained: dict[str, Path], stream_data: Path):
    """Plain values and tensors for our own reader; fairseq's loader needs nothing either."""
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    for folder in trained.values():
        state = read_checkpoint(last(folder))
        assert state["model"] and state["last_optimizer_state"]
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([last(folder)], {"data": str(stream_data)})
        weights = models[0].state_dict()
        assert_close({name: weights[name] for name in state["model"]}, dict(state["model"]), 0, 0)


# --- batch split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_split_batch_is_the_same_training(stream_data: Path, tmp_path: Path, name: str):
    """With its memory, for parts of unequal size, and the same losses to the last digit that is printed.

    Plain gradient descent: Adagrad makes a whole step of a gradient that is rounding alone.
    """
    plain = ("--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed", "--momentum", "0.5")
    found, weights = [], []
    for parts in (1, 3, 4):
        folder = tmp_path / str(parts)
        output = train(stream_data, folder, *MODELS[name], *plain, "--batch-split", parts)
        found.append(losses(output))
        weights.append(read_checkpoint(last(folder))["model"])
    assert len(found[0]) == 6 and found[0] == found[1] == found[2]
    assert_close(weights[1], weights[0], 2e-5, 1e-4)
    assert_close(weights[2], weights[0], 2e-5, 1e-4)


def test_p16_a_resumed_split_is_exact(stream_data: Path, tmp_path: Path):
    flags = (*MODELS["spans"], "--batch-split", 2, "--dropout", 0.1, "--save-interval-updates", 3)
    whole = losses(train(stream_data, tmp_path / "a", *flags))
    start = ("--restore-file", tmp_path / "a" / "checkpoint_1_3.pt")
    rest = losses(train(stream_data, tmp_path / "b", *flags, *start))
    assert rest == {update: whole[update] for update in (4, 5, 6)}
    ours, theirs = (read_checkpoint(last(tmp_path / name))["model"] for name in "ab")
    assert_close(ours, theirs, 0, 0)


def test_what_cannot_be_split_is_told(stream_data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--batch-split 0: must be at least 1"):
        train(stream_data, tmp_path, "--batch-split", 0)


# --- generation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int, eos: int) -> list[int]:
    """Best next tokens by forwards over all that came before; pads are never chosen."""
    found = [eos, *prompt]
    while len(found) < 1 + count:
        output, extra = model.decoder(torch.tensor([found]))
        probs = model.get_normalized_probs((output, extra), log_probs=True)[0, -1]
        probs[1] = -math.inf
        found.append(int(probs.argmax()))
        if found[-1] == eos:
            break
    return found[1:]


@pytest.mark.parametrize("name", MODELS)
def test_p17_generation_is_greedy_search(trained: dict[str, Path], stream_data: Path, name: str):
    """With caches as with full recomputation, beyond the longest span."""
    check_greedy_generation("adaptive_span", stream_data, trained[name], 40, greedy)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "more", [("--beam", "3"), ("--beam", "2", "--nbest", "2", "--sampling")], ids=["beam", "sampling"]
)
def test_interactive(trained: dict[str, Path], stream_data: Path, tmp_path: Path, name: str, more: tuple[str, ...]):
    check_interactive("adaptive_span", stream_data, trained[name], tmp_path / "prompts.txt", *more)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--attn-span", "0"), "--attn-span 0: must be at least 1"),
        (("--adapt-span", "--adapt-span-ramp", "0"), "--adapt-span-ramp 0: must be at least 1"),
        (("--adapt-span", "--adapt-span-init", "1.5"), "--adapt-span-init 1.5: is a share of --attn-span"),
        (("--adapt-span", "--adapt-span-loss", "-1"), "--adapt-span-loss -1.0: must be at least 0"),
        (("--adapt-span", "--adapt-span-loss", "inf"), "--adapt-span-loss inf: must be finite"),
        (("--pers-mem-size", "-3"), "--pers-mem-size -3: must be at least 0"),
        (("--adapt-span-loss", "0.1"), "--adapt-span-loss is of learned spans: say --adapt-span too"),
        (("--adapt-span-init", "0.5"), "--adapt-span-init is of learned spans: say --adapt-span too"),
        (("--adapt-span-ramp", "9"), "--adapt-span-ramp is of learned spans: say --adapt-span too"),
        (("--adapt-span-mask", "orig"), "--adapt-span-mask is of learned spans: say --adapt-span too"),
        (("--dynamic-span",), "--dynamic-span is of learned spans: say --adapt-span too"),
        (("--decoder-attention-heads", "3"), "--decoder-attention-heads 3 must divide --decoder-embed-dim 16"),
        (("--dropout", "1"), "--dropout 1.0: must be at least 0 and below 1"),
        (("--adagrad-clip", "-1"), "--adagrad-clip -1.0: must not be negative"),
        (("--adaptive-softmax-cutoff", "9,99"), "99 is beyond the dictionary, which has 15 types"),
    ],
)
def test_mistakes_are_one_line(stream_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    assert message in train(stream_data, tmp_path, *more, tool=refused)


@pytest.mark.parametrize(
    "more",
    [("--adapt-span", "--adapt-span-ramp", "50"), ("--pers-mem-size", "0"), ("--tokens-per-sample", "64"),
     ("--attn-span", "3", "--adapt-span"), ("--batch-size", "3", "--update-freq", "2", "--batch-split", "5")],
    ids=["ramp beyond span", "no persistent vectors", "block beyond span", "three tokens", "more parts than rows"],
)  # fmt: skip
def test_odd_sizes_work(stream_data: Path, tmp_path: Path, more: tuple[str, ...]):
    output = train(stream_data, tmp_path, *more, "--max-update", 3)
    found = losses(output)
    assert "done training" in output and len(found) == 3 and all(math.isfinite(float(loss)) for loss in found.values())


def test_another_span_does_not_resume(trained: dict[str, Path], stream_data: Path, tmp_path: Path):
    args = train_args(stream_data, tmp_path, *MODELS["spans"], "--restore-file", last(trained["spans"]))
    line = error_line(run_cli("train", [*args, "--attn-span", "30"], expect=2))
    assert "was trained with --attn-span 20, the model has 30: say --attn-span 20" in line


def test_another_batch_size_resumes_with_a_warning(stream_data: Path, tmp_path: Path):
    """Lanes are others, so memory starts empty: told, not guessed."""
    flags = (*MODELS["spans"], "--save-interval-updates", 3)
    train(stream_data, tmp_path / "a", *flags)
    start = ("--restore-file", tmp_path / "a" / "checkpoint_1_3.pt", "--batch-size", 2)
    output = train(stream_data, tmp_path / "b", *flags, *start)
    assert "other lanes or blocks" in output and "done training" in output


# --- configurations -------------------------------------------------------------------------------------------------


def yaml_of(arch: str) -> str:
    return arch.removeprefix("sequential_lm_")


def test_each_configuration_is_an_architecture():
    folder = ROOT / "adaptive_span" / "configs"
    assert {path.stem for path in folder.glob("*.yaml")} == {yaml_of(arch) for arch in ARCHITECTURES}
    for arch, values in ARCHITECTURES.items():
        found = yaml.safe_load((folder / f"{yaml_of(arch)}.yaml").read_text())["model"]
        assert found.pop("_name") == arch
        assert found == values


PUBLISHED = {  # block, parts of a batch, learning rate, warm-up, updates
    "enwik8_small": (256, 1, 0.07, 8000, 150_000), "enwik8": (512, 1, 0.07, 32_000, 600_000),
    "text8": (512, 1, 0.07, 32_000, 900_000), "enwik8_large": (512, 2, 0.07, 32_000, 150_000),
    "text8_large": (512, 2, 0.07, 32_000, 250_000), "enwik8_pers_small": (512, 2, 0.07, 32_000, 450_000),
    "enwik8_pers": (512, 2, 0.07, 32_000, 200_000), "wiki103_pers": (256, 1, 2.5e-4, 8000, 800_000),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_configuration_trains_as_published(name: str):
    found = yaml.safe_load((ROOT / "adaptive_span" / "configs" / f"{name}.yaml").read_text())
    training, task, optimizer = found["optimization"], found["task"], found["optimizer"]
    rates = (training["lr"][0], found["lr_scheduler"]["warmup_updates"], training["max_update"])
    assert (task["tokens_per_sample"], task["batch_split"], *rates) == PUBLISHED[name]
    assert found["dataset"]["batch_size"] == (64 if name == "enwik8_small" else 8)  # of 1 and of 8 ranks
    assert found["lr_scheduler"]["_name"] == "fixed" and found["criterion"]["_name"] == "adaptive_span_loss"
    if name == "wiki103_pers":  # one clip for all gradients
        assert optimizer["_name"] == "adam" and training["clip_norm"] == 1.0
    else:
        assert (optimizer["_name"], optimizer["adagrad_clip"]) == ("adagrad_with_grad_clip", 0.03)
        assert training["clip_norm"] == 0.0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_has_the_published_sizes(arch: str):
    """layers, width, feed-forward, heads, span, persistent vectors, dropout, span loss."""
    expected = {
        "enwik8_small": (8, 256, 1024, 4, 1024, 0, 0.0, 2e-6), "enwik8": (12, 512, 2048, 8, 8192, 0, 0.3, 5e-7),
        "text8": (12, 512, 2048, 8, 8192, 0, 0.3, 5e-7), "enwik8_large": (24, 768, 4096, 8, 8192, 0, 0.4, 5e-7),
        "text8_large": (24, 768, 4096, 8, 8192, 0, 0.4, 5e-7),
        "enwik8_pers_small": (18, 512, 2048, 8, 8192, 1024, 0.3, 1e-7),
        "enwik8_pers": (36, 512, 2048, 8, 8192, 2048, 0.4, 1e-7),
        "wiki103_pers": (36, 512, 2048, 8, 2048, 2048, 0.3, 5e-7), "tiny": (3, 64, 128, 4, 128, 0, 0.0, 2e-6),
    }[yaml_of(arch)]  # fmt: skip
    args = ["data", *USER_DIR, "--task", "segment_lm", "--arch", arch, "--optimizer", "adam", "--max-update", "9"]
    cfg = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), args)).model
    names = ("decoder_layers", "decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads", "attn_span",
             "pers_mem_size", "dropout", "adapt_span_loss")  # fmt: skip
    assert tuple(getattr(cfg, name) for name in names) == expected
    assert cfg.adapt_span and cfg.adapt_span_cache


def test_a_config_on_the_command_line_and_in_yaml_is_the_same(stream_data: Path, tmp_path: Path):
    run_cli(
        "hydra_train",
        ["--config-dir", ROOT / "adaptive_span" / "configs", "--config-name", "tiny", f"hydra.run.dir={tmp_path}",
         f"common.user_dir={ROOT / 'adaptive_span'}", f"task.data={stream_data}", "++common.cpu=true",
         f"++checkpoint.save_dir={tmp_path / 'yaml'}", "dataset.num_workers=0", "optimization.max_update=2",
         "dataset.batch_size=4", "task.tokens_per_sample=8"]
    )  # fmt: skip
    args = [
        str(stream_data), *USER_DIR, "--task", "segment_lm", "--criterion", "adaptive_span_loss", "--arch",
        "sequential_lm_tiny", "--optimizer", "adagrad_with_grad_clip", "--adagrad-clip", "0.03", "--lr", "0.07",
        "--lr-scheduler", "fixed", "--warmup-updates", "100", "--batch-size", "4", "--tokens-per-sample", "8",
        "--max-update", "2", "--save-dir", str(tmp_path / "flags"), "--seed", "1", "--cpu", "--num-workers", "0",
    ]  # fmt: skip
    run_in_process("train", args)
    states = [read_checkpoint(last(tmp_path / name)) for name in ("yaml", "flags")]
    assert states[0]["cfg"]["model"] == states[1]["cfg"]["model"]
    assert_close(states[0]["model"], states[1]["model"], 0, 0)
