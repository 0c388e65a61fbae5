"""Time trained models on texts of their split, in turns: timing.py SETTINGS.json RESULT.json.

Engines: ``stock`` (fairseq's RoBERTa with the dense model's weights, padded to each batch's longest row),
``max_length`` (the same, padded to the longest row that the task allows), ``dense`` (the dense model, packed), and each
skimmed model, packed. All take turns but ``max_length``, which is timed once. Batches are made in two orders: as texts
come, and sorted by length.
"""

import json
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from fairseq.models.roberta.model import RobertaModel, base_architecture
from torch import Tensor

import skimming  # noqa: F401  (registers)
from fairseq_efficient.bench.timing import take_turns, time_call
from fairseq_efficient.files import write_json
from skimming.flops import dense_macs, skim_macs
from skimming.heads import head_macs

ORDERS = ("arrival", "sorted")
Batches = list[list[Tensor]]


@dataclass(frozen=True)
class Engine:
    """``forward``: (B, T) tokens -> scores. ``width``: pad all batches to this; 0: to their longest row."""

    name: str
    model: Any  # ours, or ours with the same weights
    forward: Callable[[Tensor], Any]
    width: int = 0
    packed: bool = True


def load(path: str, threshold: float, settings: dict[str, Any]) -> tuple[Any, Any]:
    """A model in packed fp32 inference, and its task."""
    overrides = {"data": settings["data"], "skim_inference": "packed", "skim_threshold": threshold, "cpu_bf16": False}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([path], overrides)
    return models[0].eval().to(settings["device"]), task


def stock_twin(model: Any, head: str) -> Any:
    """fairseq's RoBERTa with the weights of the dense ``model``, without token types, which it does not have."""
    names = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "max_positions",
             "activation_fn", "pooler_activation_fn", "untie_weights_roberta", "encoder_normalize_before",
             "layernorm_embedding")  # fmt: skip
    args = Namespace(**{name: getattr(model.args, name) for name in names})
    base_architecture(args)
    stock = RobertaModel.build_model(args, Namespace(source_dictionary=model.encoder.dictionary))
    own = model.classification_heads[head]
    if hasattr(own, "dense"):
        stock.register_classification_head(head, own.out_proj.out_features, own.dense.out_features)
    wanted = stock.state_dict()
    stock.load_state_dict({key: value for key, value in model.state_dict().items() if key in wanted}, strict=True)
    return stock.eval().to(next(model.parameters()).device)


def engines(settings: dict[str, Any]) -> tuple[list[Engine], Any]:
    """All that is timed, and the task."""
    dense, task = load(settings["dense"], 0.0, settings)
    head, longest = task.cfg.classification_head_name, task.max_positions()
    stock, own = stock_twin(dense, head), dense.classification_heads[head]

    def of(model: Any) -> Callable[[Tensor], Any]:
        return lambda tokens: model(tokens, features_only=True, classification_head_name=head)[0]

    # fairseq has no head for answers: ours, on its states
    plain = of(stock) if hasattr(own, "dense") else lambda tokens: own(stock(tokens, features_only=True)[0])
    found = [Engine("stock", dense, plain, packed=False), Engine("max_length", dense, plain, longest, packed=False),
             Engine("dense", dense, of(dense))]  # fmt: skip
    for name, path, threshold in settings["variants"]:
        model, _ = load(path, threshold, settings)
        found.append(Engine(name, model, of(model)))
    return found, task


def rows_of(task: Any, settings: dict[str, Any]) -> list[Tensor]:
    """As many rows of the split as asked for, drawn once for all engines."""
    task.load_dataset(settings["subset"], **({"training": False} if settings["squad"] else {}))
    dataset, found = task.dataset(settings["subset"]), list[Tensor]()
    for number in np.random.RandomState(1).permutation(len(dataset)):
        item = dataset[int(number)]
        found += [one["tokens"] for one in item["windows"]] if settings["squad"] else [item["net_input.src_tokens"]]
        if len(found) >= settings["texts"]:
            break
    return found[: settings["texts"]]


