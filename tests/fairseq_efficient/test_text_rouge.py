import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.sentences import mark_sentences, unmark_sentences
from fairseq_efficient.text.summarization.floors import lead, oracle
from fairseq_efficient.text.summarization.lcs import lcs_indices, lcs_length
from fairseq_efficient.text.summarization.rouge import KINDS, bootstrap, corpus_rouge, detokenize, score_pair

WORDS = ["model", "models", "training", "trained", "the", "of", "document", "documents", "running", "12", "a", "b", "c"]
letters = st.text(alphabet="abc", max_size=12)
sentence = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(lambda words: " ".join(words) + ".")
text = st.lists(sentence, max_size=6)


@given(letters, letters)
def test_lcs_is_rouge_scores(reference: str, candidate: str) -> None:
    assert lcs_indices(reference, candidate)[::-1] == rouge_scorer.lcs_ind(reference, candidate)
    table = rouge_scorer._lcs_table(reference, candidate)
    assert lcs_length(reference, candidate) == table[-1][-1]


@settings(max_examples=200, deadline=None)
@given(text, text, st.booleans())
def test_same_numbers_as_rouge_score(reference: list[str], hypothesis: list[str], stem: bool) -> None:
    theirs = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=stem).score("\n".join(reference), "\n".join(hypothesis))
    ours = score_pair(mark_sentences(reference), mark_sentences(hypothesis), stem)
    assert ours == pytest.approx([theirs[kind].fmeasure for kind in KINDS], abs=1e-12)


def test_unmarked_texts_are_split_by_rules() -> None:
    one, two = "We do it. It works well.", "It works well. We do it."
    assert score_pair(one, two) == score_pair("We do it.<q> It works well.", "It works well.<q> We do it.")
    assert score_pair(one, two)[3] == 1 and score_pair(one, two)[2] < 1


def test_pieces_and_unknowns() -> None:
    assert detokenize("\u2581we \u2581do <q> \u2581it s") == "we do<q> its"
    assert detokenize("na<unk>ve <<unk>> x") == "na ve   x"
    assert score_pair("a <<unk>> b", "a <unk> b")[0] == 1
    assert score_pair("plain word", "\u2581plain \u2581w ord")[1] == 1


def test_empty_texts_score_zero() -> None:
    for pair in (("", "a"), ("a", ""), ("", ""), ("<q>", "<unk>"), ("!?", "a")):
        assert score_pair(*pair) == (0, 0, 0, 0)
    result = corpus_rouge(["a b", "c"], ["", "c"], samples=0)
    assert result.mean == (50, 0, 50, 50) and result.empty == 1 and "empty hypotheses=1" in str(result)


def test_corpus_line() -> None:
    draw = random.Random(0)
    references = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(30)]
    hypotheses = [" ".join(draw.choices(WORDS, k=8)) + ".<q> End." for _ in range(30)]
    result = corpus_rouge(references, hypotheses)
    assert str(result) == str(corpus_rouge(references, hypotheses))
    assert all(low < mean < high for low, mean, high in zip(result.low, result.mean, result.high, strict=True))
    line = str(result)
    assert line.startswith("ROUGE-1 ") and " ROUGE-Lsum " in line and line.endswith("n=30)")
    for part in (
        "F1",
        "stemmer=yes",
        "sentences=<q>",
        "bootstrap=1000",
        "rouge-score 0.1.2",
        "words=9.0 (reference 8.0)",
    ):
        assert part in line
    assert "[" not in str(corpus_rouge(references, hypotheses, stem=False, samples=0))
    assert "stemmer=no, sentences=rules" in str(corpus_rouge(["A b. C d."], ["A b."], stem=False))
    assert result.as_dict()["pairs"] == 30


def test_interval_covers_the_mean() -> None:
    scores = np.random.default_rng(0).normal(40, 10, size=(200, 2))
    low, high = bootstrap(scores, 2000)
    assert np.allclose(high - low, 2 * 1.96 * 10 / 200**0.5, rtol=0.15)
    assert (bootstrap(scores[:1], 100) == scores[0]).all()


def test_pairs_must_match() -> None:
    with pytest.raises(UserError, match="2 hypotheses for 1 references"):
        corpus_rouge(["a"], ["a", "b"])
    with pytest.raises(UserError, match="no summaries"):
        corpus_rouge([], [])


def test_lead() -> None:
    document = "One two three. Four five six. Seven eight nine. Ten."
    assert lead(document, 6) == "One two three.<q> Four five six."
    assert lead(document, 7) == lead(document, 6)
    assert lead(document, 1) == "One two three."
    assert unmark_sentences(lead(document, 99))[-1] == "Ten."
    assert lead("", 5) == ""


def naive_oracle(document: list[str], reference: str, limit: int) -> list[int]:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    chosen: list[int] = []
    best = 0.0
    for _ in range(limit):
        scored = []
        for i in set(range(len(document))) - set(chosen):
            # a word between sentences that the reference lacks: no n-gram across their ends can count
            found = scorer.score(reference, " ".join(document[j] for j in [*chosen, i]))
            scored.append((found["rouge1"].fmeasure + found["rouge2"].fmeasure, -i))
        top, index = max(scored, default=(0.0, 0))
        if top <= best:
            break
        best = top
        chosen.append(-index)
    return sorted(chosen)


def test_oracle() -> None:
    document = ["Cats like warm milk.", "Dogs like bones.", "Nothing here matters.", "Birds sing all day."]
    reference = "Birds sing. Dogs like big bones."
    assert oracle(" ".join(document), reference) == "Dogs like bones.<q> Birds sing all day."
    assert oracle(" ".join(document), reference, limit=1) == "Dogs like bones."
    assert oracle("", reference) == "" and oracle("Nothing.", reference) == ""
    chosen = naive_oracle(document, reference, 4)
    assert mark_sentences([document[i] for i in chosen]) == oracle(" ".join(document), reference)


def test_the_interval_does_not_depend_on_the_order_of_the_pairs():
    scores = np.random.default_rng(0).random((30, 4))
    shuffled = np.random.default_rng(1).permutation(scores)
    assert np.array_equal(bootstrap(scores, 200), bootstrap(shuffled, 200))
