#!/usr/bin/env python3
"""Prepare labelled texts, or SQuAD, for fairseq: `python scripts/prepare_classification.py DEST --tokenizer MODEL`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.text.built_in import SPLITS
from fairseq_efficient.text.classification import corpora, glue
from fairseq_efficient.text.classification import read as formats
from fairseq_efficient.text.classification.prepare import Options, prepare
from fairseq_efficient.text.classification.read import Item
from fairseq_efficient.text.fetch import default_cache
from fairseq_efficient.text.prepared import check_names, describe, named_files, prepare_once
from fairseq_efficient.text.squad.prepare import prepare_squad

EPILOG = """
--tokenizer: of the model to start from: the folder that scripts/convert/from_huggingface.py wrote (tokenizer.json and
dict.txt), or a file: a tokenizer.json, a vocab.txt of WordPiece, vocab.json with merges.txt, fairseq's encoder.json
with vocab.bpe. The dictionary is the dict.txt beside it, or --dict; without either it is made from the tokenizer.
--vocab-size N, for a model from scratch: byte-level BPE of N types, in lower case unless --case cased, trained on train
(before anything is held out of it).

inputs, one of:
  --corpus NAME           built-in, fetched once: wiki-topics (Wikipedia leads, 11 topics), vader-movies (sentences of
                          film reviews, positive or not), spam-assassin (mails, spam or not)
  --glue FOLDER           a task of GLUE, its folder as published: train.tsv, dev.tsv, test.tsv
  --imdb FOLDER           aclImdb: train and test, each with pos and neg
  --newsgroups FOLDER     20news-bydate-train and 20news-bydate-test inside, or folders of newsgroups; of the headers
                          only the subject is kept, the others name the group
  --split NAME=FILE ...   --format tsv (default; quotation marks are text unless --quoted), csv (quoted), jsonl,
                          yelp (csv without header: class from 1, text) or squad (SQuAD 1.1 and 2.0, JSON)
Files may be plain, .gz, .xz or .bz2. Tables have a header, or --no-header and columns as numbers from 1.

DEST then holds input0, for pairs input1, and label, each with dict.txt and SPLIT.{bin,idx}; tokenizer.json; and
prepare.json with all counts, the classes and what was cut. The last lines say how to train.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("destination", type=Path, metavar="DEST", help="folder to make")
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--corpus", metavar="NAME", help=f"built-in: {', '.join(corpora.CORPORA)}")
    inputs.add_argument("--glue", type=Path, metavar="FOLDER", help="a task of GLUE")
    inputs.add_argument("--glue-task", metavar="NAME", help="which (default: the folder's name)")
    inputs.add_argument("--imdb", type=Path, metavar="FOLDER", help="aclImdb")
    inputs.add_argument("--newsgroups", type=Path, metavar="FOLDER", help="20 newsgroups")
    inputs.add_argument("--split", action="append", default=[], metavar="NAME=FILE", help="a split; repeatable")
    inputs.add_argument("--format", choices=formats.FORMATS, help="of the --split files (default: tsv)")
    inputs.add_argument("--text-field", metavar="NAME[,NAME]", help="column of the text, or of both (default: text)")
    inputs.add_argument("--label-field", metavar="NAME", help="column of the label (default: label)")
    inputs.add_argument("--no-header", action="store_true", help="of tsv and csv: columns are numbers from 1")
    inputs.add_argument("--quoted", action="store_true", help="of tsv: columns are quoted as in csv")
    inputs.add_argument("--skip-bad", action="store_true", help="drop and count what cannot be used, not stop at it")
    inputs.add_argument(
        "--answerable-only", action="store_true", help="of squad: SQuAD 2.0 without its unanswerable questions, as 1.1"
    )
    inputs.add_argument("--cache-dir", type=Path, help=f"where fetched corpora are kept (default: {default_cache()})")
    words = parser.add_argument_group("tokens")
    words.add_argument("--tokenizer", type=Path, metavar="PATH", help="a tokenizer or its folder")
    words.add_argument("--vocab-size", type=int, metavar="N", help="train a tokenizer of N types on train instead")
    words.add_argument("--dict", type=Path, metavar="FILE", help="the model's dict.txt, if it is not beside it")
    words.add_argument(
        "--case", choices=["auto", "cased", "uncased"], default="auto", help="of vocab.txt, --vocab-size"
    )
    words.add_argument(
        "--max-tokens", type=int, default=512, help="of a row with its special tokens; longer texts are cut (pairs "
        "longest first) and counted (default: %(default)s)",
    )  # fmt: skip
    words.add_argument(
        "--separator", choices=["auto", "yes", "no"], default="auto",
        help="whether pairs will be trained with --separator-token (auto: unless the tokenizer is WordPiece)",
    )  # fmt: skip
    labels = parser.add_argument_group("labels")
    labels.add_argument("--labels", metavar="A,B,...", help="the classes in order (default: those of train, sorted)")
    labels.add_argument("--regression", action="store_true", help="labels are scores")
    labels.add_argument("--top", type=float, metavar="X", help="scores lie in 0..X and are divided by X")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--holdout", action="append", default=[], metavar="[NAME=]N",
        help="take N texts out of train, the same in every run, as split NAME (default: valid); repeatable",
    )  # fmt: skip
    output.add_argument("--keep-text", action="store_true", help="also keep the texts as SPLIT.jsonl")
    output.add_argument(
        "--by-length", action="store_true", help="train in order of length: batches of fairseq-train --no-shuffle then "
        "have hardly any padding (their order is still shuffled)",
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="replace data prepared with other options")
    return parser


