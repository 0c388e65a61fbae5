"""What a block of each kind costs: by a formula in GFLOP, or as measured in milliseconds; and the cost of a mixture.

Costs are of one forward, in the order of :data:`par_search.layout.KINDS`. K = M + T keys for T tokens, M remembered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json
from fairseq_efficient.text.reading import parse_json
from par_search.blocks import BlockOptions
from par_search.layout import KINDS

TABLE = "par_search_latency"  # "kind" of the file that scripts/measure_latency.py writes


@dataclass(frozen=True)
class Shape:
    """What a cost depends on. batch 0: of any."""

    tokens: int
    memory: int
    dim: int
    ffn: int
    heads: int
    head_dim: int
    cache_memory: str = "hidden"
    clamp_len: int = -1
    batch: int = 0

    @classmethod
    def of(cls, block: BlockOptions, tokens: int, memory: int, batch: int = 0) -> "Shape":
        cache = "keys" if block.cache_keys else "hidden"
        clamp = -1 if block.clamp_len is None else block.clamp_len
        return cls(tokens, memory, block.dim, block.ffn, block.heads, block.head_dim, cache, clamp, batch)


@dataclass(frozen=True)
class Costs:
    """``blocks``: of each kind; ``rest``: of all that is not a block (embedding, softmax), if known."""

    blocks: tuple[float, float, float]
    unit: str
    rest: float = 0.0

    def of_layout(self, layout: str) -> float:
        """Blocks and rest."""
        return self.rest + sum(self.blocks[KINDS.index(kind)] for kind in layout)

    def expected(self, probabilities: Tensor) -> Tensor:
        """``sum_l sum_k p_lk cost_k`` of probabilities (L, 3), without the rest; differentiable."""
        costs = torch.tensor(self.blocks, dtype=probabilities.dtype, device=probabilities.device)
        return (probabilities * costs).sum()


def flop_costs(shape: Shape, prepared: bool = False) -> Costs:
    """GFLOP of a block for one sentence, 2 for each multiply-add.

    Attention: queries and output for T tokens; keys and values for K tokens (of cached ones T); positions for K
    distances (not if ``prepared``); scores of content and position and the weighted sum, T x K each. As figure 1 of
    the paper counts.
    """
    width, keys = shape.heads * shape.head_dim, shape.tokens + shape.memory
    distances = min(keys, shape.clamp_len + 1) if shape.clamp_len >= 0 else keys
    distances = 0 if prepared else distances
    projected = shape.tokens if shape.cache_memory == "keys" else keys
    products = shape.dim * width * (2 * shape.tokens + 2 * projected + distances) + 3 * width * shape.tokens * keys
    feed_forward = 4 * shape.dim * shape.ffn * shape.tokens
    return Costs((2 * products / 1e9, feed_forward / 1e9, 0.0), "GFLOP")


def read_table(path: str, shape: Shape, flags: str = "--latency-") -> Costs:
    """Measured milliseconds. Raises UserError for a file that is none, or of another shape.

    flags: how those begin that say another shape.
    """
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise UserError(f"--latency-table {path}: {err.strerror}") from None
    except ValueError:
        raise UserError(f"--latency-table {path}: not JSON (scripts/measure_latency.py writes such tables)") from None
    if not isinstance(table, dict) or table.get("kind") != TABLE:
        raise UserError(f"--latency-table {path}: not a table of scripts/measure_latency.py")
    measured, milliseconds = table.get("shape"), table.get("ms")
    if not isinstance(measured, dict) or not isinstance(milliseconds, dict):
        raise UserError(f"--latency-table {path}: has no shape or no ms")
    for name, value in asdict(shape).items():
        if measured.get(name) != value and not (name == "batch" and value == 0):
            raise UserError(
                f"--latency-table {path}: measured with {name} {measured.get(name)}, but this is {name} {value}"
                + (
                    f" (say {flags}{name} {measured.get(name)} if that is meant)"
                    if name in ("tokens", "memory")
                    else ""
                )
            )
    return Costs(_numbers(path, milliseconds), "ms", _number(path, "rest", table.get("rest_ms", 0.0)))


def write_table(path: Path, shape: Shape, milliseconds: Sequence[float], rest: float, head: Mapping[str, Any]) -> None:
    """UserError if the file cannot be written."""
    ms = dict(zip(KINDS, (float(f"{one:.5g}") for one in milliseconds), strict=True))
    table = {"kind": TABLE, "shape": asdict(shape), "ms": ms, "rest_ms": float(f"{rest:.5g}"), **head}
    write_json(path, table)


def _numbers(path: str, found: Mapping[str, Any]) -> tuple[float, float, float]:
    one, two, three = (_number(path, kind, found.get(kind)) for kind in KINDS)
    return one, two, three


def _number(path: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UserError(f"--latency-table {path}: ms of {name!r} is {value!r}, not a number of at least 0")
    return float(value)
