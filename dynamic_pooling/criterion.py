"""Cross-entropy that stays pure, with the boundary loss added to what is trained and logged beside it."""

from types import SimpleNamespace
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from dynamic_pooling.config import DynamicPoolingCriterionConfig
from fairseq_efficient.flags import check_least
from fairseq_efficient.plugin.pure_cross_entropy import PureCrossEntropy
from fairseq_efficient.rates import rate

RATES = {  # name -> (sum that is divided, sum that divides)
    "aux/boundary": ("boundary_loss", "tokens"),
    "boundary_rate": ("closed", "tokens"),
    "boundary_prob": ("probability", "tokens"),
    "shortening_factor": ("tokens", "closed"),
    "sampled_shortening_factor": ("sampled_tokens", "sampled_closed"),
}
AGREEMENTS = ("boundary", "spaces", "unigram")  # predictions against the predictor's target, spaces, the tokenizer


@register_criterion("dynamic_pooling_cross_entropy", dataclass=DynamicPoolingCriterionConfig)
class DynamicPoolingCrossEntropy(PureCrossEntropy):
    """``loss`` and ``bpc`` are bits per token of the cross-entropy alone, so the best checkpoint means that.

    Trained is ``cross-entropy + weight x boundary loss``, both summed over tokens.
    """

    def __init__(self, task: Any, sentence_avg: bool, boundary_loss_weight: float, no_sampled_eval: bool):
        super().__init__(task, sentence_avg)
        check_least(SimpleNamespace(boundary_loss_weight=boundary_loss_weight), 0, "boundary_loss_weight")
        self.boundary_loss_weight, self.sampled_eval = boundary_loss_weight, not no_sampled_eval

    def beside(self, model: Any, sample: Any, extra: Any, loss: Tensor) -> tuple[Tensor, dict[str, Any]]:
        sums = {f"_{name}": value.detach() for name, value in extra.get("stats", {}).items()}
        boundary = extra.get("aux", {}).get("boundary")
        if boundary is not None:
            weighted = self.boundary_loss_weight * boundary
            sums["_boundary_loss"] = weighted.detach()
            loss = loss + weighted
        if self.sampled_eval and not model.training and extra.get("can_sample"):
            sums.update(self._sampled(model, sample))
        return loss, sums

    @torch.no_grad()
    def _sampled(self, model: Any, sample: Any) -> dict[str, Any]:
        """The same batch with boundaries drawn as in training, by a generator of its own (the same at each call)."""
        device = sample["target"].device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(1)
            output = model(**sample["net_input"], sample_boundaries=True)
            loss, _ = self.compute_loss(model, output, sample)
        stats = output[1]["stats"]
        return {
            "_sampled_loss": loss.data,
            "_sampled_tokens": stats["tokens"].detach(),
            "_sampled_closed": stats["closed"].detach(),
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: Any) -> None:
        super().reduce_metrics(logging_outputs)
        names = sorted({name for log in logging_outputs for name in log if name.startswith("_")})
        sums = {name: sum(log.get(name, 0) for log in logging_outputs) for name in names}
        cls.log_bits(logging_outputs)
        if "_sampled_loss" in sums:
            cls.log_bits(logging_outputs, "sampled_bpc", "_sampled_loss")
        for name in names:
            if name != "_sampled_loss":
                metrics.log_scalar(name, sums[name], 1, round=0)
        for name, (above, below) in RATES.items():
            if f"_{above}" in sums and f"_{below}" in sums:
                metrics.log_derived(name, rate(f"_{above}", f"_{below}"))
        for name in AGREEMENTS:
            if f"_{name}_both" in sums:
                metrics.log_derived(f"{name}_precision", rate(f"_{name}_both", f"_{name}_found"))
                metrics.log_derived(f"{name}_recall", rate(f"_{name}_both", f"_{name}_given"))
                metrics.log_derived(f"{name}_accuracy", _accuracy(name))


def _accuracy(name: str) -> Any:
    def derived(meters: Any) -> float:
        both, found, given = (float(meters[f"_{name}_{part}"].sum) for part in ("both", "found", "given"))
        total = float(meters["_tokens"].sum)
        return round((total - found - given + 2 * both) / max(total, 1), 4)

    return derived
