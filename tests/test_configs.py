"""Every ``configs/*.yaml`` trains by fairseq-hydra-train: its criterion, optimizer and schedule, at tiny widths."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fairseq_efficient.systems import SYSTEMS
from tests.util import ROOT, run_cli

CONFIGS = sorted(path for system in SYSTEMS for path in (ROOT / system / "configs").glob("*.yaml"))
_DECODER = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2}
_ENCODER = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2}
TINY: dict[str, dict[str, object]] = {  # system -> what is made small; of the depth nothing
    "deep_pyramidion": {**{f"model.{name}": value for name, value in (_ENCODER | _DECODER).items()}},
    "dynamic_pooling": {"task.tokens_per_sample": 16, **{f"model.{name}": value for name, value in _DECODER.items()}},
    "skimming": {
        "task.num_classes": 2, "task.max_positions": 60, **{f"model.{name}": value for name, value in _ENCODER.items()}
    },
    "par_search": {
        "task.tokens_per_sample": 8, "model.mem_len": 8, **{f"model.{name}": value for name, value in _DECODER.items()}
    },
    "adaptive_span": {"task.tokens_per_sample": 8, **{f"model.{name}": value for name, value in _DECODER.items()}},
}  # fmt: skip
WHERE_SET = {  # what only some of the files set
    "model.adaptive_softmax_cutoff": "'6,9'", "model.pers_mem_size": 4, "model.max_positions": 60,
    "task.arch_warmup_updates": 1, "lr_scheduler.warmup_updates": 1, "checkpoint.restore_file": None,
}  # fmt: skip


@pytest.fixture
def data(path: Path, pair_data: Path, stream_data: Path, sentence_data: Path) -> Path:
    return {"deep_pyramidion": pair_data, "skimming": sentence_data}.get(path.parents[1].name, stream_data)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_a_configuration_trains(path: Path, data: Path, tmp_path: Path):
    system, given = path.parents[1].name, OmegaConf.load(path)
    small = {**TINY[system], "dataset.batch_size": 4, "dataset.num_workers": 0, "optimization.max_update": 2}
    small["optimization.update_freq"] = [1]
    small |= {name: value for name, value in WHERE_SET.items() if OmegaConf.select(given, name) is not None}
    overrides = [f"++{name}={'null' if value is None else value}" for name, value in small.items()]
    output = run_cli(
        "hydra_train",
        ["--config-dir", str(path.parent), "--config-name", path.stem, f"hydra.run.dir={tmp_path}",
         f"common.user_dir={ROOT / system}", f"task.data={data}", "++common.cpu=true", "++checkpoint.no_save=true",
         "++dataset.disable_validation=true", *overrides],
    )  # fmt: skip
    assert re.search(r"[\"']train_num_updates[\"']: [\"']2[\"']", output), output[-2000:]
    assert given.model._name in output


def test_there_are_configurations_of_all_systems():
    assert {path.parents[1].name for path in CONFIGS} == set(SYSTEMS)
