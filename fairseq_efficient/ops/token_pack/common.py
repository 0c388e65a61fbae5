"""What the naive and the fast form of token packing share."""

from dataclasses import dataclass

from torch import Tensor

BACKENDS = ("auto", "loop", "bucket", "padded", "varlen")


@dataclass(frozen=True)
class TokenLayout:
    """Where N packed tokens of B sentences come from: sentence b is ``cu_seqlens[b]:cu_seqlens[b + 1]``."""

    index: Tensor  # (N,) int64, ascending: b * T + t
    cu_seqlens: Tensor  # (B + 1,) int32
    max_len: int  # tokens of the longest sentence
    min_len: int  # of the shortest
