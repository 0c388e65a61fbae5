"""Task ``skim_squad`` and its criterion: windows, answers, scores that do not depend on batches or ranks."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_efficient.errors import UserError
from skimming.criterion import SkimSentencePrediction, SkimSentencePredictionConfig
from skimming.squad_criterion import EDGES, SkimQuestionAnswering, best_of, best_text
from skimming.squad_decode import Answer, best_spans, decode, probabilities
from skimming.squad_metrics import best_thresholds, evaluate, gold_answers, score
from skimming.squad_task import SkimSquadTask
from skimming.squad_windows import SquadDataset
from tests.skimming.squad_tasks import criterion_of, task_of
from tests.squad_data import prepared, question, random_squad, squad


@pytest.fixture(scope="module")
def data11(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("squad11"), train=random_squad(5, impossible=False))


def words_of(task: SkimSquadTask, tokens: Any) -> list[str]:
    return [task.dictionary[int(token)] for token in tokens]


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [None, 2])
def test_training_windows_point_at_their_answers(squad_data: Path, separator: int | None) -> None:
    task = task_of(squad_data, separator_token=separator)
    task.load_dataset("train", combine=True)
    dataset: SquadDataset = task.dataset("train")
    split = dataset.data
    pointed = set()
    for number in range(len(dataset)):
        (window,) = dataset[number]["windows"]
        words, (first, last) = words_of(task, window["tokens"]), window["target"]
        asked = words_of(task, split.questions[window["question"]])[:6]
        assert words[: len(asked) + 1] == ["<s>", *asked] and len(words) <= 24 and words[-1] == "</s>"
        assert window["context"] == len(asked) + 2 + (separator is not None)
        assert words[len(asked) + 1 : window["context"]] == ["</s>"] * (1 + (separator is not None))
        if first == 0:
            assert last == 0
            continue
        assert window["context"] <= first <= last < len(words) - 1
        offsets = split.offsets_of(window["question"])
        places = [position - window["context"] + window["window"] for position in (first, last)]
        text = split.text_of(window["question"], offsets[places[0], 0], offsets[places[1], 1])
        assert text == split.golds(window["question"])[0]
        pointed.add(window["question"])
    assert pointed == {i for i, record in enumerate(split.records) if not record["impossible"]}


def test_evaluation_items_are_questions(squad_data: Path) -> None:
    task = task_of(squad_data)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    assert len(dataset) == 14 and {item["id"] for item in map(dataset.__getitem__, range(14))} == set(range(14))
    windows = [len(dataset[number]["windows"]) for number in range(14)]
    assert max(windows) > 1 and sum(windows) == len(dataset.question)
    assert [dataset.num_tokens(i) for i in range(14)] == list(dataset.num_tokens_vec(np.arange(14)))
    sample = dataset.collater([dataset[number] for number in (3, 5, 3)])
    assert sample["question"].tolist() == [3] * windows[3] + [5] * windows[5] + [3] * windows[3]
    assert sample["nsentences"] == len(sample["question"]) and dataset.collater([]) == {}
    tokens = sample["net_input"]["src_tokens"]
    assert tokens.ne(task.dictionary.pad()).sum(1).tolist() == sample["net_input"]["src_lengths"].tolist()


def test_questions_that_cannot_be_trained_on_are_left_out(tmp_path: Path, caplog: Any) -> None:
    text = "good film and bad play"
    items = [
        question("1", "what?", ("film", 6)),
        question("2", "what?", ("film", 5)),
        question("3", "x " * 9, ("bad", 14)),
    ]
    folder = prepared(tmp_path, train=squad((text, items)))
    task = task_of(folder)
    task.load_dataset("train", combine=True)
    dataset = task.dataset("train")
    assert [dataset[i]["windows"][0]["question"] for i in range(len(dataset))] == [1, 2]
    assert "1 questions left out" in caplog.text and "1 questions cut to --max-query-length 6" in caplog.text
    task.load_dataset("train")  # to evaluate on it, all are there
    assert len(task.dataset("train")) == 3 and task.version2 is False


def test_a_split_without_a_usable_question_is_one_line(tmp_path: Path) -> None:
    folder = prepared(tmp_path, train=squad(("good film and bad play", [question("1", "what?", ("film", 6))])))
    with pytest.raises(UserError, match="data: split train has no question that can be used"):
        task_of(folder).load_dataset("train", combine=True)
    task = task_of(folder)
    task.load_dataset("train")  # to predict on it, it has one
    with pytest.raises(UserError, match="skim_sentence_prediction: needs --task sentence_prediction"):
        SkimSentencePrediction(SkimSentencePredictionConfig(), task)


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 3, 30, 10**9])
def test_best_spans_are_the_best_of_all(longest: int) -> None:
    start, end = torch.randn(4, 11), torch.randn(4, 11)
    first, last = torch.tensor([2, 3, 5, 4]), torch.tensor([10, 9, 7, 4])
    scores, begins, ends = best_spans(start, end, first, last, 5, longest)
    for row in range(4):
        every = sorted(
            (
                (-float(start[row, a] + end[row, b]), a, b)
                for a in range(int(first[row]), int(last[row]))
                for b in range(a, min(a + longest, int(last[row])))
            ),
        )[:5]
        found = [(a, b) for s, a, b in zip(scores[row], begins[row], ends[row], strict=True) if s > -math.inf]
        assert [(int(a), int(b)) for a, b in found] == [(a, b) for _, a, b in every]
        torch.testing.assert_close(scores[row][: len(every)], -torch.tensor([s for s, _, _ in every]).reshape(-1))


def perfect_logits(task: SkimSquadTask, sample: Any) -> torch.Tensor:
    """Scores that point at the first answer wherever a window holds it all, else at position 0."""
    data = task.dataset(sample["split"]).data
    tokens = sample["net_input"]["src_tokens"]
    logits = torch.zeros(*tokens.shape, 2)
    for row, number in enumerate(sample["question"].tolist()):
        span = None if data.records[number]["impossible"] else data.answer_span(number)
        shift = int(sample["context"][row] - sample["window"][row])
        places = (0, 0) if span is None else (span[0] + shift, span[1] + shift)
        inside = (
            int(sample["context"][row]) <= places[0] and places[1] < int(sample["net_input"]["src_lengths"][row]) - 1
        )
        for side in (0, 1):
            logits[row, places[side] if inside else 0, side] = 9.0
    return logits


def test_perfect_scores_give_perfect_answers(squad_data: Path) -> None:
    task = task_of(squad_data)
    task.load_dataset("valid")
    dataset, gold, predictions = task.dataset("valid"), {}, {}
    for batch in ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]):
        sample = dataset.collater([dataset[number] for number in batch])
        for answer in decode(perfect_logits(task, sample), sample, dataset.data, 20, 30):
            record = dataset.data.records[answer.question]
            gold[record["id"]] = dataset.data.golds(answer.question)
            predictions[record["id"]] = "" if answer.null_odds > 0 else best_text(answer, dataset.data)
            assert len(answer.spans) == len({span[1:] for span in answer.spans}) <= 20
            assert [span[0] for span in answer.spans] == sorted((span[0] for span in answer.spans), reverse=True)
    found = evaluate(predictions, gold, version2=True)
    assert found["exact"] == found["f1"] == found["HasAns_exact"] == found["NoAns_exact"] == 100.0 and len(gold) == 14


def test_probabilities() -> None:
    assert probabilities([]) == [] and sum(probabilities([3.0, 1.0, -2.0])) == pytest.approx(1.0)
    assert Answer(0, [], -3.0).null_odds == math.inf and Answer(0, [(2.0, 0, 1)], -3.0).null_odds == -5.0


# --- criterion ------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """Gives the scores it is told to, and what a model says beside them."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores, self.num_updates = scores, None

    def forward(self, src_tokens: Any, src_lengths: Any, **_: Any) -> Any:
        counts = SimpleNamespace(lengths=src_lengths, ratio=lambda: torch.ones(len(src_lengths)))
        return self.scores(src_tokens), {"skim_counts": counts, "stats": {}}


