#!/usr/bin/env python3
"""Classify lines of text with a trained checkpoint: `python scripts/classify.py CHECKPOINT < lines`."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.text.reading import Bad, decoded

EPILOG = """
Each line is a text; for a model of pairs, two texts with a tab between. The output has a line for each, in their order:
the label, a tab, and the probabilities of all classes (--format json: one object a line). The number of texts a second
and the share of tokens that the layers computed come last, on stderr. Predictions are written every 2,048 lines: an
interruption, or a line that is no text, loses none of those before.
"""
CHUNK = 2048  # lines sorted by length at a time


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of task sentence_prediction")
    parser.add_argument("--input", type=Path, metavar="FILE", help="texts, UTF-8 (default: standard input)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared data, if it was moved since training")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="default: tokenizer.json of the data")
    parser.add_argument("--format", choices=["tsv", "json"], default="tsv", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=16384, help="of a batch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="texts of a batch at most (default: %(default)s)")
    parser.add_argument(
        "--inference", choices=["auto", "packed", "masked"], default="auto", help="of a skimming model; auto: packed, "
        "wherever that computes the same (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="of a skimming model: tokens stay where logit(keep) - logit(skip) "
        "exceeds X; higher is faster",
    )  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


def load(args: argparse.Namespace) -> Any:
    logging.disable(logging.INFO)
    import efficient_systems  # noqa: F401
    from skimming.hub import Classifier
    from skimming.model import SkimRobertaModel

    overrides: dict[str, Any] = {"skim_inference": args.inference}
    if args.threshold is not None:
        overrides["skim_threshold"] = args.threshold
    sizes = {"max_tokens": args.max_tokens, "batch_size": args.batch_size}
    classifier = Classifier.load(args.checkpoint, args.data, args.tokenizer, overrides, args.cpu, **sizes)
    if not isinstance(classifier.model, SkimRobertaModel):
        for flag, given in (("--inference", args.inference != "auto"), ("--threshold", args.threshold is not None)):
            if given:
                raise UserError(f"{flag} is of skimming models: {args.checkpoint} has no skim predictors")
    return classifier


def read(path: Path | None, inputs: int) -> Iterator[tuple[str, ...]]:
    """The texts of each line; UserError for one that is not UTF-8, empty, or not as many as the model takes."""
    name = str(path) if path else "standard input"
    try:
        stream: Any = path.open("rb") if path else sys.stdin.buffer
    except OSError as err:
        raise UserError(f"--input {path}: {err.strerror}") from None
    with stream:
        for line in decoded(stream, f"{name}:"):
            if isinstance(line, Bad):
                raise line.error()
            texts = tuple(line.text.split("\t")) if inputs == 2 else (line.text,)
            if len(texts) != inputs:
                raise UserError(f"{line.where}: {len(texts)} texts between tabs; the model takes {inputs}")
            if not all(text.strip() for text in texts):
                raise UserError(f"{line.where}: empty text")
            yield texts


def chunks(lines: Iterator[tuple[str, ...]], size: int) -> Iterator[list[tuple[str, ...]]]:
    """Lists of lines. Before a mistake is raised, what was read before it comes out, so no prediction is lost."""
    found: list[tuple[str, ...]] = []
    try:
        for line in lines:
            found.append(line)
            if len(found) == size:
                yield found
                found = []
    except UserError:
        if found:
            yield found
        raise
    if found:
        yield found


def show(texts: tuple[str, ...], prediction: Any, classes: list[str], form: str) -> str:
    if form == "tsv":
        numbers = [f"{one:.4f}" for one in prediction.probabilities]
        return "\t".join([prediction.label, *numbers])
    shares = dict(zip(classes, (round(one, 6) for one in prediction.probabilities), strict=False))
    found = {"text": texts[0] if len(texts) == 1 else list(texts), "label": prediction.label}
    found |= {"probabilities": shares} if prediction.score is None else {"score": prediction.score}
    return json.dumps(found, ensure_ascii=False)


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 1, "max_tokens", "batch_size")
    classifier = load(args)
    lines = read(args.input, classifier.data.inputs)
    start, written = time.perf_counter(), 0
    try:
        with tqdm(desc="classifying", unit=" texts", disable=None, mininterval=0.5) as bar:
            for chunk in chunks(lines, CHUNK):
                for texts, prediction in zip(chunk, classifier.predict(chunk, bar.update), strict=True):
                    print(show(texts, prediction, classifier.classes, args.format))
                sys.stdout.flush()
                written += len(chunk)
    finally:
        print(summary(classifier, time.perf_counter() - start, written), file=sys.stderr)


def summary(classifier: Any, seconds: float, written: int) -> str:
    counts, seconds = classifier.counts, max(seconds, 1e-9)
    notes = [f"{written:,} of them written"] if written < counts.texts else []
    notes += [f"{counts.cut:,} cut to {classifier.limit} tokens"] if counts.cut else []
    notes += [f"{counts.kept / counts.all:.1%} of the tokens kept"] if counts.all else []
    rates = f"{counts.texts / seconds:,.1f} texts/s, {counts.tokens / seconds:,.0f} tokens/s"
    return ", ".join([f"{counts.texts:,} texts in {seconds:.1f} s ({rates})", *notes])


if __name__ == "__main__":
    run_main(main)
