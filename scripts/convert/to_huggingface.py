#!/usr/bin/env python
"""Write the dense weights of a fairseq RoBERTa (or of a skimming model) as a BERT or RoBERTa of Hugging Face."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_efficient import huggingface_names as names
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.huggingface import Shape, config_json, tokenizer_files, write_model
from fairseq_efficient.text.prepared import staging
from fairseq_efficient.text.subwords import Subwords, dictionary_beside, read_subwords
from fairseq_efficient.text.subwords import find_tokenizer as find_tokenizer_file
from fairseq_efficient.text.symbols import SPECIALS

EPILOG = """
OUTPUT then holds config.json, model.safetensors and the tokenizer's files, rows in the order of the tokenizer's ids.
Skim predictors are left out: what is written is the dense model. Without --type a WordPiece tokenizer makes a BERT, any
other a RoBERTa.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of fairseq's roberta or of skim_roberta")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="tokenizer, or a folder of one and dict.txt (default: the "
        "checkpoint's folder, else that of its data)",
    )  # fmt: skip
    parser.add_argument("--dict", type=Path, metavar="FILE", help="the model's dict.txt, if it is not beside it")
    parser.add_argument("--type", choices=["bert", "roberta"], help="layout to write")
    parser.add_argument(
        "--head", metavar="NAME", help="head to write (default: the only one, if there is one; 'none': none)"
    )
    parser.add_argument("--lm-head", action="store_true", help="write the head of masked language modelling instead")
    return parser


