"""Whether ``.bin`` and ``.idx`` belong together and are whole, by the header of the index."""

import struct
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import _code_to_dtype as fairseq_dtypes

from fairseq_efficient.errors import UserError


def check_files(index: Path) -> None:
    """UserError for a data set ``NAME.idx`` whose files are empty, cut off, or not both there."""
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
    code, count = struct.unpack_from("<BQ", head.ljust(26, b"\0"), 17)
    if len(head) < 26 or index.stat().st_size < 26 + 12 * count:
        raise UserError(f"{index} is cut off; prepare the data again")
    sizes = np.frombuffer(np.memmap(index, mode="r"), np.int32, count, 26)
    width = np.dtype(fairseq_dtypes[code]).itemsize if code in fairseq_dtypes else 0
    if not width or data.stat().st_size < width * int(sizes.sum(dtype=np.int64)):
        raise UserError(f"{data} is cut off, or of another {index.name}; prepare the data again")
