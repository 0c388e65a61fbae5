"""The commands that users type: train, validate and their overrides; pairs, regression, two ranks, yaml, mistakes."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from skimming.config import ARCHITECTURES
from tests.made_data import make_sentence_data
from tests.skimming.commands import RESET, STOCK, TINY, USER_DIR, train, train_log, valid_log, validate
from tests.skimming.helpers import HEAD, teach_to_skip
from tests.util import (
    ROOT,
    Command,
    System,
    assert_close,
    error_line,
    free_port,
    refused,
    run_cli,
    run_in_process,
    train_args,
)


@pytest.fixture(scope="module")
def trained(sentence_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after 60 updates whose predictors skip some tokens."""
    folder = tmp_path_factory.mktemp("trained")
    output = train(sentence_data, folder, "--max-update", "60", "--skim-lambda", "2")
    assert "done training" in output
    state = read_checkpoint(str(folder / "checkpoint_last.pt"))
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint_last.pt")])
    torch.manual_seed(0)
    teach_to_skip(models[0].eval())  # else all tokens would be decided alike
    state["model"] = models[0].state_dict()
    torch.save(state, folder / "mixed.pt")
    return folder


@pytest.fixture(scope="module")
def mixed(trained: Path) -> Path:
    return trained / "mixed.pt"


# --- train, validate --------------------------------------------------------------------------------------------------


def test_p10_validation_is_that_of_the_training(trained: Path, sentence_data: Path, tmp_path: Path):
    output = train(sentence_data, tmp_path, "--max-update", "12")
    expected = valid_log(output)
    found = validate(sentence_data, tmp_path / "checkpoint_last.pt")
    shared = {"loss", "accuracy", "aux/skim", "keep_ratio", "keep_l0", "keep_l1", "flops_ratio_unpadded",
              "flops_ratio_max_length"}  # fmt: skip
    assert shared <= expected.keys()
    assert {key: found[key] for key in shared} == {key: expected[key] for key in shared}
    lines = train_log(output)
    assert {"keep_ratio", "keep_l0", "aux/skim"} <= lines[-1].keys()


def test_p10_overrides_switch_the_inference_mode(mixed: Path, sentence_data: Path):
    found = {
        mode: validate(sentence_data, mixed, "--model-overrides", f"{{'skim_inference': '{mode}'}}")
        for mode in ("masked", "packed", "auto")
    }
    assert 0.1 < found["masked"]["keep_ratio"] < 0.95
    for mode in ("packed", "auto"):
        for key, value in found["masked"].items():
            if key not in ("wps", "wall"):
                assert abs(found[mode][key] - value) < 2e-3, key
    logged = found["packed"]
    layers = (logged["keep_l0"] + logged["keep_l1"]) / 2
    assert abs(logged["keep_ratio"] - layers) < 2e-4 and logged["flops_ratio_unpadded"] > 1.05
    assert logged["flops_ratio_unpadded"] < logged["flops_ratio_padded"] < logged["flops_ratio_max_length"]


def test_one_checkpoint_gives_a_curve(mixed: Path, sentence_data: Path):
    kept = [
        validate(sentence_data, mixed, "--model-overrides", f"{{'skim_threshold': {threshold}}}")["keep_ratio"]
        for threshold in (-100, -1, 0, 1, 100)
    ]
    assert kept[0] == 1.0 and kept == sorted(kept, reverse=True) and kept[-1] < 0.2


def test_an_override_may_turn_skimming_off(mixed: Path, sentence_data: Path):
    found = validate(sentence_data, mixed, "--model-overrides", "{'skim_layers': 'none', 'skim_inference': 'packed'}")
    assert found["keep_ratio"] == found["flops_ratio_unpadded"] == 1.0


def test_batches_of_any_size_give_the_same_figures(mixed: Path, sentence_data: Path):
    one = validate(sentence_data, mixed, "--batch-size", "1")
    all_at_once = validate(sentence_data, mixed, "--batch-size", "16")
    for key in ("loss", "accuracy", "aux/skim", "keep_ratio", "keep_l1", "flops_ratio_unpadded"):
        assert abs(one[key] - all_at_once[key]) < 2e-3, key
    assert one["flops_ratio_padded"] <= all_at_once["flops_ratio_padded"]