def scores_by_token(width: int = 100) -> Any:
    table = torch.randn(width, 2)
    return lambda tokens: table[tokens] + torch.arange(tokens.size(1))[None, :, None] * 0.01


def test_loss_is_the_mean_of_two_cross_entropies_and_ignores_pads(squad_data: Path) -> None:
    task = task_of(squad_data)
    task.load_dataset("train", combine=True)
    dataset, criterion = task.dataset("train"), criterion_of(task, skim_lambda=0.0)
    model = Model(scores_by_token()).train()
    whole = criterion(model, dataset.collater([dataset[i] for i in range(6)]))
    assert whole[1] == 6
    total = 0.0
    for number in range(6):
        sample = dataset.collater([dataset[number]])
        loss, _, log = criterion(model, sample)
        total += float(loss)
        logits = model(**sample["net_input"])[0].log_softmax(1)
        first, last = sample["target"][0].tolist()
        assert float(loss) == pytest.approx(-float(logits[0, first, 0] + logits[0, last, 1]) / 2, rel=1e-5)
        assert "_questions" not in log
    assert float(whole[0]) == pytest.approx(total, rel=1e-5)


def reduced(logs: list[dict[str, Any]]) -> dict[str, float]:
    from fairseq.logging import metrics

    with metrics.aggregate(new_root=True) as found:
        SkimQuestionAnswering.reduce_metrics(logs)
    return found.get_smoothed_values()


