"""From a searched supernet to a layout: the most probable one, within a budget or not, or the best of several drawn."""

import math
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from par_search.costs import Costs
from par_search.layout import KINDS


def without_identity(layout: str) -> str:
    """The blocks that remain. UserError if there is none."""
    kept = layout.replace("i", "")
    if not kept:
        raise UserError(f"the layout {layout} has no block but identity: the search found nothing")
    return kept


def most_probable(probabilities: Tensor) -> str:
    """Of (L, 3); the first of equals."""
    return "".join(KINDS[choice] for choice in probabilities.argmax(-1).tolist())


def within_budget(probabilities: Tensor, costs: Costs, budget: float) -> str:
    """The most probable layout of those that cost at most ``budget``, exactly; of equals one that costs most. Not all
    of its blocks are identity.

    Costs do not depend on the place of a block, so what remains open after l blocks is how many of each kind were
    chosen: dynamic programming over (attention, feed-forward), O(L^3).

    Raises:
        UserError: nothing is so cheap.
    """
    chances = probabilities.double().clamp(min=1e-300).log().tolist()
    # (attention, feed-forward) so far -> (log-probability, layout)
    best: dict[tuple[int, int], tuple[float, str]] = {(0, 0): (0.0, "")}
    for row in chances:
        longer: dict[tuple[int, int], tuple[float, str]] = {}
        for (attention, feed_forward), (chance, layout) in best.items():
            for kind, gain in zip(KINDS, row, strict=True):
                key = attention + (kind == "a"), feed_forward + (kind == "f")
                if key not in longer or chance + gain > longer[key][0]:
                    longer[key] = (chance + gain, layout + kind)
        best = longer
    slack = budget + 1e-9 * abs(budget)  # a budget that was computed as the cost of a layout allows it
    best.pop((0, 0))  # a net without blocks
    allowed = [one for one in best.values() if costs.of_layout(one[1]) <= slack]
    if not allowed:
        least = min(costs.of_layout(layout) for _, layout in best.values())
        raise UserError(f"--budget {budget:g}: no layout costs less than {least:.4g} {costs.unit}")
    return max(allowed, key=lambda one: (round(one[0], 9), costs.of_layout(one[1])))[1]


def draw(probabilities: Tensor, count: int) -> list[str]:
    """Different layouts drawn from (L, 3), the most probable one first; at most ``count``."""
    found = [most_probable(probabilities)]
    for _ in range(100 * count):
        if len(found) >= count:
            break
        choices = torch.multinomial(probabilities.double(), 1).squeeze(1).tolist()
        layout = "".join(KINDS[choice] for choice in choices)
        if layout not in found and layout.strip("i"):
            found.append(layout)
    return found


@torch.no_grad()
def bits_per_token(model: Any, task: Any, subset: str, layout: str, batch: int = 8, most: int | None = None) -> float:
    """Bits per token of ``subset`` by the weights of the supernet with a layout forced upon it.

    most: batches at most, the same ones for each layout.
    """
    decoder = model.decoder
    mixture, decoder.mixture = decoder.mixture, True  # lanes then warm up as if all blocks attended
    try:
        batches = task.get_batch_iterator(task.dataset(subset), max_sentences=batch).next_epoch_itr(shuffle=False)
    finally:
        decoder.mixture = mixture
    task.memory.forget(training=False)
    total, count = 0.0, 0
    for number, sample in enumerate(batches):
        if most is not None and number >= most:
            break
        sample, cell = task.remember(sample, model)
        output, _ = model(**sample["net_input"], layout=layout)
        total += float(decoder.nll(output, sample["target"]))
        count += sample["ntokens"]
        task.memory.close(cell)
    task.memory.forget(training=False)
    return total / max(count, 1) / math.log(2)
