#!/usr/bin/env python3
"""Answer the questions of prepared SQuAD data: `python scripts/squad_predict.py CHECKPOINT --output FOLDER`."""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.text.prepared import staging

EPILOG = """
FOLDER then holds predictions.json (id -> answer, as the official scripts read it), nbest.json (id -> the best answers
with scores and probabilities) and, of SQuAD 2.0, null_odds.json (id -> score of no answer minus that of the best one).
The official numbers are printed as JSON, those of SQuAD 2.0 also at the best thresholds.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of task skim_squad")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared data, if it was moved since training")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=16384, help="of a batch (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="X", help="no answer where the odds exceed X")
    parser.add_argument("--n-best-size", type=int, default=20, help="answers kept (default: %(default)s)")
    parser.add_argument("--max-answer-length", type=int, default=30, help="in tokens (default: %(default)s)")
    parser.add_argument(
        "--inference", choices=["auto", "packed", "masked"], default="auto", help="default: %(default)s"
    )
    parser.add_argument("--skim-threshold", type=float, metavar="X", help="higher skips more tokens and is faster")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Model and task, with the split loaded."""
    logging.disable(logging.INFO)
    import torch
    from fairseq import checkpoint_utils

    import efficient_systems  # noqa: F401
    from skimming.squad_task import SkimSquadTask

    if not args.checkpoint.is_file():
        raise UserError(f"{args.checkpoint}: no such file")
    overrides: dict[str, Any] = {"skim_inference": args.inference}
    overrides |= {"data": str(args.data)} if args.data else {}
    overrides |= {} if args.skim_threshold is None else {"skim_threshold": args.skim_threshold}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    if not isinstance(task, SkimSquadTask):
        raise UserError(f"{args.checkpoint}: not of task skim_squad")
    model = models[0].eval()
    if task.cfg.classification_head_name in model.untrained_heads:
        raise UserError(f"{args.checkpoint}: no head {task.cfg.classification_head_name} inside: fine-tune it first")
    task.load_dataset(args.split, training=False)
    if torch.cuda.is_available() and not args.cpu:
        model.cuda()
    return model, task


def answers(model: Any, task: Any, args: argparse.Namespace) -> tuple[list[Any], float]:
    """The answers to all questions of the split, and the seconds that the model took."""
    import torch
    from fairseq import utils

    from skimming.squad_decode import decode

    dataset, head = task.dataset(args.split), task.cfg.classification_head_name
    batches = task.get_batch_iterator(dataset, max_tokens=args.max_tokens, ignore_invalid_inputs=False, num_workers=0)
    device = next(model.parameters()).device
    found, seconds = [], 0.0
    with torch.inference_mode(), tqdm(total=len(dataset), unit=" questions", disable=None, mininterval=0.5) as bar:
        for sample in batches.next_epoch_itr(shuffle=False):
            sample = utils.move_to_cuda(sample, device) if device.type == "cuda" else sample
            start = time.perf_counter()
            logits = model(**sample["net_input"], features_only=True, classification_head_name=head)[0]
            found += decode(logits, sample, dataset.data, args.n_best_size, args.max_answer_length)
            seconds += time.perf_counter() - start
            bar.update(len(sample["id"]))
    return found, seconds


def files(found: list[Any], data: Any, version2: bool, threshold: float) -> dict[str, dict[str, Any]]:
    """What to write, by name of the file; ``best.json`` (not written) holds the best answers that are not ""."""
    from skimming.squad_criterion import best_text
    from skimming.squad_decode import probabilities

    made: dict[str, dict[str, Any]] = {"predictions.json": {}, "nbest.json": {}, "null_odds.json": {}, "best.json": {}}
    for answer in found:
        name, best = data.records[answer.question]["id"], best_text(answer, data)
        spans = [(data.text_of(answer.question, start, end), score) for score, start, end in answer.spans]
        spans += [("", answer.null)] if version2 else []
        shares = probabilities([score for _, score in spans])
        made["nbest.json"][name] = [
            {"text": text, "score": round(score, 4), "probability": round(share, 6)}
            for (text, score), share in sorted(zip(spans, shares, strict=True), key=lambda one: -one[0][1])
        ]
        made["best.json"][name] = best
        made["predictions.json"][name] = "" if version2 and answer.null_odds > threshold else best
        made["null_odds.json"][name] = answer.null_odds
    return made


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 1, "max_tokens", "n_best_size", "max_answer_length")
    if args.output.exists():
        raise UserError(f"{args.output} exists")
    model, task = load(args)
    from skimming.squad_metrics import best_thresholds, evaluate

    data, version2 = task.dataset(args.split).data, bool(task.version2)
    found, seconds = answers(model, task, args)
    made = files(found, data, version2, args.threshold)
    best = made.pop("best.json")
    odds = made["null_odds.json"] if version2 else made.pop("null_odds.json")
    with staging(args.output) as out:
        for name, content in made.items():
            (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    gold = {data.records[i]["id"]: data.golds(i) for i in range(len(data)) if data.has_gold(i)}
    numbers = evaluate(made["predictions.json"], gold, version2) if gold else {}
    numbers |= best_thresholds(best, gold, odds) if gold and version2 else {}
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}, indent=1))
    print(f"{len(found):,} questions in {seconds:.1f} s ({len(found) / max(seconds, 1e-9):,.1f}/s)", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