def test_two_ranks_add_up(mixed: Path, sentence_data: Path, tmp_path: Path):
    """Every validation figure is that of one rank."""
    more = ("--dropout", "0", "--attention-dropout", "0", "--restore-file", str(mixed), *RESET, "--lr", "0")
    form = ("--distributed-world-size", "2", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}",
            "--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp")  # fmt: skip
    args = train_args(sentence_data, tmp_path / "two", TINY, *more, "--batch-size", "4", "--max-update", "2")
    ranks = [Command("train", [*args, *form, "--distributed-rank", str(rank)]) for rank in (0, 1)]
    outputs = [rank.wait() for rank in ranks]
    two = valid_log(outputs[0])
    args = train_args(sentence_data, tmp_path / "one", TINY, *more, "--batch-size", "4", "--max-update", "2")
    one = valid_log(run_cli("train", args))
    for key in ("loss", "accuracy", "aux/skim", "keep_ratio", "keep_l0", "keep_l1",
                "flops_ratio_unpadded", "flops_ratio_padded", "flops_ratio_max_length"):  # fmt: skip
        assert abs(one[key] - two[key]) < 2e-3, key
    assert 0.1 < one["keep_ratio"] < 0.95


def test_cpu_bf16_trains(sentence_data: Path, tmp_path: Path):
    expected = valid_log(train(sentence_data, tmp_path / "wide", "--max-update", "12"))
    found = valid_log(train(sentence_data, tmp_path / "half", "--max-update", "12", "--cpu-bf16"))
    assert abs(found["loss"] - expected["loss"]) < 0.05 * expected["loss"]
    state = read_checkpoint(str(tmp_path / "half" / "checkpoint_last.pt"))["model"]
    assert all(value.dtype != torch.bfloat16 for value in state.values())


@pytest.mark.parametrize(
    "more", [("--checkpoint-activations",), ("--encoder-layerdrop", "0.3"), ("--quant-noise-pq", "0.1"),
             ("--skim-attn", "postmult", "--skim-norm", "padded", "--skim-eval-sample"),
             ("--encoder-normalize-before", "--no-layernorm-embedding"), ("--spectral-norm-classification-head",),
             ("--skim-target-ratio", "0.4"), ("--skim-lambda-warmup", "10"), ("--skim-protect", "cls+sep"),
             ("--skim-layers", "1", "--skim-tau", "0.5", "--skim-compact-threshold", "0.2"), ("--num-segments", "3")],
    ids=lambda more: more[0],
)  # fmt: skip
def test_flags_train_and_validate(sentence_data: Path, tmp_path: Path, more: tuple[str, ...]):
    expected = valid_log(train(sentence_data, tmp_path, "--max-update", "3", *more))
    found = validate(sentence_data, tmp_path / "checkpoint_last.pt", "--batch-size", "8")
    if "--skim-eval-sample" not in more:
        assert found["loss"] == expected["loss"]
    assert 0 < found["keep_ratio"] <= 1


def test_pairs(tmp_path: Path):
    data = make_sentence_data(tmp_path / "data", pairs=True, lengths=(3, 12))
    train(data, tmp_path, "--max-update", "4", "--num-segments", "2", "--skim-protect", "cls+question")
    found = {
        mode: validate(data, tmp_path / "checkpoint_last.pt", "--model-overrides", f"{{'skim_inference': '{mode}'}}")
        for mode in ("masked", "packed")
    }
    assert abs(found["masked"]["loss"] - found["packed"]["loss"]) < 1e-3


def test_regression(tmp_path: Path):
    data = make_sentence_data(tmp_path / "data")
    for split, count in (("train", 40), ("valid", 16), ("test", 16)):
        lines = "".join(f"{(7 * number) % 5 / 5}\n" for number in range(count))
        (data / "label" / f"{split}.label").write_text(lines)
    flags = ("--num-classes", "1", "--regression-target", "--best-checkpoint-metric", "loss")
    output = train(data, tmp_path, *flags, "--max-update", "4", "--report-pearson-and-spearman")
    found = valid_log(output)
    assert {"pearson", "spearman", "aux/skim", "keep_ratio"} <= found.keys()
    assert abs(found["loss"] - validate(data, tmp_path / "checkpoint_last.pt")["loss"]) < 1e-3


