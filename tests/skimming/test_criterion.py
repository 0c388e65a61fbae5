"""The loss that is trained: sums that split over batches, prices, targets, warm-up, a teacher; warnings; labels."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import metrics
from torch import Tensor
from torch.nn.functional import cross_entropy

from fairseq_efficient.errors import UserError
from fairseq_efficient.schedules import linear
from skimming import encoder as encoder_module
from skimming.criterion import PATIENCE, SkimSentencePrediction, SkimSentencePredictionConfig
from skimming.distillation import divergence
from skimming.predictor import keeps
from tests.skimming.helpers import HEAD, build, pad, sentences
from tests.util import assert_close


def criterion(classes: int = 3, **flags: Any) -> SkimSentencePrediction:
    words = Dictionary()
    for label in range(classes):
        words.add_symbol(str(label))
    words.add_symbol("<mask>")
    task = SimpleNamespace(label_dictionary=words, cfg=SimpleNamespace(num_classes=classes))
    cfg = SkimSentencePredictionConfig(classification_head_name=HEAD)
    for name, value in flags.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return SkimSentencePrediction(cfg, task)


def sample(rows: list[Tensor], targets: list[float]) -> dict[str, Any]:
    return {
        "id": torch.arange(len(rows)),
        "net_input": {"src_tokens": pad(rows), "src_lengths": torch.tensor([len(row) for row in rows])},
        "target": torch.tensor(targets),
        "ntokens": sum(len(row) for row in rows),
    }


ROWS, TARGETS = sentences([12, 5, 20, 9]), [0, 2, 1, 1]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch):
    """Training decides like inference, with a gradient."""

    def decide(logits: Tensor, *_: Any) -> Tensor:
        soft = (logits[..., 1] - logits[..., 0]).sigmoid()
        return keeps(logits).to(logits.dtype) + soft - soft.detach()

    monkeypatch.setattr(encoder_module, "decide", decide)


@pytest.mark.parametrize("flags", [{}, {"skim_target_ratio": 0.3}, {"skim_lambda": 3.0}])
def test_p4_the_loss_and_its_gradient_are_sums_over_batches(deterministic: None, flags: dict):
    """One batch, or its parts one after another: equal losses, gradients, and figures to log."""
    model, loss_of = build().train(), criterion(**flags)

    def run(parts: list[list[int]]) -> tuple[Tensor, Tensor, dict[str, float]]:
        model.zero_grad()
        total, logs, size = torch.zeros(()), [], 0
        for part in parts:
            loss, count, log = loss_of(model, sample([ROWS[i] for i in part], [TARGETS[i] for i in part]))
            loss.backward()
            total, size = total + loss.detach(), size + count
            logs.append(log)
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert size == 4
        with metrics.aggregate(new_root=True) as aggregated:
            SkimSentencePrediction.reduce_metrics(logs)
        return total, grads, aggregated.get_smoothed_values()

    whole, parts = run([[0, 1, 2, 3]]), run([[2], [0, 3], [1]])
    assert_close(parts[0], whole[0])
    assert_close(parts[1], whole[1], 1e-4, 1e-4)
    assert whole[1].abs().sum() > 0
    for name, value in whole[2].items():
        if name != "flops_ratio_padded":
            assert abs(parts[2][name] - value) < 2e-4, name
    assert {"keep_l0", "keep_l1", "keep_l2", "keep_ratio", "loss", "aux/skim", "accuracy"} <= whole[2].keys()


def test_what_is_added(deterministic: None):
    """task + lambda x kept share, summed over sentences; squared distances with a target; logged apart."""
    model, batch = build().train(), sample(ROWS, TARGETS)
    logits, extra = model(batch["net_input"]["src_tokens"], classification_head_name=HEAD)
    task_loss = cross_entropy(logits, batch["target"], reduction="sum")
    ratio = extra["skim_counts"].ratio()
    assert ratio.shape == (4,) and 0.2 < float(ratio.detach().mean()) < 0.95
    loss, size, log = criterion(skim_lambda=0.7)(model, batch)
    assert_close(loss, task_loss + 0.7 * ratio.sum())
    assert size == 4 and abs(float(log["loss"] - task_loss)) < 1e-5
    assert abs(float(log["_aux/skim"] - 0.7 * ratio.sum())) < 1e-6
    loss, _, log = criterion(skim_lambda=0.7, skim_target_ratio=0.25)(model, batch)
    assert_close(loss, task_loss + 0.7 * (ratio - 0.25).square().sum())
    assert abs(float(log["_aux/skim"] - 0.7 * (ratio - 0.25).square().sum())) < 1e-6
    with metrics.aggregate(new_root=True) as aggregated:
        SkimSentencePrediction.reduce_metrics([log])
    shown = aggregated.get_smoothed_values()
    assert abs(shown["loss"] - float(task_loss) / 4 / math.log(2)) < 1e-3  # bits, of the task alone
    assert abs(shown["aux/skim"] - 0.7 * float((ratio - 0.25).square().mean())) < 1e-3


def test_lambda_warms_up_in_training_only(deterministic: None):
    model, batch, loss_of = build().train(), sample(ROWS, TARGETS), criterion(skim_lambda=2.0, skim_lambda_warmup=10)
    full = criterion(skim_lambda=2.0)
    without = float(criterion(skim_lambda=0.0)(model, batch)[0])
    price = float(full(model, batch)[0]) - without
    for updates, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        model.set_num_updates(updates)
        assert abs(float(loss_of(model, batch)[0]) - without - share * price) < 1e-4
    model.set_num_updates(1)
    model.eval()
    assert_close(loss_of(model, batch)[0], full(model, batch)[0])


def test_linear_schedule():
    assert [linear(0.0, 2.0, 4, n) for n in (None, -1, 0, 1, 3, 4, 9)] == [2.0, 0.0, 0.0, 0.5, 1.5, 2.0, 2.0]
    assert linear(1.0, 3.0, 0, 0) == 3.0


def test_regression(deterministic: None):
    model = build().train()
    model.register_classification_head(HEAD, num_classes=1)
    batch = sample(ROWS, [0.5, 1.0, 0.0, 2.0])
    loss, _, log = criterion(1, regression_target=True, skim_lambda=0.0)(model, batch)
    logits = model(batch["net_input"]["src_tokens"], classification_head_name=HEAD)[0].flatten()
    assert_close(loss, (logits - batch["target"]).square().sum())
    assert "ncorrect" not in log


def test_divergence():
    ours, theirs = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    for tau in (1.0, 2.5):
        p, q = (theirs / tau).softmax(-1), (ours / tau).softmax(-1)
        assert_close(divergence(ours, theirs, tau), tau**2 * (p * (p / q).log()).sum())
    assert float(divergence(theirs, theirs).abs()) < 1e-6
    assert_close(divergence(ours, theirs, regression=True), (ours - theirs).square().sum())
    assert divergence(ours.half(), theirs.half()).dtype == torch.float32


def watched(
    model: Any, loss_of: SkimSentencePrediction, updates: list[int], caplog: pytest.LogCaptureFixture
) -> list[str]:
    caplog.clear()
    for number in updates:
        model.set_num_updates(number)
        loss_of(model, sample(ROWS, TARGETS))
    return [record.getMessage() for record in caplog.records if "updates" in record.getMessage()]


def biased(model: Any, value: float) -> Any:
    for predictor in model.encoder.sentence_encoder.skim_predictors.values():
        predictor[4].bias.data.copy_(torch.tensor([-value, value]))
    return model


def test_collapse_is_warned_of(caplog: pytest.LogCaptureFixture):
    model = build(skim=False).train()
    with caplog.at_level(logging.WARNING):
        found = watched(biased(model, -50.0), criterion(), [50, 100, 100, 150, 200], caplog)
        assert len(found) == 2 and "after 100 updates no token but the protected ones enters any layer" in found[0]
        assert watched(biased(model, 50.0), criterion(), [100, 900], caplog) == []  # may still begin to skip
        found = watched(model, criterion(), [PATIENCE], caplog)
        assert len(found) == 1 and f"after {PATIENCE} updates nothing is skipped" in found[0]
        assert watched(model, criterion(skim_lambda=0.0), [PATIENCE], caplog) == []  # as asked for
        dense = build(skim=False, skim_layers="none").train()
        assert watched(dense, criterion(), [PATIENCE], caplog) == []
        assert watched(biased(model, 0.0), criterion(), [100, PATIENCE], caplog) == []


def test_collapse_is_seen_where_noise_hides_it(caplog: pytest.LogCaptureFixture):
    """Training draws some decisions the other way; validation, which does not, tells, once for each time it runs."""
    with caplog.at_level(logging.WARNING):
        for value, said in ((-1.0, "no token but the protected ones"), (1.0, "nothing is skipped")):
            model, loss_of = biased(build(skim=False), value), criterion()
            assert watched(model.train(), loss_of, [PATIENCE], caplog) == []
            found = watched(model.eval(), loss_of, [PATIENCE, PATIENCE, 2 * PATIENCE], caplog)
            assert len(found) == 2 and all(said in one for one in found)
        model.num_updates = None  # fairseq-validate trains nothing
        loss_of(model, sample(ROWS, TARGETS))
        assert len([one for one in caplog.records if "updates" in one.getMessage()]) == 2


def test_other_dictionaries_are_one_line(tmp_path: Path):
    """Pairs numbered by two dictionaries."""
    for name, text in (("input0", "a 1\n"), ("input1", "a 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dict.txt").write_text(text)
    task = SimpleNamespace(label_dictionary=criterion(3).label_dict, cfg=SimpleNamespace(num_classes=3))
    task.cfg.data = str(tmp_path)
    SkimSentencePrediction(SkimSentencePredictionConfig(), task)
    (tmp_path / "input1" / "dict.txt").write_text("b 1\n")
    with pytest.raises(UserError, match=r"input1/dict\.txt: not the dictionary of input0"):
        SkimSentencePrediction(SkimSentencePredictionConfig(), task)


def test_labels_are_checked():
    with pytest.raises(UserError, match=r"--num-classes 2: label/dict\.txt has 3 labels \(0, 1, 2\)"):
        words = criterion(3).label_dict
        task = SimpleNamespace(label_dictionary=words, cfg=SimpleNamespace(num_classes=2))
        SkimSentencePrediction(SkimSentencePredictionConfig(), task)
    with pytest.raises(UserError, match=r"sentence 1 \(from 0\): its label is not one of the 3 classes"):
        criterion(3)(build(), sample(ROWS, [0, 3, 1, 1]))
    with pytest.raises(UserError, match=r"sentence 3 \(from 0\): its label"):
        criterion(3)(build(), sample(ROWS, [0, 2, 1, -1]))


@pytest.mark.parametrize(
    "flags", [{"skim_lambda": -0.1}, {"skim_lambda": float("nan")}, {"skim_target_ratio": -0.1},
              {"skim_distill_weight": -1.0}, {"skim_distill_temperature": 0.0}, {"skim_lambda_warmup": -1}]
)  # fmt: skip
def test_mistakes(flags: dict):
    with pytest.raises(UserError, match="--" + next(iter(flags)).replace("_", "-")):
        criterion(**flags)


def test_logging_outputs_add_up_unless_predictions_are_collected():
    assert criterion().logging_outputs_can_be_summed()
    assert not criterion(report_mcc=True).logging_outputs_can_be_summed()
    model = build()
    log = criterion(2, report_acc_and_f1=True)(model, sample(ROWS, [0, 1, 1, 0]))[2]
    assert len(log["pred"]) == 4 and all(isinstance(value, Tensor) or name in ("pred", "targ") or value is not None
                                         for name, value in log.items())  # fmt: skip
    sums = {name: value for name, value in log.items() if name.startswith("_") and isinstance(value, Tensor)}
    assert sums and all(value.dtype == torch.float64 and not value.requires_grad for value in sums.values())
