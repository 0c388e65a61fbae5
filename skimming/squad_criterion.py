"""Criterion ``skim_question_answering``: start and end of an answer, the price of kept tokens, exact match and F1."""

import math
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import Tensor
from torch.nn.functional import cross_entropy

from fairseq_efficient.errors import UserError
from fairseq_efficient.precision import wide
from skimming.config import SkimQuestionAnsweringConfig
from skimming.criterion import SkimLoss
from skimming.distillation import divergence
from skimming.squad_decode import Answer, decode
from skimming.squad_metrics import gold_answers, score

# thresholds that --squad-best-threshold looks at
EDGES = torch.linspace(-20.0, 20.0, 401, dtype=torch.float64)
_SUMS = ("_questions", "_exact", "_f1", "_answerable", "_answerable_exact", "_answerable_f1")


@register_criterion("skim_question_answering", dataclass=SkimQuestionAnsweringConfig)
class SkimQuestionAnswering(SkimLoss, FairseqCriterion):
    """Mean of the cross-entropies of start and end, in bits per window, with the price of kept tokens.

    In validation ``exact`` and ``f1`` in per cent, each question counted once, as the official scripts do, and of
    SQuAD 2.0 ``HasAns_*`` and ``NoAns_*`` (where exact match and F1 are the same).
    """

    def __init__(self, cfg: Any, task: Any):
        """Raises UserError for another task, and for numbers that make no sense."""
        super().__init__(task)
        if not hasattr(task, "version2"):
            raise UserError("--criterion skim_question_answering: needs --task skim_squad")
        for name in ("n_best_size", "max_answer_length"):
            if getattr(cfg, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be at least 1")
        self.cfg, self.classification_head_name = cfg, cfg.classification_head_name
        self.init_skim_loss(cfg, task)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        """(loss with a gradient, sample size: windows, sums to log)."""
        output = model(
            **sample["net_input"], features_only=True, classification_head_name=self.classification_head_name
        )
        logits = wide(output[0])
        if logits.dim() != 3 or logits.size(-1) != 2:
            raise UserError(f"head {self.classification_head_name} gives {tuple(logits.shape)}, not two scores a token")
        hidden = self._hidden(logits, sample)
        targets = sample["target"]
        loss = sum(cross_entropy(hidden[:, :, side], targets[:, side], reduction="sum") for side in (0, 1)) / 2
        assert isinstance(loss, Tensor)
        size = len(targets)
        log: dict[str, Any] = {"ntokens": sample["ntokens"], "nsentences": size, "sample_size": size}
        if not model.training:
            self._score(hidden, sample, log)
        return self.add_skim_loss(model, sample, loss, output, size, log), size, log

    def _hidden(self, logits: Tensor, sample: Any) -> Tensor:
        """Scores (B, T, 2) with -inf at pads."""
        padding = sample["net_input"]["src_tokens"].eq(self.task.source_dictionary.pad())
        return logits.masked_fill(padding.unsqueeze(-1), -torch.inf)

    def distance(self, logits: Tensor, taught: Tensor, sample: Any) -> Tensor:
        """Mean over start and end of the distance over a window's tokens."""
        padding = sample["net_input"]["src_tokens"].eq(self.task.source_dictionary.pad()).unsqueeze(-1)
        ours, theirs = (wide(x).masked_fill(padding, -1e4).transpose(1, 2) for x in (logits, taught))
        return divergence(ours, theirs, self.distill_temperature) / 2

    # --- validation ---------------------------------------------------------------------------------------------------

    def _score(self, hidden: Tensor, sample: Any, log: dict[str, Any]) -> None:
        """Add up exact match and F1 of the questions whose answers are known."""
        data = self.task.dataset(sample["split"]).data
        sums = dict.fromkeys(_SUMS, 0.0)
        bins = torch.zeros(3, len(EDGES) + 1, dtype=torch.float64)
        version2 = bool(self.task.version2)
        for answer in decode(hidden, sample, data, self.cfg.n_best_size, self.cfg.max_answer_length):
            if not data.has_gold(answer.question):
                continue
            gold = gold_answers(data.golds(answer.question), version2)
            best = score(best_text(answer, data), gold, version2)
            null = score("", gold, version2)
            chosen = null if version2 and answer.null_odds > self.cfg.null_score_diff_threshold else best
            answerable = bool(data.golds(answer.question))
            for prefix in ("_", "_answerable_")[: 1 + answerable]:
                sums[f"{prefix}exact"] += chosen.exact
                sums[f"{prefix}f1"] += chosen.f1
            sums["_questions"] += 1
            sums["_answerable"] += answerable
            place = int(torch.searchsorted(EDGES, answer.null_odds))
            bins[:, place] += torch.tensor([best.exact, best.f1, null.exact])
        log.update(sums)
        if version2 and self.cfg.squad_best_threshold:
            log["thresholds"] = bins

    @classmethod
    def reduce_metrics(cls, logging_outputs: Any) -> None:
        loss = sum(log.get("loss", 0) for log in logging_outputs)
        size = sum(log.get("sample_size", 0) for log in logging_outputs)
        metrics.log_scalar("loss", loss / size / math.log(2), size, round=3)
        cls.reduce_skim_metrics(logging_outputs)
        if any("_questions" in log for log in logging_outputs):
            for name in ("exact", "f1"):
                metrics.log_derived(name, _share(f"_{name}", "_questions"))
                metrics.log_derived(f"HasAns_{name}", _share(f"_answerable_{name}", "_answerable"))
            metrics.log_derived("NoAns", _unanswerable)
        if any("thresholds" in log for log in logging_outputs):
            bins = sum(log["thresholds"] for log in logging_outputs if "thresholds" in log)
            metrics.log_concat_tensor("_thresholds", torch.as_tensor(bins).reshape(1, 3, -1).cpu(), dim=0)
            for row, name in enumerate(("exact", "f1")):
                metrics.log_derived(f"best_{name}", _best(row, value=True))
                metrics.log_derived(f"best_{name}_thresh", _best(row, value=False))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def best_text(answer: Answer, data: Any) -> str:
    """The best answer that is not "", or "" if there is none."""
    return data.text_of(answer.question, *answer.spans[0][1:]) if answer.spans else ""


def best_of(bins: Tensor, row: int) -> tuple[float, float]:
    """The highest sum over thresholds, and where. ``bins`` (3, EDGES + 1): sums of exact match, of F1, and of exact
    match if "" is the answer, of the questions that are answered at EDGES[i] and above."""
    answered = bins[row].cumsum(0)[:-1]
    silent = bins[2].sum() - bins[2].cumsum(0)[:-1]
    value, place = (answered + silent).max(0)
    return float(value), float(EDGES[place])


def _best(row: int, value: bool) -> Any:
    def derived(meters: Any) -> float:
        best, threshold = best_of(meters["_thresholds"].tensor.double().sum(0), row)
        return round(100.0 * best / max(float(meters["_questions"].sum), 1), 2) if value else round(threshold, 2)

    return derived


def _share(above: str, below: str) -> Any:
    def derived(meters: Any) -> float:
        return round(100.0 * float(meters[above].sum) / max(float(meters[below].sum), 1), 2)

    return derived


def _unanswerable(meters: Any) -> float:
    right = float(meters["_exact"].sum) - float(meters["_answerable_exact"].sum)
    return round(100.0 * right / max(float(meters["_questions"].sum) - float(meters["_answerable"].sum), 1), 2)
