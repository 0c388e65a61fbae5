"""How much of a batch was kept and what that saves: per sentence for the loss, as sums for the log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_efficient.precision import wide
from skimming.flops import EncoderSizes, dense_macs, skim_macs


class Lazy(Mapping[str, Any]):
    """A read-only dict that is computed when it is first read: inference does not pay for a log nobody writes."""

    def __init__(self, compute: Callable[[], dict[str, Any]]):
        self._compute = compute
        self._values: dict[str, Any] | None = None

    def _read(self) -> dict[str, Any]:
        if self._values is None:
            self._values = self._compute()
        return self._values

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


@dataclass(frozen=True)
class SkimCounts:
    """What one forward kept. B sentences, L layers.

    ``kept``: for each layer (B,) real tokens that enter it, of the masked path with a gradient. ``lengths``: (B,) real
    tokens; ``protected``: (B,) of them never skipped. ``width``: T. ``with_padding``: ``kept`` if padding counted too,
    for a ratio that does (``--skim-norm padded``).
    """

    kept: Sequence[Tensor]
    lengths: Tensor
    protected: Tensor
    width: int
    with_padding: Sequence[Tensor] | None = None

    def ratio(self) -> Tensor:
        """Kept share of each sentence's real tokens, averaged over layers: (B,) fp32 or better."""
        kept = torch.stack(list(self.kept if self.with_padding is None else self.with_padding))
        kept = wide(kept)
        if self.with_padding is not None:
            return kept.mean(0) / max(self.width, 1)
        return kept.mean(0) / self.lengths.clamp(min=1)

    def counts(self) -> Tensor:
        """(L, B) int64."""
        return torch.stack([kept.detach() for kept in self.kept]).round().long()


@dataclass(frozen=True)
class Skimmed:
    """What a forward tells beside states: counts, and masks (L, B, T), fp32 or better, 0 at pads, if they exist."""

    counts: SkimCounts
    masks: Tensor | None = None


def skim_statistics(
    counts: SkimCounts, sizes: EncoderSizes, longest: int, head: Callable[[Tensor], Any] = lambda tokens: 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (numerator, denominator), int64 sums that batches and ranks add up.

    ``keep_l{i}``: tokens that enter layer i (from 0) over real tokens; ``keep_ratio``: over all layers;
    ``flops_ratio_*``: multiply-adds of a dense encoder over ours, the dense one unpadded, padded to this batch's
    longest sentence, and padded to ``longest``.

    Args:
        head: multiply-adds of the head for a number of tokens (B,).
    """
    kept, lengths = counts.counts(), counts.lengths.long()
    tokens = lengths.sum()
    found = {f"keep_l{number}": (row.sum(), tokens) for number, row in enumerate(kept)}
    found["keep_ratio"] = (kept.sum(), tokens * len(kept))
    ours = (skim_macs(kept, lengths, counts.protected.long(), sizes) + head(lengths)).sum()
    for name, width in (("unpadded", None), ("padded", counts.width), ("max_length", max(longest, counts.width))):
        dense = lengths if width is None else torch.full_like(lengths, width)
        found[f"flops_ratio_{name}"] = ((dense_macs(dense, sizes) + head(dense)).sum(), ours)
    return found
