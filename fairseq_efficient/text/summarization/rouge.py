"""Corpus ROUGE-1/2/L/Lsum F1: the tokens and numbers of the package ``rouge-score``, with marked sentence ends.

ROUGE-1, -2 and -L see a text as one line; ROUGE-Lsum sees its sentences, by :data:`SENTENCE_MARK` or, where a text
has none, by the rules of :mod:`fairseq_efficient.text.sentences`. Each pair is scored once; the 95 % interval of the
mean is a bootstrap over those numbers.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from rouge_score import tokenize as rouge_tokenize

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.sentences import SENTENCE_MARK, sentences_of
from fairseq_efficient.text.summarization.lcs import lcs_indices, lcs_length

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
LABELS = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum")
_UNKNOWN = re.compile(r"<?<unk>>?")  # fairseq writes <unk>, and <<unk>> in references
_WORD_START = "\u2581"


class _CachedStemmer:
    """The Porter stemmer with a memory: most words come again."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # brings all of nltk, which no command but scoring needs

        self.stem = functools.lru_cache(maxsize=200_000)(PorterStemmer().stem)


@functools.cache
def _stemmer() -> _CachedStemmer:
    return _CachedStemmer()


def tokens_of(text: str, stem: bool = True) -> list[str]:
    """rouge-score's tokens: lower case, letters and digits only, words of more than three letters stemmed."""
    found: list[str] = rouge_tokenize.tokenize(text, _stemmer() if stem else None)
    return found


def detokenize(text: str) -> str:
    """Words from sentencepiece pieces if ``text`` is made of them; unknown pieces (no letters for ROUGE) dropped."""
    if _WORD_START in text:
        text = text.replace(" ", "").replace(_WORD_START, " ")
    return _UNKNOWN.sub(" ", text).strip()


def f1(hits: int, reference: int, hypothesis: int) -> float:
    """F1 of ``hits`` among so many reference and hypothesis units, in rouge-score's arithmetic; 0 if there are none."""
    precision, recall = hits / max(hypothesis, 1), hits / max(reference, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _ngram_f1(reference: list[str], hypothesis: list[str], n: int) -> float:
    grams = [Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (reference, hypothesis)]
    return f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def _summary_lcs_f1(reference: list[list[str]], hypothesis: list[list[str]]) -> float:
    """Union LCS of each reference sentence with all hypothesis sentences, no token counted twice."""
    left = [Counter(token for sentence in side for token in sentence) for side in (reference, hypothesis)]
    totals = [side.total() for side in left]
    hits = 0
    for sentence in reference:
        union = sorted(set().union(*(lcs_indices(sentence, other) for other in hypothesis)))
        for token in (sentence[i] for i in union):
            if left[0][token] > 0 and left[1][token] > 0:
                hits += 1
                left[0][token] -= 1
                left[1][token] -= 1
    return f1(hits, *totals)


def score_pair(reference: str, hypothesis: str, stem: bool = True) -> tuple[float, float, float, float]:
    """ROUGE-1, -2, -L, -Lsum F1 of one pair, 0 to 1. Texts may be marked; an empty one scores 0."""
    sides = [sentences_of(detokenize(text)) for text in (reference, hypothesis)]
    lines = [[tokens_of(sentence, stem) for sentence in side] for side in sides]
    words = [[token for line in side for token in line] for side in lines]
    longest = f1(lcs_length(*words), *map(len, words))
    return _ngram_f1(words[0], words[1], 1), _ngram_f1(words[0], words[1], 2), longest, _summary_lcs_f1(*lines)


def bootstrap(scores: np.ndarray, samples: int, seed: int = 1) -> np.ndarray:
    """95 % interval of the mean: scores (n, k) -> (2, k), low and high; the mean itself for ``samples`` 0 or n < 2."""
    mean = scores.mean(axis=0)
    if samples <= 0 or len(scores) < 2:
        return np.stack([mean, mean])
    scores = scores[np.lexsort(scores.T)]  # fairseq decodes by length, a file is in its own order: the same interval
    rng = np.random.default_rng(seed)
    means = np.empty((samples, scores.shape[1]))
    for i in range(samples):
        means[i] = scores[rng.integers(len(scores), size=len(scores))].mean(axis=0)
    return np.percentile(means, (2.5, 97.5), axis=0)


@dataclass(frozen=True)
class Rouge:
    """Corpus scores times 100 in the order of :data:`KINDS`, and what they were made with."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    pairs: int
    empty: int
    words: float
    reference_words: float
    stem: bool
    samples: int
    sentences: str

    def __str__(self) -> str:
        parts = [
            f"{label} {mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if self.samples else "")
            for label, mean, low, high in zip(LABELS, self.mean, self.low, self.high, strict=True)
        ]
        settings = [
            "F1",
            f"stemmer={'yes' if self.stem else 'no'}",
            f"sentences={self.sentences}",
            f"bootstrap={self.samples}",
            f"rouge-score {version('rouge-score')}",
            f"words={self.words:.1f} (reference {self.reference_words:.1f})",
            *([f"empty hypotheses={self.empty}"] if self.empty else []),
            f"n={self.pairs}",
        ]
        return f"{' '.join(parts)} ({', '.join(settings)})"

    def as_dict(self) -> dict[str, object]:
        """JSON-able numbers under the names of :data:`KINDS`."""
        scores = {
            k: {"mean": m, "low": lo, "high": hi}
            for k, m, lo, hi in zip(KINDS, self.mean, self.low, self.high, strict=True)
        }
        settings = {"stemmer": self.stem, "bootstrap": self.samples, "sentences": self.sentences, "measure": "F1"}
        settings["rouge_score"] = version("rouge-score")
        counts = {
            "pairs": self.pairs,
            "empty": self.empty,
            "words": self.words,
            "reference_words": self.reference_words,
        }
        return {**scores, **counts, "settings": settings}


def _sentence_source(texts: Iterable[str]) -> str:
    """Where sentence ends came from: the mark, the rules (for several sentences without a mark), or both."""
    found = {SENTENCE_MARK if SENTENCE_MARK in text else "rules" * (len(sentences_of(text)) > 1) for text in texts}
    return "+".join(sorted(found - {""})) or SENTENCE_MARK


def corpus_rouge(
    references: Sequence[str], hypotheses: Sequence[str], stem: bool = True, samples: int = 1000, seed: int = 1
) -> Rouge:
    """Mean ROUGE of hypotheses against references, pair by pair. UserError if the counts differ or are zero."""
    if len(references) != len(hypotheses):
        raise UserError(f"{len(hypotheses):,} hypotheses for {len(references):,} references: they must pair up")
    if not references:
        raise UserError("no summaries to score")
    pairs = zip(references, hypotheses, strict=True)
    scores = 100 * np.array([score_pair(reference, hypothesis, stem) for reference, hypothesis in pairs])
    low, high = bootstrap(scores, samples, seed)
    return Rouge(
        mean=tuple(scores.mean(axis=0).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        pairs=len(scores),
        empty=sum(not detokenize(text) for text in hypotheses),
        words=mean_words(hypotheses),
        reference_words=mean_words(references),
        stem=stem,
        samples=max(samples, 0),
        sentences=_sentence_source([*references, *hypotheses]),
    )


def mean_words(texts: Sequence[str]) -> float:
    """Average length in blank-separated words, marks not counted."""
    return sum(len(detokenize(text).replace(SENTENCE_MARK, " ").split()) for text in texts) / max(len(texts), 1)
