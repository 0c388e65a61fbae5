"""Which system to take: what for, how fast it is here, and what its paper says."""

from typing import NamedTuple

from readme_parts.benches import HOURGLASS, PAR, PYRAMIDION, SKIMMING, SPANS, Bench, ratio
from readme_parts.files import table


class Choice(NamedTuple):
    """``measured``: phrases, each with the rows of ``bench`` whose ratios it is filled with."""

    want: str
    system: str
    how: str
    bench: Bench
    measured: tuple[tuple[str, tuple[str, ...]], ...]
    claim: str


CHOICES = (
    Choice(
        "summarize long documents",
        "deep_pyramidion",
        "trainable top-k pooling between encoder layers (Pyramidion, ACL 2022)",
        PYRAMIDION,
        (
            (
                "8,192 tokens: training {} faster than stock fairseq, {} than blockwise",
                ("train_step/8192/vs_stock", "train_step/8192/vs_blockwise"),
            ),
            (
                "summaries by beam search {} and {}",
                ("generate/8192/beam16/vs_stock", "generate/8192/beam16/vs_blockwise"),
            ),
        ),
        "8,192 tokens: 1.8x faster training, 4.5x faster inference than its blockwise baseline; arXiv ROUGE-1 47.15 "
        "for 46.85",
    ),
    Choice(
        "model characters or bytes fast",
        "dynamic_pooling",
        "layers over segments whose ends are learned (Dynamic Token Pooling, ACL 2023)",
        HOURGLASS,
        (
            (
                "segments of 4: training {} faster than the same 12 layers without segments",
                ("train_step/2048/batch4-sf4-relative/vs_vanilla",),
            ),
            ("generation {}", ("decode/1024/batch1-sf4-rotary/vs_vanilla",)),
        ),
        "segments of 4 on a GPU: training 2.5x faster; text8, segments at spaces: 1.133 bits for 1.143 without",
    ),
    Choice(
        "classify texts or answer questions fast",
        "skimming",
        "tokens are skipped layer by layer and dropped (Transkimmer, ACL 2022)",
        SKIMMING,
        (
            (
                "12 layers of 768, 30 % of 8 x 512 tokens kept: {} faster than stock fairseq, {} than the same engine "
                "without skimming",
                ("packed_forward/512/12x768-keep0.3/vs_stock", "packed_forward/512/12x768-keep0.3/vs_packed"),
            ),
        ),
        "BERT base, mean of GLUE: 10.97x fewer FLOPs for less than a point, counted, most likely on padded batches; "
        "not a time",
    ),
    Choice(
        "spend attention where a language model needs it",
        "par_search",
        "a search for the layout of a Transformer-XL, then its training (PAR Transformer, 2020)",
        PAR,
        (
            (
                "6 attention blocks of 32 for 16: evaluation {} faster, with cached keys {}",
                (
                    "eval_latency/64/mem640-batch1-par/vs_interleaved",
                    "eval_latency/64/mem640-batch1-par-keys/vs_interleaved-keys",
                ),
            ),
        ),
        "35 % less compute time at equal perplexity (WikiText-103), 63 % fewer attention blocks",
    ),
    Choice(
        "model bytes with very long context",
        "adaptive_span",
        "heads learn how far they look, caches, all-attention (Adaptive Attention Span, 2019)",
        SPANS,
        (
            ("spans of 2 % of 8,192: training {} faster than full spans", ("train_step/8192/span2pct/vs_full",)),
            ("generation {}", ("decode/8192/span2pct/vs_full",)),
        ),
        "spans up to 8,192, 12 layers, 38 million parameters: 1.02 bits per byte of enwik8",
    ),
)
HEAD = ("You want to ...", "take", "measured here", "the paper's claim")


def measured(choice: Choice) -> str:
    parts = []
    for phrase, names in choice.measured:
        found = [ratio(choice.bench, name) for name in names]
        if None not in found:
            parts.append(phrase.format(*(f"**{one:.1f}x**" for one in found)))
    return "; ".join(parts) or "being measured"


def section() -> str:
    lines = [
        [one.want, f"[`{one.system}`]({one.system}/README.md): {one.how}", measured(one), one.claim] for one in CHOICES
    ]
    return "\n".join(table(HEAD, lines)) + "\n"
