"""Learning from a dense model's outputs (``--skim-teacher``)."""

import logging
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from fairseq_efficient.precision import wide

logger = logging.getLogger(__name__)


class Teacher:
    """A checkpoint whose model is loaded at the first training step: validation and inference need none.

    Not a module, so that its weights are not saved with the criterion's.
    """

    def __init__(self, path: str, task: Any):
        self.path, self.task = path, task
        self.model: Any = None

    @torch.no_grad()
    def __call__(self, student: Any, sample: Any, logits: Tensor, head: str) -> Tensor:
        """The teacher's logits for the batch, shaped as ``logits``.

        Raises:
            UserError: no readable checkpoint of a model of this task at the path.
        """
        if self.model is None:
            # building a model draws random numbers: a run that resumes here must go on with the same ones
            devices = [logits.device] if logits.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                self.model = self._load(student, head)
            self.model.to(device=logits.device, dtype=next(student.parameters()).dtype).eval()
        taught = self.model(**sample["net_input"], features_only=True, classification_head_name=head)[0]
        if taught.shape != logits.shape:
            raise UserError(f"--skim-teacher {self.path}: it gives {taught.size(-1)} scores, not {logits.size(-1)}")
        return taught

    def _load(self, student: Any, head: str) -> Any:
        state = read_checkpoint(self.path)
        names = {key.split(".")[1] for key in state.get("model", {}) if key.startswith("classification_heads.")}
        if head not in names:
            raise UserError(f"--skim-teacher {self.path}: it has no head {head}; fine-tune it on this task first")
        size = state["model"][f"classification_heads.{head}.out_proj.weight"].size(0)
        own = student.classification_heads[head].out_proj.weight.size(0)
        if size != own:
            raise UserError(f"--skim-teacher {self.path}: its head {head} has {size} outputs, not {own}")
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([self.path], task=self.task)
        logger.info("learning from %s", self.path)
        return models[0].requires_grad_(False)


def divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0, regression: bool = False) -> Tensor:
    """``temperature^2 KL(teacher || student)`` over the last dimension, or the squared error; a sum over the others."""
    if regression:
        return mse_loss(wide(logits), wide(taught), reduction="sum")
    ours, theirs = (log_softmax(wide(x) / temperature, -1) for x in (logits, taught))
    return temperature**2 * kl_div(ours, theirs, reduction="sum", log_target=True)
