"""Cross-entropy, by full or adaptive softmax, that stays pure; what the architecture would cost is added to it."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.flat_config import given
from fairseq_efficient.plugin.pure_cross_entropy import PureCrossEntropy
from par_search.config import SearchCriterionConfig
from par_search.costs import Costs, Shape, flop_costs, read_table
from par_search.layout import KINDS
from par_search.phases import ARCHITECTURE

_LATENCY = ("weight", "table", "loss", "target", "power", "tokens", "memory")


@register_criterion("par_search", dataclass=SearchCriterionConfig)
class SearchCriterion(PureCrossEntropy):
    """``loss`` and ``ppl`` are of the cross-entropy alone. Of a par_supernet it also logs ``tau``, ``arch_entropy``,
    ``arch_cost`` (expected, of all blocks), ``aux/latency`` (what that adds to the loss), ``arch_loss`` (of updates of
    the architecture) and ``block/NN/{a,f,i}``."""

    def __init__(self, task: Any, sentence_avg: bool, **latency: Any):
        super().__init__(task, sentence_avg)
        self.task, self.latency = task, latency
        self._costs: Costs | None = None
        _check(latency)

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> "SearchCriterion":
        latency = {name: getattr(cfg, f"latency_{name}") for name in _LATENCY}
        criterion = cls(task, cfg.sentence_avg, **latency)
        for model in getattr(task, "built_for_training", list)():
            criterion.costs(model.decoder)  # so that a table that does not fit is told before anything is trained
        return criterion

    def beside(self, model: Any, sample: Any, extra: Any, loss: Tensor) -> tuple[Tensor, dict[str, Any]]:
        decoder = model.decoder
        if not model.training or not hasattr(decoder, "alpha"):
            return loss, {}
        sums: dict[str, Any] = self._architecture(decoder)
        if sample.get("phase") == ARCHITECTURE:
            sums["_arch_loss"] = loss.data
        if not self.latency["weight"]:
            return loss, sums
        trained = self._with_latency(loss, decoder, sample["ntokens"])
        sums["_aux/latency"] = (trained - loss).detach() / sample["ntokens"]
        return trained, sums

    def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, Tensor]:
        if not hasattr(model.decoder, "nll"):  # a model of another package
            return super().compute_loss(model, net_output, sample, reduce)
        loss = model.decoder.nll(net_output[0], model.get_targets(sample, net_output), reduce)
        return loss, loss

    # --- the architecture -------------------------------------------------------------------------------------------

    def refuse_latency(self, arch: str) -> None:
        """UserError for flags of the architecture's cost, given to a model that has none to search."""
        values = SimpleNamespace(**{f"latency_{name}": value for name, value in self.latency.items()})
        for name in given(values, SearchCriterionConfig, vars(values)):
            raise UserError(f"--{name.replace('_', '-')} is of --arch par_supernet: the layout of {arch} is fixed")

    def costs(self, decoder: Any) -> Costs:
        """Of the blocks of a par_supernet, by table or formula; UserError for a table of another shape."""
        if self._costs is None:
            options = decoder.options
            tokens = self.latency["tokens"] or options.tokens or 1
            memory = options.mem_len if self.latency["memory"] < 0 else self.latency["memory"]
            shape = Shape.of(options.block, tokens, memory)
            table = self.latency["table"]
            self._costs = read_table(table, shape) if table else flop_costs(shape)
        return self._costs

    def _with_latency(self, loss: Tensor, decoder: Any, tokens: Any) -> Tensor:
        """``loss``: summed over so many tokens."""
        costs, weight = self.costs(decoder), self.latency["weight"]
        expected = costs.expected(decoder.probabilities())
        if str(self.latency["loss"]) == "product":
            return loss * (weight * torch.log1p(1000 * expected) ** self.latency["power"])
        target = self.latency["target"]
        if target:
            return loss + weight * tokens * (expected / target - 1).clamp(min=0)
        most = max(costs.blocks) * len(decoder.blocks)
        return loss + weight * tokens * expected / most

    @torch.no_grad()
    def _architecture(self, decoder: Any) -> dict[str, Any]:
        """Scalars that stay on the device: reading them would hold up the backward pass."""
        probabilities, entropies = decoder.probabilities(), decoder.entropies()
        sums = torch.stack([entropies.mean(), self.costs(decoder).expected(probabilities)])
        blocks = range(len(probabilities))
        names = [f"_block/{number:02d}/{kind}" for number in blocks for kind in KINDS]
        return {
            "_arch": 1.0,  # how many times the others are added up
            "_tau": decoder.tau,
            **dict(zip(("_arch_entropy", "_arch_cost"), sums.unbind(), strict=True)),
            **dict(zip(names, probabilities.flatten().unbind(), strict=True)),
            **dict(zip((f"_block/{number:02d}/entropy" for number in blocks), entropies.unbind(), strict=True)),
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: Any) -> None:
        super().reduce_metrics(logging_outputs)
        times = sum(log.get("_arch", 0.0) for log in logging_outputs)
        if not times:
            return
        for name in [name for name in logging_outputs[0] if name.startswith("_")]:
            total = sum(log.get(name, 0.0) for log in logging_outputs)
            if name == "_arch_loss":
                size = sum(log.get("sample_size", 0) for log in logging_outputs)
                metrics.log_scalar("arch_loss", total / size / math.log(2), size, round=3)
            elif name != "_arch":
                metrics.log_scalar(name[1:], total / times, 0, priority=2000, round=6)  # weight 0: the last value


def _check(latency: dict[str, Any]) -> None:
    for name, least in (("weight", 0), ("target", 0), ("power", 0), ("tokens", 0), ("memory", -1)):
        if not latency[name] >= least or not math.isfinite(latency[name]):
            raise UserError(f"--latency-{name} {latency[name]}: must be at least {least}")
    if latency["target"] and str(latency["loss"]) == "product":
        raise UserError("--latency-target is for --latency-loss hinge")
