"""Speed and memory: the rows of the benchmarks that are shown, and their tables."""

from collections.abc import Iterator
from typing import NamedTuple

from readme_parts.files import Document, load, table


class Bench(NamedTuple):
    """What is shown of a benchmark: row -> (work, what it is measured against). ``best``: those of README."""

    file: str
    title: str
    sizes: str
    rows: dict[str, tuple[str, str]]
    best: tuple[str, ...]


_STOCK, _BLOCKWISE = "stock fairseq `transformer`", "blockwise, no pooling (the paper's baseline)"
_VANILLA = "12 layers without pooling, same attention"
PYRAMIDION = Bench(
    "bench_deep_pyramidion.json",
    "Pyramidion",
    "d=512, 6+6 layers, chunks of 512, halving to 512",
    {
        "encoder_forward/8192/vs_stock": ("encoder, 8,192 tokens", _STOCK),
        "encoder_forward/16384/vs_stock": ("encoder, 16,384 tokens", _STOCK),
        "encoder_forward/8192/vs_blockwise": ("encoder, 8,192 tokens", _BLOCKWISE),
        "train_step/8192/vs_stock": ("training step, 8,192 tokens", _STOCK),
        "train_step/8192/vs_blockwise": ("training step, 8,192 tokens", _BLOCKWISE),
        "train_step/8192/bf16/vs_stock": ("training step, 8,192 tokens, `--cpu-bf16` against fp32", _STOCK),
        "generate/8192/beam16/vs_stock": ("summary of 128 tokens, beam 16, from 8,192", _STOCK),
        "generate/8192/beam16/vs_blockwise": ("summary of 128 tokens, beam 16, from 8,192", _BLOCKWISE),
        "decode/512/beam16/vs_stock": ("one decoding step from 512 tokens, beam 16", _STOCK),
    },
    (
        "train_step/8192/vs_stock",
        "train_step/8192/vs_blockwise",
        "generate/8192/beam16/vs_stock",
        "generate/8192/beam16/vs_blockwise",
    ),
)
HOURGLASS = Bench(
    "bench_dynamic_pooling.json",
    "Dynamic pooling",
    "d=512, 2+8+2 layers, segments of 4 characters",
    {
        "train_step/2048/sf4-relative/vs_vanilla": ("training step, 2,048 characters, relative attention", _VANILLA),
        "train_step/2048/batch4-sf4-relative/vs_vanilla": (
            "training step, 2,048 characters, relative attention, batch 4",
            _VANILLA,
        ),
        "train_step/2048/sf4-rotary/vs_vanilla": ("training step, 2,048 characters, rotary attention", _VANILLA),
        "train_step/2048/batch4-sf4-rotary/vs_vanilla": (
            "training step, 2,048 characters, rotary attention, batch 4",
            _VANILLA,
        ),
        "train_step/2048/rotary-vanilla/vs_transformer_lm": (
            "training step, 2,048 characters, 12 layers, rotary",
            "stock fairseq `transformer_lm`",
        ),
        "attention/2048/relative/vs_einsum": ("relative attention alone, 2,048 characters", "einsum and shift"),
        "generate/1024/batch8-sf4-rotary/vs_recompute": ("1,024 characters, batch 8", "recomputing each prefix"),
        "decode/1024/batch1-sf4-rotary/vs_vanilla": ("a character of 1,024, batch 1", f"cached {_VANILLA}"),
    },
    (
        "train_step/2048/batch4-sf4-relative/vs_vanilla",
        "train_step/2048/rotary-vanilla/vs_transformer_lm",
        "decode/1024/batch1-sf4-rotary/vs_vanilla",
    ),
)
_PACKED, _ROBERTA = "the same engine without skimming", "stock fairseq `roberta`, padded"
SKIMMING = Bench(
    "bench_skimming.json",
    "Skimming",
    "tokens that go on are given, unequal shares of each sentence; 60 % of the padded batch is no padding",
    {
        f"packed_forward/{size}/{model}-keep{share}/vs_{against}": (
            f"{model}, {batch} x {size} tokens, {100 * share:.0f} % kept",
            _PACKED if against == "packed" else _ROBERTA,
        )
        for model in ("6x384", "12x768")
        for size, batch in ((128, 32), (512, 8))
        for share in (0.5, 0.3)
        for against in ("packed", "stock")
    },
    (
        "packed_forward/128/12x768-keep0.3/vs_stock",
        "packed_forward/512/12x768-keep0.3/vs_stock",
        "packed_forward/512/12x768-keep0.3/vs_packed",
    ),
)
_INTERLEAVED = "interleaved Transformer-XL, 16 + 16 blocks"
_PAR = "evaluation step, 64 tokens after 640, 6 + 26 blocks"
PAR = Bench(
    "bench_par_search.json",
    "PAR search",
    "d=512, 32 blocks, 12,000 types where no other number is given",
    {
        "eval_latency/64/mem640-batch1-par/vs_interleaved": (f"{_PAR}, hidden states", _INTERLEAVED),
        "eval_latency/64/mem640-batch1-par-keys/vs_interleaved-keys": (f"{_PAR}, cached keys", _INTERLEAVED),
        "eval_latency/64/mem640-batch32-par/vs_interleaved": (f"{_PAR}, batch 32, hidden states", _INTERLEAVED),
        "eval_latency/64/mem640-batch1-types267744-par/vs_interleaved": (
            f"{_PAR}, hidden states, 267,744 types",
            _INTERLEAVED,
        ),
        "attention/512/mem512-batch1-training/vs_einsum": (
            "attention layer, 512 after 512, training",
            "einsum and shift",
        ),
        "softmax/50000/optimal/vs_full": ("adaptive softmax, 50,000 types, optimal cutoffs, training", "full softmax"),
        "softmax/267744/optimal/vs_full": ("adaptive softmax, 267,744 types, training", "full softmax"),
        "softmax/267744/optimal/vs_rule": (
            "adaptive softmax, 267,744 types, training",
            "the published rule for cutoffs",
        ),
        "generate/256/batch8-par/vs_recompute": ("256 tokens, batch 8", "recomputing each prefix"),
        "decode/256/batch1-par/vs_interleaved": ("a token of 256, batch 1", f"cached {_INTERLEAVED}"),
    },
    (
        "eval_latency/64/mem640-batch1-par/vs_interleaved",
        "eval_latency/64/mem640-batch1-par-keys/vs_interleaved-keys",
        "softmax/267744/optimal/vs_full",
    ),
)
_FULL, _LONGEST = "all heads see 8,192", "all heads computed as far as the longest"
SPANS = Bench(
    "bench_adaptive_span.json",
    "Adaptive spans",
    "d=512, 12 layers, 8 heads, blocks of 512 bytes, spans up to 8,192",
    {
        "attention/8192/span2pct/vs_full": ("attention alone, all spans 2 % of 8,192, training", _FULL),
        "attention/8192/mixed/vs_longest": ("attention alone, one head of eight long, training", _LONGEST),
        "attention/8192/span2pct/vs_sdpa": (
            "attention alone, all spans 2 %, training",
            "torch's fused attention with a mask",
        ),
        "attention/8192/full/vs_sdpa": ("attention alone, full span, training", "torch's fused attention with a mask"),
        "train_step/8192/span2pct/vs_full": ("training step, all spans 2 %", _FULL),
        "train_step/8192/mixed/vs_longest": ("training step, one head of eight long", _LONGEST),
        "decode/8192/span2pct/vs_full": ("a byte with full caches, all spans 2 %", _FULL),
    },
    (
        "train_step/8192/span2pct/vs_full",
        "train_step/8192/mixed/vs_longest",
        "decode/8192/span2pct/vs_full",
    ),
)
BENCHES = (PYRAMIDION, HOURGLASS, SKIMMING, PAR, SPANS)
_HF_ROBERTA, _LED, _GPT2 = "`RobertaForSequenceClassification`", "`LEDForConditionalGeneration`", "`GPT2LMHeadModel`"
PEERS = Bench(
    "bench_peers.json",
    "Peers",
    "models of `transformers` of the same depth and widths, by SDPA where it has it",
    {
        **{
            f"packed_forward/{size}/{kind}/vs_roberta": (
                f"skimming, 6x384, {batch} x {size} tokens, {share}",
                _HF_ROBERTA,
            )
            for size, batch in ((128, 32), (512, 8))
            for kind, share in (
                ("packed", "nothing skipped, same weights"),
                ("keep0.5", "50 % kept"),
                ("keep0.3", "30 % kept"),
            )
        },
        **{
            f"{row}/{size}/pyramidion/vs_led": (f"Pyramidion, {work}, {size:,} tokens", _LED)
            for row, work in (("encoder_forward", "encoder"), ("train_step", "training step"))
            for size in (4096, 8192)
        },
        "generate/8192/pyramidion/vs_led": ("Pyramidion, summary of 64 tokens, beam 4, from 8,192", _LED),
        "train_step/2048/vanilla-rotary/vs_gpt2": (
            "without pooling, training step, 2,048 characters, 12 layers, rotary",
            _GPT2,
        ),
        "train_step/2048/sf4-rotary/vs_gpt2": (
            "dynamic pooling, training step, 2,048 characters, segments of 4, rotary",
            _GPT2,
        ),
        "decode/1024/vanilla-rotary/vs_gpt2": (
            "without pooling, 1,024 characters one by one, 12 layers, rotary",
            _GPT2,
        ),
        "decode/1024/sf4-rotary/vs_gpt2": (
            "dynamic pooling, 1,024 characters one by one, segments of 4, rotary",
            _GPT2,
        ),
    },
    (
        "packed_forward/512/packed/vs_roberta",
        "packed_forward/512/keep0.3/vs_roberta",
        "train_step/8192/pyramidion/vs_led",
        "generate/8192/pyramidion/vs_led",
        "train_step/2048/sf4-rotary/vs_gpt2",
        "decode/1024/vanilla-rotary/vs_gpt2",
        "decode/1024/sf4-rotary/vs_gpt2",
    ),
)