def batches(rows: Sequence[Tensor], size: int, order: str) -> Batches:
    rows = sorted(rows, key=len) if order == "sorted" else list(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def work(engine: Engine, parts: Batches, pad: int, device: torch.device) -> Callable[[], dict[str, float]]:
    """One pass over the batches; it reports the median and the 95th percentile of its batches, in seconds."""
    padded = [data_utils.collate_tokens(part, pad, pad_to_length=engine.width or None).to(device) for part in parts]

    def run() -> dict[str, float]:
        each = []
        with torch.inference_mode():
            for tokens in padded:
                start = time.perf_counter()
                engine.forward(tokens)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                each.append(time.perf_counter() - start)
        return {"p50": median(each), "p95": float(np.quantile(each, 0.95))}

    return run


@torch.inference_mode()
def cost(engine: Engine, head: str, parts: Batches, pad: int, device: torch.device) -> tuple[float, float]:
    """Analytic 10**9 FLOPs of a pass, and the share of tokens that enter the layers."""
    macs, kept, every = 0, 0, 0
    encoder, own = engine.model.encoder.sentence_encoder, engine.model.classification_heads[head]
    for part in parts:
        lengths = torch.tensor([len(row) for row in part])
        if not engine.packed:
            wide = torch.full_like(lengths, engine.width or int(lengths.max()))
            macs += int((dense_macs(wide, encoder.sizes) + head_macs(own, wide)).sum())
            continue
        tokens = data_utils.collate_tokens(part, pad).to(device)
        found = engine.model(tokens, features_only=True, classification_head_name=head)[1]["skim_counts"]
        counts = found.counts().cpu()
        macs += int(skim_macs(counts, lengths, found.protected.cpu().long(), encoder.sizes).sum())
        macs += int(head_macs(own, lengths).sum())
        kept, every = kept + int(counts.sum()), every + int(lengths.sum()) * len(counts)
    return 2 * macs / 1e9, kept / every if every else 1.0


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each engine, batch size and order."""
    every, task = engines(settings)
    device, pad = torch.device(settings["device"]), task.source_dictionary.pad()
    head = task.cfg.classification_head_name
    rows = rows_of(task, settings)
    tokens, found = sum(map(len, rows)), []
    for size in settings["batches"]:
        for order in ORDERS if size > 1 else ORDERS[:1]:  # single texts have no order
            parts = batches(rows, size, order)
            calls = {one.name: work(one, parts, pad, device) for one in every}
            whole = calls.pop("max_length")
            samples = take_turns(calls, settings["runs"], device)
            samples["max_length"] = [time_call(whole, device)]  # the slowest by far, and far from the others
            for engine in every:
                times = samples[engine.name]
                amount, share = cost(engine, head, parts, pad, device)
                found.append({
                    "batch": size, "order": order, "model": engine.name,
                    "seconds": median(one.of() for one in times), "runs": len(times), "texts": len(rows),
                    "tokens": tokens,
                    "p50": median(one.of("p50") for one in times), "p95": median(one.of("p95") for one in times),
                    "gflop": amount, "kept": share,
                })  # fmt: skip
            stock = found[-len(every)]["seconds"]
            told = ", ".join(f"{one['model']} {stock / one['seconds']:.2f}x" for one in found[-len(every) + 1 :])
            print(f"batch {size}, {order}: stock {len(rows) / stock:.1f} texts/s, {told}", flush=True)
    return found


def main() -> None:
    asked, result = map(Path, sys.argv[1:])
    settings = json.loads(asked.read_text(encoding="utf-8"))
    logging.disable(logging.INFO)
    torch.set_num_threads(settings["threads"])
    found = measure(settings)
    write_json(result, found)


if __name__ == "__main__":
    main()
