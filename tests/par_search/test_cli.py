"""par_lm and par_supernet through fairseq's commands: training, evaluation, generation, configurations."""

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.options import get_training_parser, parse_args_and_arch

import par_search  # noqa: F401  (registers)
from fairseq_efficient.checkpoints import read_checkpoint
from par_search.config import ARCHITECTURES
from tests import stream_models
from tests.par_search.helpers import remembered_in_decoding
from tests.stream_models import bits_by_hand, check_greedy_generation, check_interactive, last, load
from tests.util import ROOT, assert_close, error_line, refused, run_cli, run_in_process

USER_DIR = ("--user-dir", str(ROOT / "par_search"))
common, eval_lm = (partial(tool, "par_search") for tool in (stream_models.common, stream_models.eval_lm))
SIZES = (
    "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2", "--mem-len", "12",
)  # fmt: skip
MODELS = {
    "plain": ("--arch", "par_lm", "--layout", "aff"),
    "adaptive": ("--arch", "par_lm", "--layout", "aff", "--adaptive-softmax-cutoff", "6,10",
                 "--adaptive-softmax-factor", "2", "--adaptive-input", "--adaptive-input-factor", "2",
                 "--tie-adaptive-weights", "--cache-memory", "keys"),
    "supernet": ("--arch", "par_supernet", "--decoder-blocks", "3"),
}  # fmt: skip


def train(data: Path, folder: Path, *more: Any, tool: Any = run_in_process) -> str:
    args = [
        str(data), *USER_DIR, "--task", "segment_lm", *SIZES, "--criterion", "par_search", "--optimizer", "par_search",
        "--lr", "0.01", "--batch-size", "4", "--tokens-per-sample", "8", "--max-update", "6", "--save-dir",
        str(folder), "--log-format", "json", "--log-interval", "1", "--seed", "1", "--cpu", "--num-workers", "0",
        *map(str, more),
    ]  # fmt: skip
    return str(tool("train", args))


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, flags in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        assert "done training" in train(stream_data, folders[name], *flags, "--max-update", 40)
    return folders


@pytest.mark.parametrize("name", MODELS)
def test_perplexity_is_that_of_one_lane_whatever_the_batch(trained: dict[str, Path], stream_data: Path, name: str):
    """exp(total nll / scored tokens), added up here by full distributions (property 13; bug 8)."""
    model, tokens = load(stream_data, trained[name])
    for more, block, length in (((), 8, None), (("--tokens-per-sample", 5, "--eval-mem-len", 20), 5, 20)):
        expected = bits_by_hand(model, tokens, block, length)
        for batch in (1, 3):
            bits, perplexity, count = eval_lm(stream_data, trained[name], "--batch-size", batch, *more)
            assert count == len(tokens) - 1 == 199
            assert abs(bits - expected) < 2e-3 and abs(perplexity - 2**expected) < 0.02


@pytest.mark.parametrize("name", MODELS)
def test_validation_says_the_same(trained: dict[str, Path], stream_data: Path, name: str):
    expected = bits_by_hand(*load(stream_data, trained[name]), 8)
    flags = ("--valid-subset", "test", "--batch-size", "3", "--log-format", "json")
    output = run_in_process("validate", [*common(stream_data, trained[name]), *flags])
    line = next(line for line in output.splitlines() if '"test_loss"' in line or '"loss"' in line)
    assert abs(float(re.search(r'"(?:test_)?loss": "?([\d.]+)', line)[1]) - expected) < 2e-3
    assert abs(float(re.search(r'"(?:test_)?ppl": "?([\d.]+)', line)[1]) - 2**expected) < 0.02


def test_training_with_fairseqs_criteria(stream_data: Path, tmp_path: Path):
    """adaptive_loss gives the losses of ours, update by update."""
    found = {}
    for criterion in ("par_search", "adaptive_loss"):
        more = ("--criterion", criterion, "--ddp-backend", "legacy_ddp", "--dropout", 0)
        output = train(stream_data, tmp_path / criterion, *MODELS["adaptive"], *more)
        lines = (json.loads(line[line.index("{") :]) for line in output.splitlines() if '"gnorm"' in line)
        found[criterion] = [float(values["loss"]) for values in lines if "loss" in values]
    assert len(found["par_search"]) == 6 and found["adaptive_loss"] == pytest.approx(found["par_search"], abs=2e-3)
    plain = train(stream_data, tmp_path / "x", *MODELS["plain"], "--criterion", "cross_entropy", "--optimizer", "adam")
    assert "done training" in plain


