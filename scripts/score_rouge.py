#!/usr/bin/env python3
"""ROUGE of summaries, one a line: `score_rouge.py HYP REF`, or of `score_rouge.py --generate-log FILE`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output, write_json
from fairseq_efficient.text.summarization.floors import floors
from fairseq_efficient.text.summarization.generate_log import read_generate_log, read_texts
from fairseq_efficient.text.summarization.rouge import Rouge, corpus_rouge, mean_words

EPILOG = """
Sentences end at <q> (which scripts/prepare_summarization.py puts into summaries) or, in a text without any, where
simple rules say so; only ROUGE-Lsum looks at them. Sentencepiece pieces are joined to words first.
--floors adds what no model is needed for: the first sentences of each document (lead) and its best sentences chosen
with the reference in hand (oracle, greedy for ROUGE-1 + ROUGE-2).
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="HYP REF", help="hypotheses and references, one a line")
    parser.add_argument("--generate-log", type=Path, metavar="FILE", help="output of fairseq-generate")
    parser.add_argument(
        "--floors", type=Path, metavar="DOCS", help="also score lead and oracle summaries of these documents"
    )
    parser.add_argument("--no-stemmer", action="store_true", help="compare words as they are, not their stems")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, help="samples of the 95%% interval; 0: none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser


def read_pairs(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(references, hypotheses); UserError if they do not pair up."""
    if args.generate_log is not None:
        if args.files:
            raise UserError("give HYP and REF, or --generate-log, not both")
        return read_generate_log(args.generate_log)
    if len(args.files) != 2:
        raise UserError("expected two files, HYP and REF (or --generate-log FILE)")
    hypotheses, references = map(read_texts, args.files)
    if len(hypotheses) != len(references):
        raise UserError(f"{args.files[0]} has {len(hypotheses):,} lines but {args.files[1]} has {len(references):,}")
    if not hypotheses:
        raise UserError(f"{args.files[0]}: is empty")
    return references, hypotheses


def main() -> None:
    args = get_parser().parse_args()
    if args.bootstrap < 0:
        raise UserError(f"--bootstrap {args.bootstrap}: must not be negative")
    check_output(args.json, "--json", *args.files, args.generate_log, args.floors)
    references, hypotheses = read_pairs(args)
    systems = {"model": hypotheses}
    if args.floors is not None:
        documents = read_texts(args.floors)
        if len(documents) != len(references):
            raise UserError(f"--floors {args.floors}: has {len(documents):,} lines for {len(references):,} references")
        systems.update(floors(documents, references, mean_words(references), stem=not args.no_stemmer))
    results: dict[str, Rouge] = {}
    for name, texts in systems.items():
        results[name] = corpus_rouge(references, texts, not args.no_stemmer, args.bootstrap, args.seed)
        print(f"{name + ': ' if args.floors else ''}{results[name]}", flush=True)
    if args.json is not None:
        write_json(args.json, {k: v.as_dict() for k, v in results.items()}, "--json")


if __name__ == "__main__":
    run_main(main)
