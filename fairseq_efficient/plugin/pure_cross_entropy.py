"""What the criteria of language models share: ``loss`` is the cross-entropy alone, whatever is trained beside it."""

import math
from collections.abc import Sequence
from typing import Any

from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics
from torch import Tensor


class PureCrossEntropy(CrossEntropyCriterion):
    """fairseq's cross-entropy with a place for more. So the best checkpoint means the best cross-entropy."""

    def beside(self, model: Any, sample: Any, extra: Any, loss: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What is trained, and what is logged beside ``loss``.

        Args:
            extra: what the model returned beside its output. loss: cross-entropy, summed over tokens, as what is added
                must be; fairseq divides both by tokens or (``--sentence-avg``) sentences.

        Returns:
            the loss that gets a gradient, and sums: names that begin with ``_`` are those of ``reduce_metrics``.
        """
        raise NotImplementedError

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        """(loss with a gradient, sample size, sums to log)."""
        net_output = model(**sample["net_input"])
        loss, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
        size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging = {
            "loss": loss.data if reduce else loss.data.sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": size,
        }
        trained, sums = self.beside(model, sample, net_output[1], loss)
        return trained if reduce else loss, size, {**logging, **sums}

    @staticmethod
    def log_bits(logging_outputs: Sequence[Any], name: str = "bpc", loss: str = "loss") -> None:
        """Log a summed loss as bits of a token."""
        tokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        if tokens:
            total = sum(log.get(loss, 0) for log in logging_outputs)
            metrics.log_scalar(name, total / tokens / math.log(2), tokens, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
