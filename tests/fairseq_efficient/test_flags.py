"""Flags whose values no model can compute with are refused in one line, and what is added to a loss is by token."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adaptive_span.config import SpanCriterionConfig
from adaptive_span.criterion import SpanCriterion
from dynamic_pooling.config import DynamicPoolingCriterionConfig
from dynamic_pooling.criterion import DynamicPoolingCrossEntropy
from fairseq_efficient.errors import UserError
from fairseq_efficient.flags import check_blocks, check_least, check_scales, check_shares
from par_search.config import SearchCriterionConfig
from par_search.criterion import SearchCriterion
from tests.adaptive_span import helpers as spans
from tests.dynamic_pooling import helpers as pooling
from tests.par_search import helpers as par
from tests.skimming import helpers as skimming

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda cfg: check_least(cfg, 1, "a_b"), 0, "--a-b 0: must be at least 1"),
        (lambda cfg: check_least(cfg, 0, "a_b"), NAN, "--a-b nan: must be at least 0"),
        (lambda cfg: check_least(cfg, 0, "a_b"), INF, "--a-b inf: must be finite"),
        (lambda cfg: check_shares(cfg, "a_b"), 1.0, "--a-b 1.0: must be at least 0 and below 1"),
        (lambda cfg: check_shares(cfg, "a_b"), NAN, "--a-b nan: must be at least 0 and below 1"),
        (lambda cfg: check_scales(cfg, "a_b"), 0.0, "--a-b 0.0: must be greater than 0"),
        (lambda cfg: check_scales(cfg, "a_b"), 1e-40, "--a-b 1e-40: must be between 1e-06 and 1e+06"),
        (lambda cfg: check_scales(cfg, "a_b"), INF, "--a-b inf: must be between"),
    ],
)
def test_values(check: Any, value: Any, message: str):
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        check(SimpleNamespace(a_b=value))
    check(SimpleNamespace(a_b=0.5 if "below" in message else 3))
    if check_scales.__name__ not in str(check):
        check_least(SimpleNamespace(a_b=None), 1, "a_b")
        check_shares(SimpleNamespace(a_b=None), "a_b")


def test_blocks():
    cfg = SimpleNamespace(quant_noise_pq=0.1, quant_noise_pq_block_size=8, width=12)
    with pytest.raises(UserError, match="--quant-noise-pq-block-size 8: must divide --width 12"):
        check_blocks(cfg, "width")
    check_blocks(SimpleNamespace(**{**vars(cfg), "quant_noise_pq": 0.0}), "width")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pooling.decoder("gumbel", init_std=1e30), "--init-std 1e\\+30: must be between"),
        (lambda: pooling.decoder("gumbel", temp=INF), "--temp inf: must be between"),
        (lambda: pooling.decoder("gumbel", prior=1e-50), "--prior 1e-50: must be between 0 and 1"),
        (lambda: par.par_lm(init_std=INF), "--init-std inf: must be between"),
        (lambda: par.supernet(tau_start=1e-40), "--tau-start 1e-40: must be between"),
        (lambda: skimming.build(skim_tau=1e-40), "--skim-tau 1e-40: must be between"),
        (lambda: skimming.build(skim_noise=1e38), "--skim-noise 1e\\+38: must be between"),
        (lambda: skimming.build(skim_init_bias=-INF), "--skim-init-bias -inf: must be between"),
        (
            lambda: skimming.build(quant_noise_pq=0.1, quant_noise_pq_block_size=7),
            "--quant-noise-pq-block-size 7: must divide --encoder-embed-dim 16",
        ),
        (lambda: boundary_criterion(False, NAN), "--boundary-loss-weight nan: must be at least 0"),
        (lambda: boundary_criterion(False, -1.0), "--boundary-loss-weight -1.0: must be at least 0"),
        (lambda: boundary_criterion(False, INF), "--boundary-loss-weight inf: must be finite"),
    ],
)
def test_what_gives_nan_is_refused(build: Any, message: str):
    with pytest.raises(UserError, match=message):
        build()


# --- --sentence-avg ---------------------------------------------------------------------------------------------------


def boundary_criterion(sentence_avg: bool, weight: float = 1.0) -> Any:
    cfg = DynamicPoolingCriterionConfig(sentence_avg=sentence_avg, boundary_loss_weight=weight)
    return DynamicPoolingCrossEntropy.build_criterion(cfg, SimpleNamespace(target_dictionary=pooling.WORDS))


def span_criterion(sentence_avg: bool) -> Any:
    return SpanCriterion.build_criterion(SpanCriterionConfig(sentence_avg=sentence_avg), spans.task())


def search_criterion(sentence_avg: bool) -> Any:
    cfg = SearchCriterionConfig(sentence_avg=sentence_avg, latency_weight=0.5)
    return SearchCriterion.build_criterion(cfg, par.task())


def batch(tokens: torch.Tensor, pad: int) -> dict[str, Any]:
    count = int(tokens.ne(pad).sum())
    return {"net_input": {"src_tokens": tokens}, "target": tokens.roll(-1, 1), "ntokens": count, "nsentences": 2}


CASES = {
    "boundaries": (boundary_criterion, lambda: pooling.model("gumbel"), pooling.text(20, 20)),
    "spans": (span_criterion, lambda: spans.sequential_lm(**spans.SPANS), torch.randint(5, 20, (2, 10))),
    "latency": (search_criterion, lambda: par.supernet(), torch.randint(5, 20, (2, 8))),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_added_is_by_token_also_with_sentence_avg(name: str):
    """Both are summed over tokens and divided by sentences then: their proportion stays."""
    make, build, tokens = CASES[name]
    found = []
    for sentence_avg in (False, True):
        one, model = make(sentence_avg), build().train()
        one.padding_idx = model.decoder.pad if hasattr(model.decoder, "pad") else pooling.WORDS.pad()
        torch.manual_seed(3)
        loss, size, log = one(model, batch(tokens, one.padding_idx))
        assert size == (2 if sentence_avg else tokens.numel())
        found.append([loss.detach(), *(torch.as_tensor(log[key]) for key in sorted(log) if key.startswith("_"))])
    assert float(found[0][0]) != pytest.approx(float(log["loss"]))  # something is added
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
