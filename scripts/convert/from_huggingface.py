#!/usr/bin/env python
"""Turn a BERT, MiniLM or RoBERTa of Hugging Face into a fairseq checkpoint, its dictionary and its tokenizer."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_efficient import huggingface_names as names
from fairseq_efficient.checkpoints import atomic_save, exported
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.huggingface import Shape, Source, read_model
from fairseq_efficient.text.prepared import staging
from fairseq_efficient.text.subwords import Subwords, dictionary_text, read_subwords

EPILOG = """
FOLDER holds config.json, model.safetensors (a pickle is refused) and a tokenizer: tokenizer.json, vocab.txt, or
vocab.json with merges.txt. OUTPUT then holds

  model.pt        for fairseq-train --restore-file OUTPUT/model.pt --reset-optimizer --reset-dataloader --reset-meters
                  --user-dir skimming --arch (as printed)
  dict.txt        the dictionary, row for row as the weights: <s> <pad> </s> <unk> first, <mask> last
  tokenizer.json  for --bpe wordpiece --wordpiece-vocab OUTPUT and scripts/prepare_classification.py --tokenizer OUTPUT
  convert.json    what was done

LayerNorm's epsilon and the token types of pairs are kept; fairseq's own roberta has neither. --stock writes a
checkpoint for it, where that is possible.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the model's folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the tokenizer, if it lies elsewhere")
    parser.add_argument(
        "--case", choices=["auto", "cased", "uncased"], default="auto", help="of a vocab.txt (auto: by its tokens)"
    )
    parser.add_argument(
        "--no-segments", action="store_true", help="leave token types out: both texts of a pair get type 0"
    )
    parser.add_argument(
        "--head", type=int, metavar="CLASSES", help="also write a classification head whose dense layer is the pooler"
    )
    parser.add_argument("--head-name", default="sentence_classification_head", help="default: %(default)s")
    parser.add_argument("--stock", action="store_true", help="an architecture of fairseq's own roberta")
    return parser


def architecture(shape: Shape, kind: str) -> str:
    """The named architecture of these sizes; any other is ``skim_roberta`` with its sizes given."""
    sizes = (shape.layers, shape.width, shape.ffn, shape.heads)
    bert = kind == "bert"
    known = {
        (6, 384, 1536, 12): "skim_minilm_l6",
        (12, 768, 3072, 12): "skim_bert_base" if bert else "skim_roberta_base",
        (24, 1024, 4096, 16): "skim_roberta_large",
    }
    return known.get(sizes, "skim_roberta")


def model_settings(shape: Shape, kind: str, segments: bool, untied: bool, stock: bool) -> dict[str, Any]:
    settings = {
        "_name": "roberta" if stock else architecture(shape, kind),
        "arch": "roberta" if stock else architecture(shape, kind),
        "encoder_layers": shape.layers,
        "encoder_embed_dim": shape.width,
        "encoder_ffn_embed_dim": shape.ffn,
        "encoder_attention_heads": shape.heads,
        "max_positions": shape.positions,
        "activation_fn": shape.activation,
        "pooler_activation_fn": "tanh",
        "dropout": shape.dropout,
        "attention_dropout": shape.attention_dropout,
        "untie_weights_roberta": untied,
    }
    if not stock:
        settings.update(layer_norm_eps=shape.eps, num_segments=shape.segments if segments else 0)
    return settings


def check_stock(shape: Shape, segments: bool) -> None:
    if shape.eps != 1e-5:
        raise UserError(f"--stock: fairseq's roberta has LayerNorm epsilon 1e-05, this model {shape.eps:g}")
    if segments:
        raise UserError("--stock: fairseq's roberta has no token types; give --no-segments as well")


def stock_note(shape: Shape, segments: bool) -> str:
    """What fairseq's own roberta would do with these weights."""
    why = [f"LayerNorm epsilon {shape.eps:g} would become 1e-05"] if shape.eps != 1e-5 else []
    why += ["it has no token types (--no-segments leaves them out)"] if segments else []
    return f"not the same in fairseq's own roberta: {'; '.join(why)}" if why else "also loads as fairseq's own roberta"