def test_cached_keys_are_the_same_numbers(trained: dict[str, Path], stream_data: Path):
    model, tokens = load(stream_data, trained["plain"])
    keys, _ = load(stream_data, trained["plain"], cache_memory="keys")
    assert keys.decoder.options.block.cache_keys
    assert bits_by_hand(keys, tokens, 8) == pytest.approx(bits_by_hand(model, tokens, 8), abs=1e-5)
    more = ("--model-overrides", "{'cache_memory': 'keys'}", "--batch-size", 2)
    assert eval_lm(stream_data, trained["plain"], *more)[0] == pytest.approx(bits_by_hand(model, tokens, 8), abs=2e-3)


def test_a_supernet_is_evaluated_as_mixture_if_asked(trained: dict[str, Path], stream_data: Path):
    mixture, tokens = load(stream_data, trained["supernet"], supernet_eval="mixture")
    expected = bits_by_hand(mixture, tokens, 8)
    argmax, _ = load(stream_data, trained["supernet"])
    assert abs(bits_by_hand(argmax, tokens, 8) - expected) > 1e-3
    more = ("--model-overrides", "{'supernet_eval': 'mixture'}", "--batch-size", 2)
    assert eval_lm(stream_data, trained["supernet"], *more)[0] == pytest.approx(expected, abs=2e-3)


# --- generation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int, eos: int) -> list[int]:
    """Best next tokens by forwards over all that came before, in blocks of one token; pads are never chosen."""
    found, length = [eos, *prompt], remembered_in_decoding(model.decoder)
    while len(found) < 1 + count:
        memory = None
        for token in found:
            output, extra = model.decoder(torch.tensor([[token]]), memory=memory, memory_length=length)
            memory = extra["memory"]
        probs = model.get_normalized_probs((output, extra), log_probs=True)[0, -1]
        probs[1] = -math.inf
        found.append(int(probs.argmax()))
        if found[-1] == eos:
            break
    return found[1:]


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_greedy_search_with_memory(trained: dict[str, Path], stream_data: Path, name: str):
    check_greedy_generation("par_search", stream_data, trained[name], 24, greedy)