@pytest.mark.parametrize("sizes", [[14], [5, 4, 5], [1] * 14])
def test_scores_do_not_depend_on_batches(squad_data: Path, sizes: list[int]) -> None:
    """Batches, or ranks: sums are added before they are divided; every question counts once."""
    task = task_of(squad_data)
    task.load_dataset("valid")
    dataset, criterion = (
        task.dataset("valid"),
        criterion_of(task, squad_best_threshold=True, null_score_diff_threshold=0.5),
    )
    torch.manual_seed(3)
    model = Model(scores_by_token()).eval()
    order = np.random.permutation(14)
    logs, gold, predictions, best, odds = [], {}, {}, {}, {}
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        sample = dataset.collater([dataset[number] for number in part])
        logs.append(criterion(model, sample)[2])
        for answer in decode(model(**sample["net_input"])[0], sample, dataset.data, 20, 30):
            name = dataset.data.records[answer.question]["id"]
            gold[name], best[name] = dataset.data.golds(answer.question), best_text(answer, dataset.data)
            odds[name] = answer.null_odds
            predictions[name] = "" if odds[name] > 0.5 else best[name]
    found, official = reduced(logs), evaluate(predictions, gold, version2=True)
    for name in ("exact", "f1", "HasAns_exact", "HasAns_f1"):
        assert found[name] == pytest.approx(official[name], abs=0.01)
    assert found["NoAns"] == pytest.approx(official["NoAns_exact"], abs=0.01)
    thresholds = best_thresholds(best, gold, odds)
    for name in ("best_exact", "best_f1"):
        assert found[name] <= thresholds[name] + 0.01  # the grid is coarser
        gaps = np.diff(sorted(odds.values()))
        if gaps.min() > 0.1:
            assert found[name] == pytest.approx(thresholds[name], abs=0.01)


def test_thresholds_of_bins() -> None:
    bins, odds = torch.zeros(3, len(EDGES) + 1, dtype=torch.float64), torch.randn(200, dtype=torch.float64) * 4
    exact, f1, null = torch.rand(3, 200, dtype=torch.float64).round(decimals=2)
    for number, place in enumerate(torch.searchsorted(EDGES, odds)):
        bins[:, place] += torch.stack([exact[number], f1[number], null[number]])
    for row, values in enumerate((exact, f1)):
        every = {float(t): float(torch.where(odds <= t, values, null).sum()) for t in EDGES}
        value, threshold = best_of(bins, row)
        assert value == pytest.approx(max(every.values())) == pytest.approx(every[threshold])


def test_version_1_never_answers_nothing(data11: Path) -> None:
    task = task_of(data11)
    task.load_dataset("train")
    assert task.version2 is False
    dataset, criterion = task.dataset("train"), criterion_of(task)
    model = Model(lambda tokens: torch.nn.functional.one_hot(torch.zeros_like(tokens), 2) * 0.0).eval()
    model.scores = lambda tokens: torch.cat(
        [torch.full((len(tokens), 1, 2), 9.0), torch.rand(*tokens[:, 1:].shape, 2)], 1
    )
    sample = dataset.collater([dataset[number] for number in range(len(dataset))])
    torch.manual_seed(0)
    log = criterion(model, sample)[2]
    torch.manual_seed(0)
    exact = 0.0
    for answer in decode(model(**sample["net_input"])[0], sample, dataset.data, 20, 30):
        exact += score(
            best_text(answer, dataset.data), gold_answers(dataset.data.golds(answer.question), False), False
        ).exact
        assert answer.null_odds > 0
    assert log["_exact"] == exact and log["_questions"] == 10
