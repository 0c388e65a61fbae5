"""Task loss plus the price of kept tokens: what every criterion of skimming shares, and ``skim_sentence_prediction``.

A task with another loss derives from :class:`SkimLoss` and its own criterion, as the one below does.
"""

import logging
import math
from pathlib import Path
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.logging import metrics
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.rates import rate
from fairseq_efficient.schedules import linear
from skimming.config import SkimSentencePredictionConfig
from skimming.distillation import Teacher, divergence

logger = logging.getLogger(__name__)
WATCH_EVERY = 100  # updates between two looks at what is kept
PATIENCE = 1000  # updates after which something should be skipped
HARDLY = 1e-3  # share of decisions that counts as none: the noise of training flips some in a model that keeps all


class SkimLoss:
    """Mixin for criterions: ``task + lambda (kept share) + weight (distance from a teacher)``, sums over sentences."""

    def init_skim_loss(self, cfg: Any, task: Any) -> None:
        """Read the flags of :class:`SkimLossConfig`. Raises UserError for values that make no sense."""
        for name in ("skim_lambda", "skim_lambda_warmup", "skim_distill_weight"):
            if not 0 <= getattr(cfg, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must not be negative")
        if cfg.skim_target_ratio is not None and not 0 <= cfg.skim_target_ratio <= 1:
            raise UserError(f"--skim-target-ratio {cfg.skim_target_ratio}: must be between 0 and 1")
        if not cfg.skim_distill_temperature > 0:
            raise UserError(f"--skim-distill-temperature {cfg.skim_distill_temperature}: must be greater than 0")
        self.skim_lambda, self.skim_lambda_warmup = cfg.skim_lambda, cfg.skim_lambda_warmup
        self.skim_target_ratio = cfg.skim_target_ratio
        self.distill_weight, self.distill_temperature = cfg.skim_distill_weight, cfg.skim_distill_temperature
        self.teacher = Teacher(cfg.skim_teacher, task) if cfg.skim_teacher else None
        self._watched: dict[bool, int] = {}  # in training, in validation: the updates done at the last look
        self._learns = False  # whether training has decisions to learn; not with --skim-layers none
        _check_dictionaries(Path(str(getattr(getattr(task, "cfg", None), "data", ""))))

    def add_skim_loss(
        self, model: Any, sample: Any, task_loss: Tensor, output: tuple[Tensor, Any], size: float, log: dict[str, Any]
    ) -> Tensor:
        """The loss to train, summed over sentences; ``log`` gets the task's ``loss``, what is added to it and the
        statistics, as sums.

        Args:
            task_loss: summed over sentences. output: (logits, extra) of the model. size: the criterion's sample size;
                where it is not the number of sentences, what is added here is scaled to it.

        Raises:
            UserError: the model does not skim.
        """
        logits, extra = output
        if "skim_counts" not in extra:
            raise UserError(f"criterion {type(self).__name__} needs a model that skims: --arch skim_roberta_base ...")
        counts = extra["skim_counts"]
        scale = size / max(len(counts.lengths), 1)
        ratio = counts.ratio()
        price = ratio if self.skim_target_ratio is None else (ratio - self.skim_target_ratio).square()
        updates = getattr(model, "num_updates", None) if model.training else None  # validation losses are comparable
        added = {"skim": linear(0.0, self.skim_lambda, self.skim_lambda_warmup, updates) * price.sum()}
        if self.teacher is not None and model.training and self.distill_weight:
            distance = self.distance(logits, self.teacher(model, sample, logits, self.head_name()), sample)
            added["distill"] = self.distill_weight * distance
        log["loss"], log["_skim_sentences"] = task_loss.detach(), len(counts.lengths)
        log.update({f"_aux/{name}": _double(value) for name, value in added.items()})
        for name, (above, below) in extra["stats"].items():
            log[f"_{name}"], log[f"_{name}/of"] = _double(above), _double(below)
        self._learns = ratio.requires_grad if model.training else self._learns
        self._watch(model, counts)
        return task_loss + scale * sum(added.values())

    def distance(self, logits: Tensor, taught: Tensor, sample: Any) -> Tensor:
        """Distance of the model's logits (B, K) from the teacher's, summed over sentences."""
        return divergence(logits, taught, self.distill_temperature, getattr(self, "regression_target", False))

    def head_name(self) -> str:
        """Of the classification head that is trained."""
        return str(getattr(self, "classification_head_name"))  # noqa: B009 (of the criterion this is mixed into)

    def _watch(self, model: Any, counts: Any) -> None:
        """Warn, now and then in training and once in each validation of it, when nothing or everything is skipped."""
        updates = getattr(model, "num_updates", None)  # None outside training
        if not updates or (model.training and updates % WATCH_EVERY) or updates == self._watched.get(model.training):
            return
        self._watched[model.training] = updates
        kept, lengths, protected = counts.counts(), counts.lengths, counts.protected
        free = int((lengths - protected).sum()) * len(kept)
        share = int((kept - protected).sum()) / max(free, 1)
        if free and share <= HARDLY:
            logger.warning(
                "after %d updates no token but the protected ones enters any layer: lower --skim-lambda, give "
                "--skim-target-ratio, or let --skim-lambda-warmup take longer",
                updates,
            )
        elif free and share >= 1 - HARDLY and updates >= PATIENCE and self.skim_lambda and self._learns:
            logger.warning(
                "after %d updates nothing is skipped: raise --skim-lambda or the learning rate, or lower "
                "--skim-init-bias",
                updates,
            )

    @staticmethod
    def reduce_skim_metrics(logging_outputs: Any) -> None:
        """Log what :meth:`add_skim_loss` has noted: batches, updates and ranks are added up before they are divided."""
        names = sorted({name for log in logging_outputs for name in log if name.startswith("_")})
        for name in names:
            metrics.log_scalar(name, sum(log.get(name, 0) for log in logging_outputs), 1, round=0)
        for name in names:
            if f"{name}/of" in names:
                metrics.log_derived(name[1:], rate(name, f"{name}/of"))
            elif name.startswith("_aux/"):
                metrics.log_derived(name[1:], rate(name, "_skim_sentences"))


def _double(value: Tensor) -> Tensor:
    """Sums must survive fairseq's adding up over ranks, which would round int64 to fp32."""
    return value.detach().double()


class _Listening:
    """A model that remembers what it returned, for stock code that drops a part of it."""

    def __init__(self, model: Any):
        self._model, self.output = model, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._model(*args, **kwargs)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@register_criterion("skim_sentence_prediction", dataclass=SkimSentencePredictionConfig)
class SkimSentencePrediction(SkimLoss, SentencePredictionCriterion):
    """fairseq's ``sentence_prediction`` (classification, pairs, regression) with the price of kept tokens.

    Logged: ``loss`` of the task alone, in bits as fairseq does; what is trained beside it, ``aux/skim`` (price of kept
    tokens) and ``aux/distill``; ``keep_ratio`` and ``keep_l{i}`` (shares of tokens), ``flops_ratio_*``, and fairseq's.
    """

    def __init__(self, cfg: Any, task: Any):
        """Raises UserError for another task, labels that are more than the classes, and wrong numbers."""
        if not hasattr(task, "label_dictionary"):
            raise UserError("--criterion skim_sentence_prediction: needs --task sentence_prediction")
        super().__init__(cfg, task)
        self.init_skim_loss(cfg, task)
        if not self.regression_target:
            _check_labels(self.label_dict, task.cfg.num_classes)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        """(loss with a gradient, sample size, sums to log)."""
        if "target" not in sample:
            raise UserError(f"{self.task.cfg.data}/label: no labels of this split (or no --regression-target)")
        listening = _Listening(model)
        try:
            loss, size, log = super().forward(listening, sample, reduce)
        except IndexError:
            if listening.output is not None:
                _explain_target(sample, listening.output[0].size(-1))
            raise
        assert listening.output is not None
        return self.add_skim_loss(model, sample, loss, listening.output, size, log), size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Any) -> None:
        super().reduce_metrics(logging_outputs)
        for meters in metrics.get_active_aggregators():
            if "accuracy" in meters:
                meters["accuracy"].round = 2  # stock's one digit hides the difference of a text or two
        cls.reduce_skim_metrics(logging_outputs)

    def logging_outputs_can_be_summed(self) -> bool:
        """Not where predictions are collected: stock says so too, and fails on two ranks."""
        return not self.keep_pred_and_targ


def _check_labels(words: Any, classes: int) -> None:
    filling = ("<mask>", "madeupword")  # of the task, and of fairseq-preprocess
    labels = [word for word in words.symbols[words.nspecial :] if not word.startswith(filling)]
    if len(labels) > classes:
        some = ", ".join(labels[:8])
        raise UserError(f"--num-classes {classes}: label/dict.txt has {len(labels)} labels ({some})")


def _check_dictionaries(folder: Path) -> None:
    """UserError where the texts of a pair were numbered by two dictionaries: fairseq reads that of the first alone."""
    first, second = (folder / name / "dict.txt" for name in ("input0", "input1"))
    if first.is_file() and second.is_file() and first.read_bytes() != second.read_bytes():
        raise UserError(f"{second}: not the dictionary of input0; prepare both texts with one (--srcdict)")


def _explain_target(sample: Any, classes: int) -> None:
    """UserError for a label that is no class, which torch calls an index out of bounds."""
    targets = sample["target"].flatten()
    wrong = ((targets < 0) | (targets >= classes)).nonzero().flatten().tolist()
    if wrong:
        where = int(sample["id"][wrong[0]])
        raise UserError(
            f"sentence {where} (from 0): its label is not one of the {classes} classes of label/dict.txt"
        ) from None
