"""From start and end scores of windows to answers: the best spans of each question, and the score of no answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """The best spans of a question over its windows, best first: (score, first and last + 1 character), and the lowest
    null score (start and end at position 0) of its windows."""

    question: int
    spans: list[tuple[float, int, int]]
    null: float

    @property
    def null_odds(self) -> float:
        """Score of no answer minus that of the best span; without a span, no answer is certain."""
        return self.null - self.spans[0][0] if self.spans else float("inf")


def best_spans(
    start: Tensor, end: Tensor, first: Tensor, last: Tensor, n_best: int, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``n_best`` spans of at most ``longest`` tokens of each row with the highest ``start + end``.

    Every span is looked at (the usual decoder pairs the 20 best starts with the 20 best ends, and can miss one).

    Args:
        start: (R, T) scores; ``end`` too.
        first: (R,) position of the first token that may belong to an answer; ``last`` one beyond the last such.

    Returns:
        scores (R, n), -inf where there are fewer spans; positions of their first and last tokens (R, n), int64.
    """
    rows, width = start.shape
    longest = min(longest, width)
    places = torch.arange(width, device=start.device)
    outside = (places < first[:, None]) | (places >= last[:, None])
    start, end = start.float().masked_fill(outside, -torch.inf), end.float().masked_fill(outside, -torch.inf)
    ends = F.pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)  # (R, T, longest)
    scores = (start[:, :, None] + ends).reshape(rows, -1)
    found, flat = scores.topk(min(n_best, scores.size(1)), dim=1)
    begin = flat.div(longest, rounding_mode="floor")
    return found, begin, begin + flat % longest


def decode(logits: Tensor, sample: dict[str, Any], data: Any, n_best: int, longest: int) -> list[Answer]:
    """Answers to the questions of a batch that holds all windows of each.

    Args:
        logits: (R, T, 2).
        sample: of :class:`skimming.squad_windows.SquadDataset`.
        data: its :class:`skimming.squad_windows.SquadSplit`, which knows the tokens' characters.
    """
    start, end = logits.float().unbind(-1)
    first = sample["context"]
    last = sample["net_input"]["src_lengths"] - 1  # without the separator at the end
    scores, begins, ends = (x.cpu().numpy() for x in best_spans(start, end, first, last, n_best, longest))
    nulls = (start[:, 0] + end[:, 0]).tolist()
    shift = (sample["window"] - first).tolist()
    rows: dict[int, list[int]] = {}
    for row, question in enumerate(sample["question"].tolist()):
        rows.setdefault(question, []).append(row)
    answers = []
    for question, members in rows.items():
        offsets = data.offsets_of(question)
        spans: dict[tuple[int, int], float] = {}
        for row in members:
            for score, begin, stop in zip(scores[row], begins[row], ends[row], strict=True):
                if score == -float("inf"):
                    break
                place = int(offsets[begin + shift[row], 0]), int(offsets[stop + shift[row], 1])
                spans[place] = max(spans.get(place, -float("inf")), float(score))
        ranked = sorted(((score, *place) for place, score in spans.items()), key=lambda one: (-one[0], one[1:]))
        answers.append(Answer(question, ranked[:n_best], min(nulls[row] for row in members)))
    return answers


def probabilities(scores: Sequence[float]) -> list[float]:
    """Softmax over the n-best list (with the null score in it, in version 2.0)."""
    return torch.tensor(list(scores), dtype=torch.float64).softmax(0).tolist() if scores else []