Reader = Callable[[], Iterable[Item]]
Input = tuple[Reader, list[str], dict[str, Any]]  # what yields the texts, the splits, what changes when the input does


def reader(files: dict[str, Path], read: Callable[[Path], Any]) -> Reader:
    def items() -> Iterator[Item]:
        for name in sorted(files, key=lambda name: name != "train"):  # train first: its labels are the classes
            for item in read(files[name]):
                yield name, item

    return items


def fields(args: argparse.Namespace) -> formats.Fields:
    texts = tuple(name.strip() for name in (args.text_field or "text").split(","))
    if not 1 <= len(texts) <= 2 or not all(texts):
        raise UserError(f"--text-field {args.text_field}: give one column, or two that are a pair")
    return formats.Fields(texts, args.label_field or "label", header=not args.no_header)


def split_input(args: argparse.Namespace) -> Input:
    files, form = named_files("--split", args.split), args.format or "tsv"
    given = fields(args)
    if args.quoted and form != "tsv":
        raise UserError("--quoted: belongs to --format tsv (csv is quoted)")
    if args.no_header and form not in ("tsv", "csv"):
        raise UserError("--no-header: belongs to --format tsv or csv")
    if form in ("yelp", "squad") and (args.text_field or args.label_field):
        raise UserError(f"--text-field, --label-field: --format {form} has its own")
    read = reader(files, lambda path: formats.read_split(path, form, given, args.quoted))
    described = {"format": form, "fields": [list(given.texts), given.label, given.header, args.quoted]}
    return read, check_names(files), {**described, "files": {name: describe([path]) for name, path in files.items()}}


def folder_input(splits: dict[str, Path], read: Callable[[Path], Any], kind: str) -> Input:
    """Folders are recognised by the number and times of the files in them."""
    seen = {}
    for name, path in splits.items():
        found = [one.stat() for one in sorted(path.rglob("*")) if one.is_file()]
        seen[name] = [str(path.resolve()), len(found), sum(one.st_size for one in found), max(
            (one.st_mtime_ns for one in found), default=0
        )]  # fmt: skip
    return reader(splits, read), list(splits), {kind: seen}