def ratio(bench: Bench, name: str) -> float | None:
    """How many times faster; None if that was not measured."""
    results = load(bench.file)
    rows = {} if results is None else {row["name"]: row["ratio"] for row in results["rows"]}
    return rows.get(name)


def cells(bench: Bench, results: Document, names: Iterator[str]) -> Iterator[list[str]]:
    """Work, against, seconds, times faster and memory of the rows that were measured."""
    rows = {row["name"]: row for row in results["rows"]}
    for name in names:
        row = rows.get(name)
        if row is None:
            continue
        memory = " / ".join("-" if row[k] is None else f"{row[k]:,.0f}" for k in ("ours_mb", "baseline_mb"))
        times = f"{row['ours_s']:.3g} / {row['baseline_s']:.3g}"
        yield [*bench.rows[name], times, f"**{row['ratio']:.1f}x**", memory]


HEAD = ("work", "against", "seconds, ours / theirs", "times faster", "peak MB, ours / theirs")


def speed(bench: Bench) -> str:
    """All that is shown of a benchmark; empty if it was not run."""
    results = load(bench.file)
    if results is None:
        return ""
    machine = results["machine"]
    lines = [
        f"**{bench.title}**, speed ({machine.get('cpu', 'CPU')}, {machine.get('threads', '?')} threads, {bench.sizes}; "
        f"[all rows]({bench.file}), losses included):",
        "",
        *table(HEAD, cells(bench, results, iter(bench.rows))),
    ]
    return "\n".join(lines) + "\n"


def best() -> str:
    """The best rows of all benchmarks as one table."""
    lines, machines = [], {}
    for bench in (*BENCHES, PEERS):
        results = load(bench.file)
        if results is None:
            lines.append([bench.title, "being measured", *["-"] * 4])
            continue
        machines[f"{results['machine'].get('cpu', 'CPU')}, {results['machine'].get('threads', '?')} threads"] = 0
        for place, line in enumerate(cells(bench, results, iter(bench.best))):
            lines.append([bench.title if place == 0 else "", *line])
    return "\n".join([f"Speed and memory ({'; '.join(machines)}):", "", *table(("", *HEAD), lines)]) + "\n"