def test_generation_remembers_as_much_as_asked(trained: dict[str, Path], stream_data: Path):
    """--eval-mem-len counts tokens before the one that is read; with --mem-len the blocks of the training do, too."""
    flags = ("--gen-subset", "test", "--batch-size", "2", "--prefix-size", "20", "--max-len-b", "40", "--beam", "1",
             "--tokens-per-sample", "50")  # fmt: skip
    found = []
    overrides = "{'mem_len': 2, 'tokens_per_sample': 3}"
    for more in ((), ("--eval-mem-len", "4"), ("--model-overrides", overrides)):
        output = run_in_process("generate", [*common(stream_data, trained["plain"]), *flags, *more])
        found.append(re.findall(r"^P-.*$", output, re.MULTILINE))
    assert len(found[0]) == 4 and found[0] != found[1] == found[2]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "more", [("--beam", "3"), ("--beam", "2", "--nbest", "2", "--sampling")], ids=["beam", "sampling"]
)
def test_interactive(trained: dict[str, Path], stream_data: Path, tmp_path: Path, name: str, more: tuple[str, ...]):
    check_interactive("par_search", stream_data, trained[name], tmp_path / "prompts.txt", *more)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--layout", "afx"), "--layout afx: 'x' is not one of a (attention)"),
        (("--layout", "aff", "--decoder-blocks", "4"), "--layout aff: has 3 blocks, but --decoder-blocks says 4"),
        (("--layout", ","), "has no block"),
        (("--layout", "", "--layout-rule", "par", "--par-ratio", "1"), "--par-ratio 1.0: must be at least 1.5"),
        (("--layout", "", "--layout-rule", "sandwich", "--decoder-blocks", "3"), "needs an even number"),
        (("--mem-len", "-1"), "--mem-len -1: must be at least 0"),
        (("--adaptive-softmax-cutoff", "9,8"), "expected rising ids"),
        (("--adaptive-softmax-cutoff", "9,99"), "99 is beyond the dictionary, which has 15 types"),
        (("--latency-weight", "0.1"), "--latency-weight is of --arch par_supernet: the layout of par_lm is fixed"),
        (("--latency-loss", "product"), "--latency-loss is of --arch par_supernet"),
        (("--latency-table", "t.json"), "--latency-table is of --arch par_supernet"),
    ],
)
def test_mistakes_are_one_line(stream_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    assert message in train(stream_data, tmp_path, "--arch", "par_lm", *more, tool=refused)


def test_another_layout_does_not_resume(trained: dict[str, Path], stream_data: Path, tmp_path: Path):
    args = [
        str(stream_data), *USER_DIR, "--task", "segment_lm", *SIZES, "--criterion", "par_search", "--optimizer",
        "par_search", "--lr", "0.01", "--batch-size", "4", "--tokens-per-sample", "8", "--max-update", "50", "--cpu",
        "--save-dir", str(tmp_path), "--restore-file", last(trained["plain"]), "--arch",
    ]  # fmt: skip
    line = error_line(run_cli("train", [*args, "par_lm", "--layout", "faf"], expect=2))
    assert "holds the layout aff, the model has faf: say --layout aff" in line
    line = error_line(run_cli("train", [*args, "par_supernet", "--decoder-blocks", "3"], expect=2))
    assert "holds a par_lm of the layout aff, not a par_supernet" in line
    assert "done training" in run_cli("train", [*args, "par_lm", "--layout", "aff"])


# --- configurations -------------------------------------------------------------------------------------------------

NAMES = {"par_lm_txl_": "txl_", "par_lm_": "", "par_supernet_": "supernet_"}


def yaml_of(arch: str) -> str:
    prefix = next(prefix for prefix in NAMES if arch.startswith(prefix))
    return NAMES[prefix] + arch.removeprefix(prefix)


def test_each_configuration_is_an_architecture():
    folder = ROOT / "par_search" / "configs"
    assert {path.stem for path in folder.glob("*.yaml")} == {yaml_of(arch) for arch in ARCHITECTURES}
    for arch, values in ARCHITECTURES.items():
        found = yaml.safe_load((folder / f"{yaml_of(arch)}.yaml").read_text())["model"]
        assert found.pop("_name") == arch
        assert {key: value for key, value in found.items() if not key.startswith("tau")} == values
    assert tasks.TASK_REGISTRY["par_search"].__module__ == "par_search.task"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_has_the_published_sizes(arch: str):
    """Blocks, width, feed-forward, heads, memory, dropout, as flags and as configuration."""
    args = ["data", *USER_DIR, "--task", "segment_lm", "--arch", arch, "--optimizer", "par_search", "--max-update", "9"]
    cfg = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), args)).model
    expected = {
        "base": (32, 512, 2048, 8, 192, 0.1), "large": (36, 1024, 4096, 16, 384, 0.2),
        "enwik8": (24, 512, 2048, 8, 512, 0.1), "text8": (24, 512, 2048, 8, 512, 0.1),
        "small": (6, 128, 1024, 4, 16, 0.1), "tiny": (6, 64, 256, 4, 32, 0.0),
    }[arch.split("_")[-1]]  # fmt: skip
    names = ("decoder_blocks", "decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads", "mem_len",
             "dropout")  # fmt: skip
    assert tuple(getattr(cfg, name) for name in names) == expected
    if arch.startswith("par_lm"):
        assert str(cfg.layout_rule) == ("interleaved" if "txl" in arch else "par")


@pytest.mark.parametrize("arch", ["par_lm_tiny", "par_lm_txl_tiny", "par_supernet_tiny"])
def test_a_config_on_the_command_line_and_in_yaml_is_the_same(stream_data: Path, tmp_path: Path, arch: str):
    folder = ROOT / "par_search" / "configs"
    more = ["task.arch_warmup_updates=1"] if "supernet" in arch else []
    run_cli(
        "hydra_train",
        ["--config-dir", folder, "--config-name", yaml_of(arch), f"hydra.run.dir={tmp_path}",
         f"common.user_dir={ROOT / 'par_search'}", f"task.data={stream_data}", "++common.cpu=true",
         f"++checkpoint.save_dir={tmp_path / 'yaml'}", "dataset.num_workers=0", "optimization.max_update=2",
         "dataset.batch_size=4", "lr_scheduler.warmup_updates=1", "task.tokens_per_sample=8", *more]
    )  # fmt: skip
    search = ("--task", "par_search", "--arch-warmup-updates", 1, "--weight-decay", 0.0001) if more else ()
    flags = ("--arch", arch, "--lr", 0.002, "--lr-scheduler", "cosine", "--warmup-updates", 1, "--clip-norm", 0.25)
    args = [
        str(stream_data), *USER_DIR, "--task", "segment_lm", "--criterion", "par_search", "--optimizer", "par_search",
        "--batch-size", "4", "--tokens-per-sample", "8", "--max-update", "2", "--save-dir", str(tmp_path / "flags"),
        "--seed", "1", "--cpu", "--num-workers", "0", *map(str, (*flags, *search)),
    ]  # fmt: skip
    run_in_process("train", args)
    states = [read_checkpoint(last(tmp_path / name)) for name in ("yaml", "flags")]
    assert states[0]["cfg"]["model"] == states[1]["cfg"]["model"]
    assert_close(states[0]["model"], states[1]["model"], 0, 0)
