#!/usr/bin/env python3
"""Print text with the segments of a trained model: `echo "some text" | python scripts/segment.py CHECKPOINT`."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.text.reading import Bad, read_lines, read_typed

EPILOG = """
Each line of the input is a text of its own. The output has as many lines.
  --format marked   the text with --mark after each segment
  --format color    segments in turn in two colours (for a terminal)
  --format json     one object a line: {"text", "segments"}
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of a dynamic_pooling_lm")
    parser.add_argument("--input", type=Path, metavar="FILE", help="text, UTF-8 (default: standard input)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of dict.txt (default: the one it was trained on)"
    )
    parser.add_argument("--mark", default="|", help="written between segments (default: %(default)s)")
    parser.add_argument("--format", choices=["marked", "color", "json"], default="marked", help="default: %(default)s")
    parser.add_argument("--clean", metavar="LANG", help="clean each line as scripts/prepare_lm.py --clean text8 does")
    parser.add_argument(
        "--tokens-per-sample", type=int, default=2048, metavar="N", help="read at once (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


def load(args: argparse.Namespace) -> Any:
    logging.disable(logging.INFO)
    import torch
    from fairseq import checkpoint_utils

    import dynamic_pooling  # noqa: F401
    from dynamic_pooling.segmentation import TextSegmenter

    if not args.checkpoint.is_file():
        raise UserError(f"{args.checkpoint}: no such file")
    overrides = {"data": str(args.data)} if args.data else {}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    if torch.cuda.is_available() and not args.cpu:
        models[0].cuda()
    return TextSegmenter(models[0], task.source_dictionary, args.tokens_per_sample)


def lines(path: Path | None) -> Iterator[str]:
    for line in read_lines(path) if path else read_typed():
        if isinstance(line, Bad):
            raise line.error()
        yield line.text


def show(segments: list[str], args: argparse.Namespace) -> str:
    if args.format == "json":
        return json.dumps({"text": "".join(segments), "segments": segments}, ensure_ascii=False)
    if args.format == "marked":
        return args.mark.join(segments)
    return "".join(f"\033[{(44, 46)[number % 2]}m{one}\033[0m" for number, one in enumerate(segments))


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 1, "tokens_per_sample")
    clean = None
    if args.clean:
        from fairseq_efficient.text.language_models.clean import clean_text

        clean = clean_text
        clean("", "text8", args.clean)  # is the language known?
    segmenter = load(args)
    characters = pieces = 0
    for line in lines(args.input):
        text = clean(line, "text8", args.clean) if clean else line
        segments = segmenter.segments(text)
        characters, pieces = characters + len(text), pieces + len(segments)
        print(show(segments, args), flush=True)
    mean = f", {characters / pieces:.2f} characters each" if pieces else ""
    unknown = f", {segmenter.unknown:,} symbols unknown to the model" if segmenter.unknown else ""
    print(f"{pieces:,} segments{mean}{unknown}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
