"""Windows over one long stream of tokens: every token is a target exactly once, with as much context as asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import ConcatDataset, FairseqDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_efficient.errors import UserError


class TokenStream:
    """All items of an mmap data set (or several joined by fairseq) as one array that is never read as a whole."""

    def __init__(self, dataset: Any, name: str = "data"):
        parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        for part in parts:
            if not isinstance(part, MMapIndexedDataset):
                raise UserError(f"{name}: needs data written with --dataset-impl mmap, not {type(part).__name__}")
        self._map(parts)

    def _map(self, parts: list[Any]) -> None:
        self._parts = parts  # kept, because they close their files when they go
        self._arrays = [
            np.frombuffer(part._bin_buffer, dtype=part._index.dtype, count=int(part.sizes.sum())) for part in parts
        ]
        self._starts = np.cumsum([0, *map(len, self._arrays)])
        self.sizes: np.ndarray = np.concatenate([np.asarray(part.sizes) for part in parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> Any:
        return self._parts  # which pickle as their paths

    def __setstate__(self, parts: Any) -> None:
        self._map(parts)

    def slice(self, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) as int64."""
        found = []
        for number in range(int(np.searchsorted(self._starts, start, side="right")) - 1, len(self._arrays)):
            base = int(self._starts[number])
            if base >= end:
                break
            found.append(self._arrays[number][max(start - base, 0) : end - base])
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def load_stream(path: str, dictionary: Any, impl: str | None, combine: bool = False) -> TokenStream:
    """The tokens of ``path``.{bin,idx} (``combine``: and of ``path``1, ``path``2 ...).

    Raises:
        UserError: there is no such split; and, by :mod:`fairseq_efficient.compat`, for files that are damaged or hold
            tokens that the dictionary does not.
    """
    index = Path(f"{path}.idx")
    if not (index.is_file() and index.with_suffix(".bin").is_file()):
        known = sorted(one.stem for one in index.parent.glob("*.idx") if one.with_suffix(".bin").is_file())
        known = [name for name in known if not name.endswith(".boundaries")]
        raise UserError(f"{index.parent}: no split {index.stem!r} (there are: {', '.join(known) or 'none'})")
    return TokenStream(data_utils.load_indexed_dataset(path, dictionary, impl, combine=combine), path)


def block_windows(total: int, length: int, offset: int = 0) -> np.ndarray:
    """(N, 2) half-open ranges that cut [0, total) at ``offset`` and every ``length`` after it."""
    cuts = np.arange(offset, total, length)
    edges = np.unique(np.concatenate([[0], cuts, [total]]))
    return np.stack([edges[:-1], edges[1:]], axis=1) if total else np.empty((0, 2), np.int64)


class WindowDataset(FairseqDataset):
    """Language-modelling samples from windows of a stream.

    A window [start, end) gives the targets; its source is what stands one token earlier, so that each token is
    predicted from its predecessors. The stream's first token is predicted from EOS. With ``context`` a source also
    holds up to that many tokens before the window, whose targets are pads.

    Args:
        windows: (N, 2), or None for blocks of ``length``.
        roll: cut at an offset that changes with the epoch (a hash of ``seed`` and epoch), so that windows differ.
        sides: another stream, aligned token by token; its values come along with the *source* tokens, 1 with an EOS
            before the stream.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        pad: int,
        eos: int,
        length: int,
        windows: np.ndarray | None = None,
        context: int = 0,
        shuffle: bool = False,
        roll: bool = False,
        seed: int = 1,
        sides: TokenStream | None = None,
    ):
        if sides is not None and len(sides) != len(stream):
            raise UserError(f"boundaries have {len(sides):,} values for {len(stream):,} tokens: not of this data")
        self.stream, self.sides = stream, sides
        self.pad, self.eos, self.length, self.context = pad, eos, length, context
        self.shuffle, self.roll, self.seed = shuffle, roll and windows is None, seed
        self._given, self.epoch = windows, 1
        self._cut()

    def _cut(self) -> None:
        if self._given is not None:
            self.windows = self._given
        else:
            offset = 0
            if self.roll:
                with data_utils.numpy_seed(self.seed, self.epoch):
                    offset = int(np.random.randint(self.length))
            self.windows = block_windows(len(self.stream), self.length, offset)
        starts = np.maximum(self.windows[:, 0] - self.context, 0)
        self.sizes = self.windows[:, 1] - starts if len(self.windows) else np.empty(0, np.int64)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            if self.roll:
                self._cut()

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.roll

    def __len__(self) -> int:
        return len(self.windows)

    def _before(self, stream: TokenStream, start: int, end: int, first: int) -> torch.Tensor:
        """Values one place earlier than [start, end); ``first`` stands before the stream."""
        found = stream.slice(max(start - 1, 0), end - 1)
        return torch.from_numpy(np.concatenate([[first], found]) if start == 0 else found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = map(int, self.windows[index])
        early = max(start - self.context, 0)
        target = torch.full((end - early,), self.pad)
        target[start - early :] = torch.from_numpy(self.stream.slice(start, end))
        item = {
            "id": index,
            "source": self._before(self.stream, early, end, self.eos),
            "target": target,
            "start": start - early,
        }
        if self.sides is not None:
            item["sides"] = self._before(self.sides, early, end, 1)
        return item

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Right-padded batch; with sides also ``net_input["boundary_targets"]`` (B, T), with context ``start_indices``.

        ``ntokens`` counts targets, not context.
        """
        if not samples:
            return {}
        merged = {
            key: data_utils.collate_tokens([s[key] for s in samples], self.pad, left_pad=False)
            for key in ("source", "target")
        }
        net_input = {
            "src_tokens": merged["source"],
            "src_lengths": torch.tensor([len(s["source"]) for s in samples]),
        }
        if self.sides is not None:
            net_input["boundary_targets"] = data_utils.collate_tokens([s["sides"] for s in samples], 0, left_pad=False)
        batch = {
            "id": torch.tensor([s["id"] for s in samples]),
            "nsentences": len(samples),
            "ntokens": sum(len(s["source"]) - s["start"] for s in samples),
            "net_input": net_input,
            "target": merged["target"],
        }
        if self.context:
            batch["start_indices"] = [s["start"] for s in samples]
        return batch

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.sizes[indices])

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """By size, so that batches hold little padding; equal sizes in an order that changes with the epoch."""
        if not self.shuffle:
            return np.arange(len(self))
        with data_utils.numpy_seed(self.seed, self.epoch, 1):
            order = np.random.permutation(len(self))
        return np.lexsort([order, self.sizes])