def settings_of(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The model's settings, and the data folder of its task under ``data``."""
    holder = state.get("cfg") or {}
    model = holder.get("model") if isinstance(holder, dict) else None
    model = state.get("args") if model is None else model
    values = dict(model) if isinstance(model, dict) else vars(model) if model is not None else {}
    if "encoder_attention_heads" not in values:
        raise UserError(f"{path}: does not store the settings of a RoBERTa")
    task = holder.get("task") if isinstance(holder, dict) else None
    return {**values, "data": (task or {}).get("data") if isinstance(task, dict) else values.get("data")}


def shape_of(settings: dict[str, Any], weights: dict[str, torch.Tensor], path: Path, kind: str) -> Shape:
    prefix = f"{names.ENCODER}.layers."
    layers = {int(name.removeprefix(prefix).partition(".")[0]) for name in weights if name.startswith(prefix)}
    positions = weights.get(f"{names.ENCODER}.embed_positions.weight")
    if not layers or positions is None or f"{names.ENCODER}.layernorm_embedding.weight" not in weights:
        raise UserError(f"{path}: not the weights of a fairseq RoBERTa")
    if settings.get("encoder_normalize_before"):
        raise UserError(f"{path}: normalises before its layers, which neither BERT nor RoBERTa do")
    types = weights.get(names.SEGMENTS)
    activation = {"gelu_fast": "gelu_accurate"}.get(*[settings.get("activation_fn") or "gelu"] * 2)
    return Shape(
        layers=max(layers) + 1,
        width=positions.size(1),
        ffn=len(weights[f"{prefix}0.fc1.bias"]),
        heads=int(settings["encoder_attention_heads"]),
        positions=len(positions) - names.PADDING,
        eps=float(settings.get("layer_norm_eps") or 1e-5),
        activation=activation,
        segments=len(types) if types is not None else 2 if kind == "bert" else 1,
        dropout=float(settings.get("dropout") or 0.0),
        attention_dropout=float(settings.get("attention_dropout") or 0.0),
        offset=0 if kind == "bert" else names.PADDING,
    )


def find_tokenizer(args: argparse.Namespace, data: Any) -> Path:
    if args.tokenizer:
        return Path(args.tokenizer)
    for folder in (args.checkpoint.parent, Path(str(data)) if data else None):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return folder
    raise UserError("--tokenizer: no tokenizer.json in the checkpoint's folder or its data's; say where it is")


def vocabulary(args: argparse.Namespace, subwords: Subwords, where: Path) -> tuple[np.ndarray, int]:
    """id -> fairseq's row, and the number of fairseq's rows."""
    given = args.dict
    if given is None and where.is_dir() and (where / "input0" / "dict.txt").is_file():
        given = where / "input0" / "dict.txt"  # prepared data
    symbols, _ = dictionary_beside(where, subwords, given)
    name = given or find_tokenizer_file(where).with_name("dict.txt")
    return subwords.table(symbols, str(name)), len({*SPECIALS, *symbols, "<mask>"})


def order_of(kind: str, subwords: Subwords, table: np.ndarray, total: int) -> tuple[torch.Tensor, list[int]]:
    """fairseq's row of each row to write, and what stands there: the tokenizer's id, or -1 - role of a special one."""
    if kind == "bert":
        if None in subwords.roles:
            raise UserError("--type bert: the tokenizer lacks one of [CLS], [PAD], [SEP], [UNK], [MASK]")
        return torch.from_numpy(table), list(range(len(table)))
    roles = [*range(len(SPECIALS)), total - 1]
    standing = {int(row): number for number, row in enumerate(table)} | {row: -1 - i for i, row in enumerate(roles)}
    return torch.arange(total), [standing.get(row, -1) for row in range(total)]


def heads(weights: dict[str, torch.Tensor], args: argparse.Namespace) -> str | None:
    found = sorted({name.split(".")[1] for name in weights if name.startswith(f"{names.HEADS}.")})
    if args.lm_head or args.head == "none":
        return None
    if args.head is not None and args.head not in found:
        raise UserError(f"--head {args.head}: the checkpoint has {', '.join(found) or 'none'}")
    if args.head is None and len(found) > 1:
        raise UserError(f"--head: the checkpoint has {', '.join(found)}; say which")
    return args.head or (found[0] if found else None)


def tensors(
    weights: dict[str, torch.Tensor], kind: str, layers: int, rows: torch.Tensor, args: argparse.Namespace
) -> tuple[dict[str, torch.Tensor], str, int | None]:
    """What to write, its architecture's name, and the classes of its classifier."""
    base, name = names.to_huggingface(weights, kind, layers, rows), heads(weights, args)
    if not args.lm_head and name is None:
        return base, f"{kind.capitalize()}Model", None
    base = {f"{kind}.{key}": value for key, value in base.items()}
    if name is None:
        return {**base, **names.lm_head_back(weights, kind, rows)}, f"{kind.capitalize()}ForMaskedLM", None
    extra = names.head_back(weights, kind, name)
    if "qa_outputs.bias" in extra:
        return {**base, **extra}, f"{kind.capitalize()}ForQuestionAnswering", None
    labels = len(weights[f"{names.HEADS}.{name}.out_proj.bias"])
    return {**base, **extra}, f"{kind.capitalize()}ForSequenceClassification", labels


def main() -> None:
    args = get_parser().parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists")
    state = read_checkpoint(str(args.checkpoint))
    settings, weights = settings_of(state, args.checkpoint), state.get("model") or {}
    where = find_tokenizer(args, settings["data"])
    subwords = read_subwords(where)
    kind = args.type or ("bert" if subwords.kind == "WordPiece" else "roberta")
    shape = shape_of(settings, weights, args.checkpoint, kind)
    table, total = vocabulary(args, subwords, where)
    found = len(weights[f"{names.ENCODER}.embed_tokens.weight"])
    if total != found:
        raise UserError(f"{args.checkpoint}: has {found:,} types, its dictionary {total:,}; give --dict")
    rows, order = order_of(kind, subwords, table, total)
    written, architecture, labels = tensors(weights, kind, shape.layers, rows, args)
    pad = subwords.roles[1] if kind == "bert" else 1
    predictors = sum(value.numel() for key, value in weights.items() if ".skim_predictors." in key)
    with staging(args.output) as out:
        config = config_json(kind, shape, len(rows), architecture, labels, pad)
        write_model(out, written, config, tokenizer_files(kind, subwords, order))
    print(f"wrote {args.output}: {architecture}, {sum(value.numel() for value in written.values()):,} weights")
    if predictors:
        print(f"left out: skim predictors ({predictors:,} weights); this is the dense model")


if __name__ == "__main__":
    run_main(main)
