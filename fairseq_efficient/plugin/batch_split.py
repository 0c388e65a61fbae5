"""A batch computed in parts, one after the other: the memory of the smaller, the gradient of the whole."""

import contextlib
from collections.abc import Callable
from typing import Any, Dict, List, Tuple

import torch

from fairseq_efficient.errors import UserError

Result = Tuple[Any, Any, Dict[str, Any]]  # loss, sample size, sums to log


def split_batch(sample: Dict[str, Any], parts: int, pad: int) -> List[Dict[str, Any]]:
    """``sample`` in at most ``parts`` batches of some of its rows, as equal in size as can be, in order.

    Its memory (``net_input["memory"]``) is split with it.
    """
    rows = sample["target"].size(0)
    parts = min(parts, rows)
    sizes = [rows // parts + (part < rows % parts) for part in range(parts)]
    net_input = dict(sample["net_input"])
    cell = net_input.pop("memory", None)
    cells = [None] * parts if cell is None else cell.split(sizes)
    found = []
    for part, (start, size) in enumerate(zip([sum(sizes[:part]) for part in range(parts)], sizes, strict=True)):
        here = slice(start, start + size)
        inputs = {key: value[here] if torch.is_tensor(value) else value for key, value in net_input.items()}
        if cell is not None:
            inputs["memory"] = cells[part]
        target = sample["target"][here]
        some = {"id": sample["id"][here], "target": target, "nsentences": size, "ntokens": int(target.ne(pad).sum())}
        found.append({**sample, **some, "net_input": inputs})
    return found


def step_by_parts(
    step: Callable[[Dict[str, Any]], Result], sample: Dict[str, Any], parts: int, pad: int, model: Any, criterion: Any
) -> Result:
    """``step`` (forward and backward) for each part of ``sample``, and what they add up to.

    Wrapped models exchange gradients with the last part only.

    Raises:
        UserError: the criterion's logs do not add up.
    """
    if not criterion.logging_outputs_can_be_summed():
        raise UserError(f"--batch-split: the logs of {type(criterion).__name__} are not sums")
    cells, results = [], []
    batches = split_batch(sample, parts, pad)
    for number, batch in enumerate(batches, 1):
        last = number == len(batches) or not hasattr(model, "no_sync")
        with contextlib.nullcontext() if last else model.no_sync():
            results.append(step(batch))
        cells.append(batch["net_input"].get("memory"))
    if cells[0] is not None:
        sample["net_input"]["memory"].join(cells)
    losses, sizes, logs = zip(*results, strict=True)
    names = dict.fromkeys(name for log in logs for name in log)
    return sum(losses), sum(sizes), {name: sum(log.get(name, 0) for log in logs) for name in names}