def choose_input(args: argparse.Namespace, options: Options) -> tuple[Input, Options]:
    """The input, and the options with the classes that it is known to have."""
    if args.split:
        return split_input(args), options
    for flag in ("format", "text_field", "label_field", "no_header", "quoted"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')}: belongs to --split")
    if args.imdb:
        found = folder_input(formats.imdb_splits(args.imdb), formats.read_imdb, "imdb")
        return found, replace(options, classes=options.classes or ("neg", "pos"))
    if args.newsgroups:
        return folder_input(formats.newsgroup_splits(args.newsgroups), formats.read_newsgroups, "newsgroups"), options
    if args.glue:
        name = glue.glue_task(args.glue, args.glue_task)
        files, task = glue.glue_files(args.glue, name), glue.TASKS[name]
        described = {"glue": name, "files": {split: describe([path]) for split, path in files.items()}}
        read = reader(files, lambda path: glue.read_glue(path, name))
        return (read, list(files), described), replace(
            options, classes=task.classes, regression=task.top is not None, top=task.top
        )
    corpus = corpora.corpus(args.corpus)
    described = {"corpus": args.corpus, "sha256": corpus.distribution.sha256}
    read = lambda: corpora.read_corpus(args.corpus, args.cache_dir)  # noqa: E731
    return (read, list(SPLITS), described), replace(options, classes=corpus.classes)


def holdouts(values: list[str]) -> tuple[tuple[str, int], ...]:
    found = []
    for value in values:
        name, _, count = value.rpartition("=")
        if not count.isdigit() or not (name or "valid").replace("_", "").isalnum():
            raise UserError(f"--holdout {value}: expected N or NAME=N")
        found.append((name or "valid", int(count)))
    return tuple(found)


def print_report(report: dict[str, Any], destination: Path) -> None:
    print(f"dictionary: {report['types']:,} types, <mask> and fairseq's 4 included")
    names = report.get("classes", [])
    if names:
        print(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names[:20]))}"[:500])
    for name, split in report["splits"].items():
        if report.get("squad"):
            print(
                f"{name}: {split['documents']:,} questions about {split['paragraphs']:,} paragraphs, "
                f"{split['impossible']:,} without an answer; {split['mismatched_answers']:,} answers do not match, "
                f"{split['questions_without_usable_answer']:,} questions cannot be trained on; "
                f"{split['dropped']:,} dropped"
                + (f"; {split['left_out']:,} without an answer left out" if split["left_out"] else "")
            )
            continue
        notes = [f"{split['dropped']:,} dropped"] if split.get("dropped") else []
        notes += [f"held out of {split['held_out_of']}"] if "held_out_of" in split else []
        notes += [f"{split['also_in_train']:,} of them also in train"] if split.get("also_in_train") else []
        print(", ".join([f"{name}: {split['documents']:,} texts", *notes]))
        if "tokens" in split:
            share = split["unknown"] / max(split["tokens"], 1)
            print(
                f"  {split['tokens']:,} tokens, {share:.3%} unknown, longest {split['longest']:,}; "
                f"{split['truncated']:,} texts cut by {split['cut']:,} tokens"
            )
        if "classes" in split:
            print(f"  by class: {', '.join(map('{:,}'.format, split['classes'][:20]))}")
    print(f"train with: fairseq-train {destination} {report['flags']}")


def main() -> None:
    args = get_parser().parse_args()
    kinds = (args.corpus, args.glue, args.imdb, args.newsgroups, args.split)
    if sum(map(bool, kinds)) != 1:
        raise UserError("give one kind of input: --corpus, --glue, --imdb, --newsgroups or --split (see --help)")
    if args.glue_task and not args.glue:
        raise UserError("--glue-task: belongs to --glue")
    if (args.tokenizer is None) == (args.vocab_size is None):
        raise UserError("give --tokenizer or --vocab-size")
    known = args.corpus or args.glue
    if known and (args.labels or args.regression or args.top is not None):
        raise UserError(f"--labels, --regression, --top: the classes of {known} are known")
    options = Options(
        destination=args.destination,
        tokenizer=args.tokenizer or Path(),
        types=args.vocab_size,
        dict_file=args.dict,
        cased=None if args.case == "auto" else args.case == "cased",
        max_tokens=args.max_tokens,
        separator=None if args.separator == "auto" else args.separator == "yes",
        classes=tuple(name.strip() for name in args.labels.split(",")) if args.labels else (),
        regression=args.regression,
        top=args.top,
        holdout=holdouts(args.holdout),
        skip_bad=args.skip_bad,
        answerable_only=args.answerable_only,
        keep_text=args.keep_text,
        by_length=args.by_length,
        overwrite=args.overwrite,
    )
    (read, names, inputs), options = choose_input(args, options)
    options = replace(options, inputs={"splits": names, **inputs})
    squad = inputs.get("format") == "squad"
    if squad and (options.classes or options.regression or options.holdout or options.keep_text or options.by_length):
        raise UserError("--labels, --regression, --holdout, --keep-text, --by-length: not for --format squad")
    if args.answerable_only and not squad:
        raise UserError("--answerable-only: belongs to --format squad")
    if squad and args.vocab_size is not None:
        raise UserError("--vocab-size: not for --format squad; give a model's --tokenizer")
    if not squad:
        options.check(names)
    files = named_files("--split", args.split)

    def make() -> dict[str, Any]:
        return prepare_squad(files, options) if squad else prepare(read, names, options)

    prepare_once(options, make, lambda report: print_report(report, args.destination))


if __name__ == "__main__":
    run_main(main)
