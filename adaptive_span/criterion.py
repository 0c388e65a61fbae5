"""Cross-entropy that stays pure, with the span loss added to what is trained and logged beside it."""

from typing import Any

from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from adaptive_span.config import SpanCriterionConfig
from fairseq_efficient.ops.span_attention import span_width
from fairseq_efficient.plugin.pure_cross_entropy import PureCrossEntropy


@register_criterion("adaptive_span_loss", dataclass=SpanCriterionConfig)
class SpanCriterion(PureCrossEntropy):
    """``loss`` and ``bpc`` are bits per token of the cross-entropy alone. Trained is cross-entropy + span loss.

    Of learned spans it also logs ``aux/span`` (what is added, in nats of a token), ``mean_span`` and ``max_span`` (keys
    that a head sees, ramp included, over all layers), and ``span/LL/HH`` of each head.
    """

    def beside(self, model: Any, sample: Any, extra: Any, loss: Tensor) -> tuple[Tensor, dict[str, Any]]:
        found = _seen(extra["spans"], model.decoder) if extra.get("spans") else {}
        penalty = extra.get("aux", {}).get("span")
        if penalty is not None:
            found["aux/span"] = penalty.detach()
            if model.training:
                loss = loss + penalty * sample["ntokens"]
        return loss, {f"_{name}": value * sample["ntokens"] for name, value in found.items()}

    def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, Tensor]:
        softmax = model.decoder.adaptive_softmax
        if softmax is None or not hasattr(softmax, "loss"):
            return super().compute_loss(model, net_output, sample, reduce)
        loss = softmax.loss(net_output[0], model.get_targets(sample, net_output), reduce)
        return loss, loss

    @classmethod
    def reduce_metrics(cls, logging_outputs: Any) -> None:
        super().reduce_metrics(logging_outputs)
        cls.log_bits(logging_outputs)
        tokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        for name in sorted({name for log in logging_outputs for name in log if name.startswith("_")}):
            value = sum(log.get(name, 0.0) for log in logging_outputs) / max(tokens, 1)
            rare = 2000 if name.startswith("_span/") else 500
            metrics.log_scalar(name[1:], value, tokens, priority=rare, round=6 if "aux" in name else 1)


def _seen(spans: list[list[float]], decoder: Any) -> dict[str, Any]:
    """What each head sees; over several batches, means over their tokens."""
    options = decoder.options.layer.attention.spans
    found: dict[str, Any] = {}
    everything: list[float] = []
    for number, layer in enumerate(spans):
        widths = [float(span_width(span, options.ramp, options.longest)) for span in layer]
        everything += widths
        found.update({f"span/{number:02d}/{head:02d}": width for head, width in enumerate(widths)})
    found["mean_span"], found["max_span"] = sum(everything) / len(everything), max(everything)
    return found