def convert(source: Source, subwords: Subwords, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    shape = source.shape
    segments = shape.segments > 1 and not args.no_segments
    if args.stock:
        check_stock(shape, segments)
    rows = torch.from_numpy(subwords.rows())
    weights, heads = names.to_fairseq(source, rows, segments)
    head = names.head_of(source, args.head_name, args.head)
    weights.update(head)
    untied = not torch.equal(weights["encoder.lm_head.weight"], weights[f"{names.ENCODER}.embed_tokens.weight"])
    settings = model_settings(shape, source.kind, segments, untied, args.stock)
    settings["load_checkpoint_heads"] = bool(head)  # by --path and torch.hub; a training registers its own
    task = {"_name": "masked_lm", "data": str(args.output.resolve()), "tokens_per_sample": shape.positions}
    bpe = {"_name": "wordpiece", "wordpiece_vocab": task["data"], "wordpiece_case": "auto"}
    atomic_save(exported(settings, task, weights, "masked_lm", bpe), str(out / "model.pt"))
    (out / "dict.txt").write_text(dictionary_text(subwords.dictionary()), encoding="utf-8", newline="\n")
    (out / "tokenizer.json").write_text(subwords.to_json(), encoding="utf-8")
    report = {
        "source": source.kind,
        "arch": settings["arch"],
        "model": settings,
        "rows": len(rows),
        "offset": shape.offset,
        "mask": int(rows[-1]),
        "without_token": subwords.tokens.count(None),
        "lm_head": names.has_lm_head(source),
        "head": next((len(value) for key, value in head.items() if key.endswith("out_proj.bias")), None),
        "left_out": sorted(heads) if not head or args.head else [],
        "stock": stock_note(shape, segments),
        "flags": training_flags(settings),
    }
    (out / "convert.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {**report, "weights": sum(value.numel() for value in {v.data_ptr(): v for v in weights.values()}.values())}


def training_flags(settings: dict[str, Any]) -> str:
    """The flags that build this model in fairseq-train."""
    flags = f"--arch {settings['arch']}"
    if settings["arch"] in ("skim_roberta", "roberta"):
        for name in ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"):
            flags += f" --{name.replace('_', '-')} {settings[name]}"
    for name in ("layer_norm_eps", "num_segments"):
        flags += f" --{name.replace('_', '-')} {settings[name]}" if name in settings else ""
    if settings["activation_fn"] != "gelu":
        flags += f" --activation-fn {settings['activation_fn']}"
    flags += " --untie-weights-roberta" if settings["untie_weights_roberta"] else ""
    return f"{flags} --max-positions {settings['max_positions']}"


def main() -> None:
    args = get_parser().parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists")
    check_least(args, 1, "head")
    source = read_model(args.folder)
    cased = None if args.case == "auto" else args.case == "cased"
    subwords = read_subwords(args.tokenizer or args.folder, cased, names.rows_of(source))
    with staging(args.output) as out:
        report = convert(source, subwords, args, out)
    print(f"wrote {args.output}: {report['arch']}, {report['weights']:,} weights, {report['rows']:,} types")
    for wrong, note in (
        (report["mask"] < 0, "the tokenizer has no mask: the row of <mask> is the mean of all"),
        (report["without_token"], f"{report['without_token']:,} rows of the embedding belong to no token"),
        (not report["lm_head"], "no head of masked language modelling in it: that head is random"),
        (report["head"], f"a head of {report['head']} outputs"),
        (report["left_out"], f"left out: {', '.join(report['left_out'])}"),
    ):
        if wrong:
            print(note)
    print(report["stock"])
    print(f"train with: {report['flags']} --restore-file {args.output / 'model.pt'}")


if __name__ == "__main__":
    run_main(main)
