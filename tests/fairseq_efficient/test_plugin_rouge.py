import importlib

import pytest
from fairseq import scoring
from fairseq.scoring import SCORER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

import fairseq_efficient.plugin
from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.rouge import RougeScorer, RougeScorerConfig
from fairseq_efficient.text.summarization.rouge import corpus_rouge


def test_registered_once() -> None:
    before = dict(SCORER_REGISTRY), dict(TASK_REGISTRY)
    importlib.reload(fairseq_efficient.plugin)
    assert before == (SCORER_REGISTRY, TASK_REGISTRY)
    assert SCORER_REGISTRY["rouge"] is RougeScorer


def test_same_numbers_as_the_library() -> None:
    scorer = scoring.build_scorer("rouge", None)
    references, hypotheses = ["We do it.<q> It works.", "", "Models run."], ["It works.", "x", ""]
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        scorer.add_string(reference, hypothesis)
    expected = corpus_rouge(references, hypotheses)
    assert scorer.result_string() == str(expected) and scorer.score() == expected.mean[3]
    assert "empty hypotheses=1, n=3)" in scorer.result_string()


def test_settings() -> None:
    scorer = RougeScorer(RougeScorerConfig(rouge_no_stemmer=True, rouge_bootstrap=0))
    scorer.add_string("model runs", "models run")
    assert scorer.score() == 0 and "stemmer=no" in scorer.result_string()
    with pytest.raises(UserError, match="no summaries"):
        RougeScorer(RougeScorerConfig()).result_string()