# --- checkpoints and data that do not fit -----------------------------------------------------------------------------


def strip_predictors(path: Path, target: Path) -> Path:
    """The checkpoint without predictors, as a converted one is."""
    state = torch.load(path, weights_only=True)
    state["model"] = {key: value for key, value in state["model"].items() if "skim_predictors" not in key}
    torch.save(state, target)
    return target


def test_packed_without_predictors_is_one_line(mixed: Path, sentence_data: Path, tmp_path: Path):
    bare = strip_predictors(mixed, tmp_path / "bare.pt")
    for mode in ("auto", "masked"):
        override = f"{{'skim_inference': '{mode}', 'skim_init_bias': 5}}"
        assert validate(sentence_data, bare, "--model-overrides", override)["keep_ratio"] == 1.0
    packed = "{'skim_inference': 'packed'}"
    with pytest.raises(UserError, match="the checkpoint has no skim predictor for layer 0, 1"):
        validate(sentence_data, bare, "--model-overrides", packed)
    line = error_line(
        run_cli("validate", [sentence_data, *USER_DIR, "--task", "sentence_prediction", "--path", bare, "--cpu",
                             "--batch-size", "4",
                             "--model-overrides", packed], expect=2)
    )  # fmt: skip
    assert "--skim-layers none" in line
    none = "{'skim_inference': 'packed', 'skim_layers': 'none'}"
    assert validate(sentence_data, bare, "--model-overrides", none)["keep_ratio"] == 1.0
    # training starts them, and may validate packed
    start = ("--restore-file", str(bare), *RESET, "--skim-inference", "packed")
    assert "done training" in train(sentence_data, tmp_path / "on", *start, "--max-update", "2")


def test_data_without_labels_are_one_line(mixed: Path, sentence_data: Path, tmp_path: Path):
    data = shutil.copytree(sentence_data, tmp_path / "data")
    for end in ("bin", "idx"):
        (data / "label" / f"valid.{end}").unlink()
    with pytest.raises(UserError, match="label: no labels of this split"):
        validate(data, mixed)


