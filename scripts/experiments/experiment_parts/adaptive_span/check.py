"""Add up the bits of a split from a model's weights: one lane, full distributions, no task, lanes or criterion.

python check.py CHECKPOINT DATA SPLIT TOKENS_OF_A_BLOCK RESULT.json
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT))

# ruff: noqa: E402
import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils

import adaptive_span  # noqa: F401  (registers)


def tokens_of(data: str, split: str, dictionary: Any) -> torch.Tensor:
    """(N,) all tokens of a split in order."""
    items: Any = data_utils.load_indexed_dataset(f"{data}/{split}", dictionary, "mmap")
    return torch.from_numpy(np.concatenate([items[number].numpy() for number in range(len(items))])).long()


@torch.no_grad()
def bits(decoder: Any, tokens: torch.Tensor, block: int) -> float:
    """Bits of each token after the first, on average."""
    total, memory = 0.0, None
    for start in range(0, len(tokens) - 1, block):
        read = tokens[start : min(start + block, len(tokens) - 1)]
        logits, extra = decoder(read[None], memory=memory)
        memory = extra["memory"]
        found = logits[0].double().log_softmax(-1)
        total -= float(found.gather(1, tokens[start + 1 : start + 1 + len(read), None]).sum())
    return total / (len(tokens) - 1) / math.log(2)


def main() -> None:
    checkpoint, data, split, block, out = sys.argv[1:]
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], {"data": data})
    tokens = tokens_of(data, split, task.source_dictionary)
    found = bits(models[0].eval().decoder, tokens, int(block))
    Path(out).write_text(json.dumps({"bits": round(found, 6), "tokens": len(tokens) - 1}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
