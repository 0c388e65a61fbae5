"""What a summary scores without a model: the document's first sentences, and its best sentences by hindsight."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fairseq_efficient.text.sentences import mark_sentences, sentences_of
from fairseq_efficient.text.summarization.rouge import tokens_of


def lead(document: str, words: float) -> str:
    """The first sentences of a document, as many as come closest to ``words`` words (at least one), marked."""
    taken: list[str] = []
    total = 0
    for sentence in sentences_of(document):
        size = len(sentence.split())
        if taken and abs(total + size - words) >= abs(total - words):
            break
        taken.append(sentence)
        total += size
    return mark_sentences(taken)


def _counts(tokens: list[str], n: int, index: dict[tuple[str, ...], int]) -> tuple[np.ndarray, int]:
    """How often each of the reference's n-grams occurs, and how many n-grams there are in all."""
    grams = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    found = np.zeros(len(index), dtype=np.int32)
    for gram, count in grams.items():
        if gram in index:
            found[index[gram]] = count
    return found, grams.total()


class _Overlap:
    """Clipped n-gram hits of growing sentence sets, for one n."""

    def __init__(self, reference: list[str], sentences: list[list[str]], n: int) -> None:
        grams = Counter(zip(*(reference[i:] for i in range(n)), strict=False))
        index = {gram: i for i, gram in enumerate(grams)}
        self.wanted = np.fromiter(grams.values(), dtype=np.int32, count=len(grams))
        counted = [_counts(tokens, n, index) for tokens in sentences]
        self.have = np.stack([found for found, _ in counted])
        self.sizes = np.array([size for _, size in counted], dtype=np.float64)
        self.taken, self.size = np.zeros_like(self.wanted), 0.0

    def f1_with_each(self) -> np.ndarray:
        """F1 of the set plus each sentence, one number per sentence."""
        hits = np.minimum(self.taken + self.have, self.wanted).sum(axis=1)
        return 2 * hits / np.maximum(self.sizes + self.size + self.wanted.sum(), 1)

    def take(self, best: int) -> None:
        self.taken = self.taken + self.have[best]
        self.size += self.sizes[best]


def oracle(document: str, reference: str, limit: int = 30, stem: bool = True) -> str:
    """Sentences of the document chosen greedily for ROUGE-1 + ROUGE-2, until none helps or ``limit``; marked, in order.

    N-grams across sentence ends are not counted while choosing.
    """
    sentences = sentences_of(document)
    if not sentences:
        return ""
    wanted = [token for sentence in sentences_of(reference) for token in tokens_of(sentence, stem)]
    tokens = [tokens_of(sentence, stem) for sentence in sentences]
    overlaps = [_Overlap(wanted, tokens, n) for n in (1, 2)]
    chosen: list[int] = []
    score = 0.0
    while len(chosen) < min(limit, len(sentences)):
        scores = overlaps[0].f1_with_each() + overlaps[1].f1_with_each()
        scores[chosen] = -1
        best = int(scores.argmax())
        if scores[best] <= score:
            break
        score = float(scores[best])
        chosen.append(best)
        for overlap in overlaps:
            overlap.take(best)
    return mark_sentences([sentences[i] for i in sorted(chosen)])


def floors(
    documents: Sequence[str], references: Sequence[str], words: float, stem: bool = True
) -> dict[str, list[str]]:
    """Lead and oracle summaries of all documents; ``words``: mean reference length, for lead."""
    return {
        "lead": [lead(document, words) for document in documents],
        "oracle": [oracle(document, ref, stem=stem) for document, ref in zip(documents, references, strict=True)],
    }