def test_tokens_of_another_dictionary_are_one_line(sentence_data: Path, tmp_path: Path):
    data = shutil.copytree(sentence_data, tmp_path / "data")
    words = (data / "input0" / "dict.txt").read_text().splitlines(True)
    (data / "input0" / "dict.txt").write_text("".join(words[: len(words) // 2]))
    with pytest.raises(UserError, match=r"input0/valid\.bin holds token \d+, but the dictionary has 20 types"):
        train(data, tmp_path, "--max-update", "4")


def test_another_dictionary_is_named(mixed: Path, tmp_path: Path):
    other = make_sentence_data(tmp_path / "other", vocab=33)
    with pytest.raises(
        UserError, match=r"does not fit this model: encoder\.sentence_encoder\.embed_tokens\.weight has"
    ):
        validate(other, mixed)


# --- configurations and mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--skim-lambda", "-1"), "--skim-lambda -1.0: must not be negative"),
        (("--skim-lambda-warmup", "-3"), "--skim-lambda-warmup -3: must not be negative"),
        (("--skim-target-ratio", "1.5"), "--skim-target-ratio 1.5: must be between 0 and 1"),
        (("--skim-distill-temperature", "0"), "--skim-distill-temperature 0.0: must be greater than 0"),
        (("--skim-layers", "7"), "--skim-layers 7: layers are numbered 0 to 1"),
        (("--skim-attn", "postmult", "--skim-inference", "packed"), "--skim-attn postmult is not removal"),
        (("--num-classes", "1"), "--num-classes 1: label/dict.txt has 2 labels (0, 1)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(sentence_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    assert message in train(sentence_data, tmp_path, *more, "--max-update", "1", tool=refused)


def test_a_model_that_does_not_skim_is_one_line(sentence_data: Path, tmp_path: Path):
    system = System("skimming", "roberta", STOCK, "sentences")
    with pytest.raises(UserError, match="criterion SkimSentencePrediction needs a model that skims"):
        run_in_process("train", train_args(sentence_data, tmp_path, system))


def test_a_training_that_diverges_is_told_where(sentence_data: Path, tmp_path: Path):
    """fairseq looks for the first NaN by hooks, which trip over an encoder whose dict holds no tensor."""
    with pytest.raises(FloatingPointError, match="Nan/Inf"):
        train(sentence_data, tmp_path, "--lr", "1e30", "--clip-norm", "0", "--max-update", "20")


def test_a_label_outside_the_dictionary_is_one_line(tmp_path: Path):
    from fairseq.data import indexed_dataset

    data = make_sentence_data(tmp_path / "data")
    builder = indexed_dataset.make_builder(str(data / "label" / "train.bin"), impl="mmap", vocab_size=6)
    for number in range(40):
        builder.add_item(torch.IntTensor([3 if number == 17 else 4]))  # 3: unknown
    builder.finalize(str(data / "label" / "train.idx"))
    with pytest.raises(UserError, match=r"sentence 17 \(from 0\): its label is not one of the 2 classes"):
        train(data, tmp_path)


@pytest.mark.parametrize(("arch", "sizes"), [("skim_roberta_tiny", ["encoder_layers=2"]), ("skim_minilm_l6", [
    "encoder_layers=1", "encoder_embed_dim=24", "encoder_ffn_embed_dim=8"])])  # fmt: skip
def test_a_config_on_the_command_line_and_in_yaml_is_the_same(
    arch: str, sizes: list[str], sentence_data: Path, tmp_path: Path
):
    run_cli(
        "hydra_train",
        ["--config-dir", ROOT / "skimming" / "configs", "--config-name", arch[len("skim_") :],
         f"hydra.run.dir={tmp_path}", f"common.user_dir={ROOT / 'skimming'}", f"task.data={sentence_data}",
         "task.num_classes=2", "++common.cpu=true", f"++checkpoint.save_dir={tmp_path / 'yaml'}",
         "dataset.num_workers=0", "++optimization.max_update=2", "task.max_positions=60",
         *(f"++model.{size}" for size in sizes)]
    )  # fmt: skip
    flags = [word for size in sizes for word in (f"--{size.split('=')[0].replace('_', '-')}", size.split("=")[1])]
    lr = "0.0005" if arch == "skim_roberta_tiny" else "0.00002"
    separator = ["--separator-token", "2"] if arch == "skim_roberta_tiny" else []
    args = [
        str(sentence_data), *USER_DIR, "--arch", arch, *flags, "--task", "sentence_prediction", "--num-classes", "2",
        "--init-token", "0", *separator, "--shorten-method", "truncate", "--max-positions", "60", "--criterion",
        "skim_sentence_prediction", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-6",
        "--weight-decay", "0.1", "--clip-norm", "1.0", "--lr", lr, "--lr-scheduler", "polynomial_decay",
        "--warmup-updates", "200", "--total-num-update", "6000", "--batch-size", "32", "--max-epoch", "3",
        "--max-update", "2", "--update-epoch-batch-itr", "True", "--save-dir", str(tmp_path / "flags"), "--cpu",
        "--num-workers", "0", "--seed", "1",
    ]  # fmt: skip
    run_in_process("train", args)
    states = [read_checkpoint(str(tmp_path / name / "checkpoint_last.pt")) for name in ("yaml", "flags")]
    assert states[0]["cfg"]["model"]["_name"] == arch
    assert_close(states[0]["model"], states[1]["model"], 0, 0)


def test_each_configuration_is_an_architecture():
    names = {path.stem for path in (ROOT / "skimming" / "configs").glob("*.yaml")}
    assert {f"skim_{name}" for name in names} == set(ARCHITECTURES)


def test_a_checkpoint_is_plain_and_loads_with_its_heads(mixed: Path, sentence_data: Path):
    models, cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(mixed)], {"data": str(sentence_data)})
    assert not isinstance(cfg.model, Namespace) and HEAD in models[0].classification_heads
    expected: dict[str, Any] = read_checkpoint(str(mixed))["model"]
    assert_close(dict(models[0].state_dict()), expected, 0, 0)
