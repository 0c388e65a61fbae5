"""``--ddp-backend pytorch_ddp``, fairseq's default on GPUs, stops a training in which some parameter gets no gradient.

fairseq gives torch's DistributedDataParallel a device number, which it refuses on the CPU; here it is built without.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.distributed import ModuleProxyWrapper
from fairseq.trainer import Trainer
from torch.nn.parallel import DistributedDataParallel

from tests.util import SYSTEMS, System, run_in_process, train_args


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainers of this process wrap their model, as on several GPUs; the only rank is this process."""

    def wrap(cfg: Any, model: Any, **_: Any) -> Any:
        return ModuleProxyWrapper(DistributedDataParallel(model, find_unused_parameters=cfg.find_unused_parameters))

    monkeypatch.setattr(models, "DistributedFairseqModel", wrap)
    monkeypatch.setattr(Trainer, "use_distributed_wrapper", True)
    monkeypatch.setattr(Trainer, "data_parallel_process_group", None)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def train(system: System, datasets: dict[str, Path], tmp_path: Path, *more: str) -> str:
    return run_in_process("train", train_args(datasets[system.data], tmp_path, system, "--max-update", "4", *more))


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_every_parameter_gets_a_gradient(system: System, datasets: dict[str, Path], tmp_path: Path, wrapped: None):
    """In each of four updates; of skimming, fairseq's language model head does not (docs/performance.md)."""
    if system.user_dir != "skimming":
        assert "done training" in train(system, datasets, tmp_path)
        return
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        train(system, datasets, tmp_path / "without")
    assert "done training" in train(system, datasets, tmp_path / "with", "--find-unused-parameters")
