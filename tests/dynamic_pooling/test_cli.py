"""The commands that users type: train, validate, eval-lm, generate, interactive; on tiny character data."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, tasks

from dynamic_pooling.config import ARCHITECTURES
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.text.symbols import decode_characters
from tests.util import HOURGLASS, ROOT, System, assert_close, error_line, refused, run_cli, run_in_process, train_args

USER_DIR = ("--user-dir", str(ROOT / "dynamic_pooling"))
TYPES = ("vanilla", "fixed", "whitespaces", "unigram", "entropy", "gumbel")
SIZES = HOURGLASS[2:]
BEAM = ("--beam", "2", "--nbest", "2")


def train(data: Path, folder: Path, kind: str, *more: str, tool: Any = run_in_process) -> str:
    layers = () if kind == "vanilla" else ("--model-config", "2-2-1")
    system = System("dynamic_pooling", f"dynamic_pooling_lm_{kind}", (*layers, *SIZES), "stream")
    short = ["--model-config", "[3, (0,), 0]"] if kind == "vanilla" else []
    return str(tool("train", train_args(data, folder, system, "--max-update", "4", *short, *more)))


@pytest.fixture(scope="module")
def trained(stream_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kind -> folder of a model after 4 updates (whitespaces: 60, so that it writes something)."""
    folders = {}
    for kind in TYPES:
        folders[kind] = tmp_path_factory.mktemp(f"trained_{kind}")
        longer = ("--max-update", "60", "--tokens-per-sample", "64") if kind == "whitespaces" else ()
        output = train(stream_data, folders[kind], kind, *longer)
        assert "done training" in output
    return folders


def last(folder: Path) -> str:
    return str(folder / "checkpoint_last.pt")


def common(data: Path, folder: Path) -> list[str]:
    """What every command after training is given."""
    task = ["--task", "dynamic_pooling_lm", "--path", last(folder)]
    return [str(data), *USER_DIR, *task, "--cpu", "--num-workers", "0"]


def eval_lm(data: Path, folder: Path, *more: str) -> tuple[float, int]:
    """Bits per character and number of characters that fairseq-eval-lm reports."""
    output = run_in_process(
        "eval_lm", [*common(data, folder), "--gen-subset", "test", "--batch-size", "3", "--log-format", "none", *more]
    )
    found = re.search(r"Loss \(base 2\): ([\d.]+)", output), re.search(r"Evaluated ([\d,]+) tokens", output)
    assert found[0] and found[1]
    return float(found[0][1]), int(found[1][1].replace(",", ""))


def load(data: Path, folder: Path) -> tuple[Any, Any]:
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([last(folder)], {"data": str(data)})
    return models[0].eval(), task


@torch.no_grad()
def bits_by_hand(data: Path, folder: Path, window: int, context: int) -> float:
    """Bits per character from one forward per window, counted here."""
    model, task = load(data, folder)
    task.load_dataset("test")
    stream = task.dataset("test").stream
    tokens = torch.tensor([task.dictionary.eos(), *stream.slice(0, len(stream)).tolist()])
    total = 0.0
    for start in range(0, len(stream), window):
        end, early = min(start + window, len(stream)), max(start - context, 0)
        log_probs = model(tokens[early:end][None])[0].log_softmax(-1)[0]
        targets = tokens[early + 1 : end + 1]
        total -= float(log_probs.gather(1, targets[:, None])[start - early :].double().sum())
    return total / len(stream) / math.log(2)


@pytest.mark.parametrize("kind", TYPES)
def test_eval_lm_scores_every_character_once(trained: dict[str, Path], stream_data: Path, kind: str):
    for size, context in ((16, 0), (50, 20), (300, 0)):
        more = ["--tokens-per-sample", str(size), "--context-window", str(context)]
        bits, count = eval_lm(stream_data, trained[kind], *more)
        assert count == 200
        assert abs(bits - bits_by_hand(stream_data, trained[kind], size - context, context)) < 2e-3


def test_validation_is_eval_lm(trained: dict[str, Path], stream_data: Path):
    output = run_in_process(
        "validate",
        [
            *common(stream_data, trained["entropy"]),
            "--valid-subset",
            "test",
            "--batch-size",
            "4",
            "--log-format",
            "json",
        ],
    )
    line = next(line for line in output.splitlines() if '"test_loss"' in line or '"loss"' in line)
    bits = float(re.search(r'"(?:test_)?bpc": "?([\d.]+)', line)[1])
    assert abs(bits - eval_lm(stream_data, trained["entropy"])[0]) < 1e-2


