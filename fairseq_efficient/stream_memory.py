"""Memory of language models that read a stream block by block. It lives here and not on a module.

A batch says where it stands (:class:`StreamPlace`). What a model returned for it is handed back with the block that
follows it in the same lanes of the same pass, and with nothing else: not with another split, epoch, batch size or
micro-batch, and not after a block that failed or was skipped. Then the memory starts empty.

Memory of a model: a list of tensors whose first dimension is the rows of the batch; what they hold is the model's
affair (layer inputs, or keys and values).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Memory = list[Tensor]


@dataclass(frozen=True)
class StreamPlace:
    """Where a batch stands.

    name: the split. cut: how it is cut into lanes and blocks, and the epoch; memory never crosses two cuts.
    group: which lanes the batch holds. step: blocks of these lanes before it. last: none comes after it.
    """

    name: str
    training: bool
    cut: tuple[int, ...]
    group: int
    step: int
    last: bool


def extend(old: Tensor | None, new: Tensor, length: int, dim: int = 1) -> Tensor:
    """The last ``length`` places along ``dim`` of [old; new], detached, and no more than these kept alive."""
    new = new.detach()
    size = new.size(dim)
    if size >= length:
        kept = new.narrow(dim, size - length, length)
        return kept if size == length else kept.clone()
    if old is None or old.size(dim) == 0:
        return new
    keep = min(old.size(dim), length - size)
    return torch.cat([old.detach().narrow(dim, old.size(dim) - keep, keep).to(new.dtype), new], dim)


class MemoryCell:
    """The memory one batch is given, and the one it leaves; a model's extra input ``memory``.

    length: how much to remember, if that is not the model's own choice (``--eval-mem-len``).
    """

    def __init__(self, place: StreamPlace, before: dict[int, Memory] | None, length: int | None = None):
        self.place, self.length = place, length
        self._before = before or {}
        self.after: dict[int, Memory] = {}

    def take(self, model: nn.Module) -> Memory | None:
        """What ``model`` returned for the block before, on its device; None at the start of a stream."""
        found = self._before.get(id(model), self._before.get(0))
        if found is None:
            return None
        device = next(model.parameters()).device
        return [one.to(device) for one in found]

    def put(self, model: nn.Module, memory: Sequence[Tensor]) -> None:
        """Keep ``memory`` for the next block. A model that is called twice for a block leaves what it left first."""
        self.after.setdefault(id(model), [one.detach() for one in memory])

    def split(self, rows: Sequence[int]) -> list["MemoryCell"]:
        """Cells for parts of the batch, of so many rows each; :meth:`join` brings together what they leave."""
        parts = {key: [one.split(list(rows)) for one in memory] for key, memory in self._before.items()}
        before = [{key: [one[part] for one in memory] for key, memory in parts.items()} for part in range(len(rows))]
        return [MemoryCell(self.place, one, self.length) for one in before]

    def join(self, cells: Sequence["MemoryCell"]) -> None:
        """Leave what the parts of the batch left, in their order."""
        for key in cells[0].after:
            parts = zip(*(cell.after[key] for cell in cells), strict=True)
            self.after[key] = [torch.cat(one) for one in parts]


@dataclass
class _Slot:
    place: StreamPlace
    memory: dict[int, Memory]


class StreamMemory:
    """Memories of all streams that are being read, one for each split, use and group of lanes."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, bool, int], _Slot] = {}

    def open(self, place: StreamPlace, length: int | None = None) -> MemoryCell:
        """The cell for a batch at ``place``. It holds a memory if the batch follows the last one that was closed."""
        slot = self._slots.get(_key(place))
        if slot is not None and slot.place.cut == place.cut and slot.place.step + 1 == place.step:
            return MemoryCell(place, slot.memory, length)
        self._slots.pop(_key(place), None)
        if place.step:
            logger.warning(f"{place.name}: nothing is remembered of the block before step {place.step}")
        return MemoryCell(place, None, length)

    def close(self, cell: MemoryCell | None) -> None:
        """The batch succeeded: keep what it left. A batch that is never closed leaves nothing."""
        if cell is None:
            return
        self._slots.pop(_key(cell.place), None)
        if not cell.place.last and cell.after:
            self._slots[_key(cell.place)] = _Slot(cell.place, cell.after)

    def forget(self, training: bool) -> None:
        """Drop the memories of training, or those of evaluation."""
        self._slots = {key: slot for key, slot in self._slots.items() if key[1] != training}

    # --- checkpoints --------------------------------------------------------------------------------------------

    def groups(self, name: str, cut: tuple[int, ...], step: int) -> dict[int, Memory]:
        """What training on ``name`` remembers after ``step`` blocks, by group; for one model."""
        slots = {key[2]: slot for key, slot in self._slots.items() if key[:2] == (name, True)}
        return {
            group: next(iter(slot.memory.values()))
            for group, slot in sorted(slots.items())
            if slot.place.cut == cut and slot.place.step + 1 == step
        }

    def restore(self, places: Sequence[StreamPlace], memories: Sequence[Memory]) -> None:
        """Go on after ``places`` with ``memories`` of the one model that will ask."""
        for place, memory in zip(places, memories, strict=True):
            self._slots[_key(place)] = _Slot(place, {0: list(memory)})


def _key(place: StreamPlace) -> tuple[str, bool, int]:
    return place.name, place.training, place.group


def collect(mine: dict[int, Memory]) -> dict[int, Memory] | None:
    """All ranks' memories by group, on the CPU of the first rank; None on the others. Every rank must call it.

    Tensors travel one by one as bytes, so that any precision and any backend works and no rank holds a second copy.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return {group: [one.cpu() for one in memory] for group, memory in mine.items()}
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    described: list[Any] = [None] * world
    heads = {group: [(tuple(one.shape), one.dtype) for one in memory] for group, memory in mine.items()}
    torch.distributed.all_gather_object(described, heads)
    if rank:
        for memory in mine.values():
            for one in memory:
                if one.numel():
                    torch.distributed.send(one.contiguous().flatten().view(torch.uint8), 0)
        return None
    found = {group: [one.cpu() for one in memory] for group, memory in mine.items()}
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    for source in range(1, world):
        for group, shapes in described[source].items():
            found[group] = [_receive(shape, dtype, device, source) for shape, dtype in shapes]
    return found


def _receive(shape: tuple[int, ...], dtype: torch.dtype, device: str, source: int) -> Tensor:
    one = torch.empty(shape, dtype=dtype, device=device)
    if one.numel():
        torch.distributed.recv(one.flatten().view(torch.uint8), source)
    return one.cpu()
