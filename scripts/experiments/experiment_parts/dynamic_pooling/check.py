"""Add up the log-probabilities that fairseq-eval-lm --output-word-probs wrote.

python check.py LOG DATA SPLIT RESULT.json
"""

import json
import math
import re
import sys
from array import array
from pathlib import Path
from typing import Any

_LINE = re.compile(r"fairseq_cli\.eval_lm(?: \| |:)(\d+) (.+ \[-?[\d.]+\])$")
_SYMBOL = re.compile(r"(.+) \[(-?[\d.]+)\]")


def read(log: Path) -> dict[int, tuple[list[str], array]]:
    """Window -> symbols and natural log-probabilities of its targets."""
    windows = {}
    for line in log.read_text(encoding="utf-8").split("\n"):
        found = _LINE.search(line)
        if found:
            pairs = [pair for pair in map(_SYMBOL.fullmatch, found.group(2).split("\t")) if pair]
            values = array("d", (float(pair.group(2)) for pair in pairs))
            windows[int(found.group(1))] = ([sys.intern(pair.group(1)) for pair in pairs], values)
    return windows


def symbols_of(data: Path, split: str) -> list[str]:
    """The split's symbols in order, document ends among them."""
    from fairseq.data import Dictionary, data_utils

    words = Dictionary.load(str(data / "dict.txt"))
    items: Any = data_utils.load_indexed_dataset(str(data / split), words, "mmap")
    return [words[index] for item in range(len(items)) for index in items[item].tolist()]


def main() -> None:
    log, data, split, out = sys.argv[1:]
    windows = read(Path(log))
    symbols = [symbol for number in sorted(windows) for symbol in windows[number][0]]
    nats = -math.fsum(value for _, values in windows.values() for value in values)
    same = symbols == symbols_of(Path(data), split)
    result = {"bits": round(nats / math.log(2) / max(len(symbols), 1), 6), "tokens": len(symbols), "text": same}
    Path(out).write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