@pytest.mark.parametrize("kind", TYPES[1:])
def test_the_log_says_what_boundaries_do(trained: dict[str, Path], stream_data: Path, tmp_path: Path, kind: str):
    output = train(stream_data, tmp_path, kind)
    logs = [line for line in output.splitlines() if '"valid_loss"' in line]
    wanted = {"valid_bpc", "valid_boundary_rate", "valid_shortening_factor", "valid_unigram_recall"}
    if kind in ("unigram", "entropy", "gumbel"):
        wanted |= {"valid_aux/boundary", "valid_boundary_prob", "valid_spaces_precision"}
    if kind in ("unigram", "entropy"):
        wanted |= {"valid_boundary_accuracy", "valid_boundary_precision", "valid_boundary_recall"}
    if kind == "gumbel":
        wanted |= {"valid_sampled_bpc", "valid_sampled_shortening_factor"}
    for name in wanted:
        assert f'"{name}"' in logs[-1], (name, logs[-1])
    assert (
        re.search(r'"valid_bpc": "([\d.]+)"', logs[-1])[1][:4]
        == re.search(r'"valid_loss": "([\d.]+)"', logs[-1])[1][:4]
    )


# --- generation -------------------------------------------------------------------------------------------------------


def generate(data: Path, folder: Path, *more: str) -> str:
    return run_in_process(
        "generate", [*common(data, folder), "--gen-subset", "test", "--batch-size", "4", "--max-len-b", "60", *more]
    )


@pytest.mark.parametrize("kind", TYPES)
def test_generate_goes_on_from_a_prefix(trained: dict[str, Path], stream_data: Path, kind: str):
    """Also where a document ends inside the prefix; text comes out with its spaces."""
    output = generate(stream_data, trained[kind], "--prefix-size", "20", "--beam", "3", "--tokens-per-sample", "50",
                      "--bpe", "dp_characters")  # fmt: skip
    found = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", output, re.MULTILINE))
    assert len(found) == 4 and not any("\u2581" in line for line in found.values())
    task = load(stream_data, trained[kind])[1]
    words = task.dictionary
    task.args.tokens_per_sample = 50
    task.load_dataset("test")
    stream = task.dataset("test").stream
    for number, line in found.items():
        prefix = [words[token] for token in stream.slice(50 * int(number), 50 * int(number) + 20)]
        prefix = prefix[: prefix.index("</s>")] if "</s>" in prefix else prefix
        assert line.startswith(decode_characters(" ".join(prefix)))


@pytest.mark.parametrize(
    "more", [("--beam", "1"), ("--sampling", *BEAM), ("--sampling", "--sampling-topk", "3", *BEAM),
             ("--sampling", "--sampling-topp", "0.7", *BEAM), ("--sample-break-mode", "eos", *BEAM),
             ("--score-reference",)], ids=["greedy", "sampling", "top-k", "top-p", "eos", "score"]
)  # fmt: skip
def test_ways_to_generate(trained: dict[str, Path], stream_data: Path, more: tuple[str, ...]):
    output = generate(stream_data, trained["whitespaces"], "--prefix-size", "6", "--tokens-per-sample", "40", *more)
    assert len(re.findall(r"^H-", output, re.MULTILINE)) >= 3


def test_interactive_with_spaces(trained: dict[str, Path], stream_data: Path, tmp_path: Path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("abc de\nabc de\u2581\nabc de  \n\u00e4 a\n", encoding="utf-8")
    output = run_in_process(
        "interactive", [*common(stream_data, trained["whitespaces"]), "--input", str(lines), "--bpe", "dp_characters",
                        "--max-len-b", "30", "--beam", "2", "--buffer-size", "4"]
    )  # fmt: skip
    found = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", output, re.MULTILINE))
    assert found["0"].startswith("abc de") and found["1"].startswith("abc de ") and found["2"] == found["0"]
    assert found["3"].startswith("<unk> a")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--fixed-sf", "0"), "--fixed-sf 0: must be at least 1"),
        (("--prior", "0"), "--prior 0.0: must be between 0 and 1"),
        (("--prior", "1.5"), "--prior 1.5: must be between 0 and 1"),
        (("--temp", "0"), "--temp 0.0: must be greater than 0"),
        (("--spikes-left", "0"), "--spikes-left 0: must be at least 1"),
        (("--model-config", "[1, 2]"), "--model-config [1, 2]: expected [before, (shortened,), after]"),
        (("--model-config", "__import__('os')"), "expected [before, (shortened,), after]"),
        (("--model-config", "[1, (2, 2), 1]"), "one level of pooling only"),
        (("--model-config", "[3, (0,), 0]"), "has no shortened layers"),
        (("--whitespace-symbols", "#"), "--whitespace-symbols '#': not in the dictionary"),
        (("--decoder-attention-heads", "3"), "--decoder-attention-heads 3 must divide the width 16"),
        (("--upsampling", "smooth"), "--upsampling smooth needs a predictor"),
        (("--tokens-per-sample", "0"), "--tokens-per-sample must be at least 1, and more than --context-window"),
        (("--dropout", "1"), "--dropout 1.0: must be at least 0 and below 1"),
        (("--self-target",), "--self-target: the dynamic_pooling_lm task predicts the next token only"),
    ],
)
def test_mistakes_are_one_line(stream_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    assert message in train(stream_data, tmp_path, "whitespaces", *more, tool=refused)


def test_unknown_boundaries_and_missing_files(stream_data: Path, tmp_path: Path):
    args = train_args(stream_data, tmp_path, System("dynamic_pooling", "dynamic_pooling_lm_base", HOURGLASS, "stream"))
    output = run_cli("train", [*args, "--boundaries-type", "words"], expect=2)
    assert "invalid choice: 'words'" in output and "Traceback" not in output
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx"):
        (bare / name).symlink_to(stream_data / name)
    with pytest.raises(UserError, match="boundaries-type unigram learns from it"):
        train(bare, tmp_path / "x", "unigram")
    (bare / "dict.txt").unlink()
    with pytest.raises(UserError, match=r"dict.txt: no such file; prepare the data"):
        train(bare, tmp_path / "y", "whitespaces")


def test_another_dictionary_is_named(trained: dict[str, Path], stream_data: Path, tmp_path: Path):
    for file in stream_data.iterdir():
        if file.name != "dict.txt":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "dict.txt").write_text((stream_data / "dict.txt").read_text() + "z 1\n")
    args = [tmp_path, *USER_DIR, "--task", "dynamic_pooling_lm", "--path", last(trained["fixed"])]
    args += ["--gen-subset", "test", "--cpu"]
    line = error_line(run_cli("eval_lm", args, expect=2))
    assert "does not fit this model: decoder.embed_tokens.weight has shape" in line


