"""What the pickle inside a checkpoint may name: tensors that are in the file, and plain values.

torch's ``weights_only`` refuses code, but calls some constructors with any argument: ``bytearray(10**9)`` or
``torch.FloatTensor(10**9)`` of a file of a few bytes.
"""

import argparse
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from torch import Tensor

from fairseq_efficient.errors import UserError

_ALLOWED = re.compile(
    r"collections (OrderedDict|Counter)|argparse Namespace|(__builtin__|builtins) (set|complex)|_codecs encode|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|torch\._tensor _rebuild_from_type_v2|"
    r"torch (\w+Storage|Size|device|float\w+|bfloat16|half|double|int\w*|uint\w*|long|short|bool|complex\w*)|"
    r"torch\.nn\.parameter Parameter"
)
_LEGACY_PICKLES = 5  # of a file of torch < 1.6: magic number, version, system, the object, keys of storages
MOST_OPTIONS = 5_000  # that a configuration may hold
_LARGE, _MOST_LARGE = 2**60, 1000  # whole numbers that may be made to collide as keys, and how many there may be
_EXPANDED = 16 * 2**20  # bytes that a tensor may be larger than what is stored of it
_DEEPEST = 60  # containers in containers


def refused_name(path: str) -> str | None:
    """The first class or function in the pickles of ``path`` that is not allowed, or None; or too many huge numbers.

    Raises:
        Exception: the file is no pickle, as a parser says it.
    """
    large = 0
    for file in _pickles(path):
        strings: list[str] = []
        for opcode, argument, _ in pickletools.genops(file):
            name = None
            if isinstance(argument, int) and abs(argument) >= _LARGE:
                large += 1
                if large > _MOST_LARGE:
                    return f"{large:,} whole numbers beyond 2**60"
            if opcode.name == "GLOBAL":
                name = str(argument)
            elif opcode.name == "STACK_GLOBAL":
                name = " ".join(strings[-2:])
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
            if name is not None and not _ALLOWED.fullmatch(name):
                return name.replace(" ", ".")
    return None


def _pickles(path: str) -> Iterator[BinaryIO]:
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch looks at it
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                yield file
            return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".pkl"):
                with archive.open(member) as inner:
                    yield inner  # type: ignore[misc]


def expanded(state: Any) -> str | None:
    """The name of a tensor that is much larger than what the file holds of it, or None."""
    for key, value in leaves(state):
        if not isinstance(value, Tensor):  # dense: others cannot be named
            continue
        if value.numel() * value.element_size() > value.untyped_storage().nbytes() + _EXPANDED:
            return key
    return None


def leaves(value: Any, most: int = 1_000_000, named: bool = False) -> Iterator[tuple[str, Any]]:
    """(key, value) of all that is no container in dicts, lists, tuples, sets and namespaces; the key is the last one on
    the way.

    Args:
        named: keys must be text.

    Raises:
        UserError: there are more than ``most``, or deeper ones: lists in lists in lists that are all the same one; a
            key that is no text.
    """
    stack = [("", value, 0)]
    while stack:
        key, value, depth = stack.pop()
        most -= 1
        if most < 0 or depth > _DEEPEST:
            raise UserError("values that are nested without end")
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, dict):
            if named and not all(isinstance(inner, str) for inner in value):
                raise UserError(f"its {key or 'configuration'} has keys that are no text")
            stack.extend((str(inner), part, depth + 1) for inner, part in value.items())
        elif isinstance(value, (list, tuple, set)):
            stack.extend((key, part, depth + 1) for part in value)
        else:
            yield key, value
