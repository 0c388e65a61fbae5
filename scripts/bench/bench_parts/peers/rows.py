"""What the benchmark of peers measures, row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench_parts.deep_pyramidion.models import PYRAMIDION
from bench_parts.peers.models import (
    GPT2,
    LED,
    ROBERTA,
    Setup,
    classify,
    decode,
    encode,
    generate,
    language_model_step,
    train_step,
)
from fairseq_efficient.bench.session import Session

ROWS = ("classification", "encoder", "training", "summaries", "characters", "decoding")
VANILLA = "vanilla-rotary"
SEGMENTS = "sf4-rotary"


@dataclass
class Bench(Session):
    """Ours against transformers; each kind of row has sizes of its own."""

    setup: Setup
    sentence_sizes: tuple[int, ...] = (128, 512)
    document_sizes: tuple[int, ...] = (4096, 8192)
    summary_size: int = 8192
    character_size: int = 2048
    decoded: int = 1024

    def _classification(self) -> None:
        """A classifier of MiniLM's size: without skimming, and with half and 0.3 of the tokens kept."""
        for n in self.sentence_sizes:
            self._against(
                "packed_forward", classify, n, ("packed", "keep0.5", "keep0.3"), ROBERTA, self.setup.sentences
            )

    def _encoder(self) -> None:
        for n in self.document_sizes:
            self._against("encoder_forward", encode, n, (PYRAMIDION,), LED, self.setup.summaries)

    def _training(self) -> None:
        for n in self.document_sizes:
            self._against("train_step", train_step, n, (PYRAMIDION,), LED, self.setup.summaries)

    def _summaries(self) -> None:
        self._against("generate", generate, self.summary_size, (PYRAMIDION,), LED, self.setup.summaries)

    def _characters(self) -> None:
        kinds = (VANILLA, SEGMENTS)
        self._against("train_step", language_model_step, self.character_size, kinds, GPT2, self.setup.characters)

    def _decoding(self) -> None:
        self._against("decode", decode, self.decoded, (VANILLA, SEGMENTS), GPT2, self.setup.characters)

    def _against(
        self, what: str, work: Callable[..., Any], n: int, kinds: tuple[str, ...], peer: str, setup: Any
    ) -> None:
        """Rows of each kind against the peer, measured in turns."""
        samples, peaks = self._turns(what, work, [(kind, n) for kind in (*kinds, peer)], setup=setup)
        for kind in kinds:
            note = "same weights" if kind == "packed" else ""
            self._versus(f"{what}/{n}/{kind}/vs_{peer}", [(kind, n), (peer, n)], samples, peaks, note=note)