def test_a_leak_stops_training(stream_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dynamic_pooling import decoder

    stock = decoder.segment_layout

    def early(*args: Any, **kwargs: Any) -> Any:
        layout = stock(*args, **kwargs)
        a = layout.ids
        return layout._replace(ids=torch.cat([a[:, 1:], a[:, -1:]], 1))  # a token reads what its successor closes

    monkeypatch.setattr(decoder, "segment_layout", early)
    with pytest.raises(UserError, match="the model is not causal"):
        train(stream_data, tmp_path, "whitespaces")
    assert "done training" in train(stream_data, tmp_path, "whitespaces", "--check-causality", "never")


def test_fairseqs_own_checks_of_flags_are_one_line(trained: dict[str, Path], stream_data: Path):
    args = [*common(stream_data, trained["fixed"]), "--gen-subset", "test", "--sampling", "--beam", "3"]
    assert "--sampling requires --nbest to be equal to --beam" in error_line(run_cli("generate", args, expect=2))


# --- configurations ---------------------------------------------------------------------------------------------------


def test_a_config_on_the_command_line_and_in_yaml_is_the_same(stream_data: Path, tmp_path: Path):
    run_cli(
        "hydra_train",
        ["--config-dir", ROOT / "dynamic_pooling" / "configs", "--config-name", "gumbel", f"hydra.run.dir={tmp_path}",
         f"common.user_dir={ROOT / 'dynamic_pooling'}", f"task.data={stream_data}", "++common.cpu=true",
         f"++checkpoint.save_dir={tmp_path / 'yaml'}", "dataset.num_workers=0", "optimization.max_update=2",
         "task.tokens_per_sample=16", "model.model_config='[1, (2,), 1]'", "model.decoder_embed_dim=16",
         "model.decoder_ffn_embed_dim=32", "model.decoder_attention_heads=2"]
    )  # fmt: skip
    system = System("dynamic_pooling", "dynamic_pooling_lm_gumbel", HOURGLASS, "stream")
    run_in_process("train", train_args(
        stream_data, tmp_path / "flags", system, "--max-update", "2", "--seed", "1111", "--lr", "0.00025",
        "--lr-scheduler", "cosine", "--warmup-updates", "4000", "--clip-norm", "0.25", "--adam-betas", "(0.9, 0.999)",
        "--adam-eps", "1e-8"))  # fmt: skip
    states = [read_checkpoint(last(tmp_path / name)) for name in ("yaml", "flags")]
    assert states[0]["cfg"]["model"]["_name"] == "dynamic_pooling_lm_gumbel"
    assert_close(states[0]["model"], states[1]["model"], 0, 0)


def test_each_configuration_is_an_architecture():
    names = {path.stem for path in (ROOT / "dynamic_pooling" / "configs").glob("*.yaml")}
    assert {f"dynamic_pooling_lm_{name}" for name in names} == set(ARCHITECTURES)
    assert tasks.TASK_REGISTRY["dynamic_pooling_lm"].__module__ == "dynamic_pooling.task"
