"""Whether ``.bin`` and ``.idx`` belong together and are whole, by the index; whether tokens are the dictionary's."""

import struct
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import _code_to_dtype as fairseq_dtypes

from fairseq_efficient.errors import UserError

_CHUNK = 1 << 24  # tokens that are looked at together


def check_files(index: Path, types: int | None = None) -> None:
    """UserError for a data set ``NAME.idx`` whose files are empty, cut off, damaged, or not both there; with ``types``,
    the size of the dictionary, also for tokens beyond it, which reads everything once (as stock does to warm it up)."""
    data = index.with_suffix(".bin")
    for file, other in ((index, data), (data, index)):
        if not file.is_file():
            raise UserError(f"{file}: no such file, though {other.name} is there; prepare the data again")
        if not file.stat().st_size:
            raise UserError(f"{file} is empty; prepare the data again")
    with index.open("rb") as opened:
        head = opened.read(26)
        if head[:9] != b"MMIDIDX\0\0":
            if head[:8] != b"TNTIDX\0\0":
                raise UserError(f"{index}: not an index that scripts/prepare_*.py or fairseq-preprocess writes")
            return  # another --dataset-impl
    version, code, count = struct.unpack_from("<QBQ", head.ljust(26, b"\0"), 9)
    if len(head) < 26 or index.stat().st_size < 26 + 12 * count:
        raise UserError(f"{index} is cut off; prepare the data again")
    whole = np.memmap(index, mode="r")
    sizes = np.frombuffer(whole, np.int32, count, 26)
    places = np.frombuffer(whole, np.int64, count, 26 + 4 * count)
    width = np.dtype(fairseq_dtypes[code]).itemsize if code in fairseq_dtypes else 0
    ends = width * np.cumsum(sizes, dtype=np.int64)
    if width and (version != 1 or (sizes < 0).any() or (places[1:] != ends[:-1]).any() or places[:1].any()):
        raise UserError(f"{index} is damaged; prepare the data again")
    size = int(ends[-1]) if count else 0
    if not width or data.stat().st_size < size:
        raise UserError(f"{data} is cut off, or of another {index.name}; prepare the data again")
    if types is not None and size:
        _check_tokens(data, np.dtype(fairseq_dtypes[code]), size, types)


def _check_tokens(data: Path, dtype: np.dtype, size: int, types: int) -> None:
    tokens = np.memmap(data, dtype=dtype, mode="r", shape=(size // dtype.itemsize,))
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        for token in (int(part.max()), int(part.min())):
            if not 0 <= token < types:
                raise UserError(
                    f"{data} holds token {token}, but the dictionary has {types:,} types: it is of other data"
                )
