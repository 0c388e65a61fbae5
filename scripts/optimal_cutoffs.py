#!/usr/bin/env python3
"""Print the cheapest cutoffs of an adaptive softmax: `--adaptive-softmax-cutoff $(python scripts/optimal_cutoffs.py
dict.txt --clusters 3)`."""

import argparse
import logging
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least
from fairseq_efficient.ops.optimal_cutoffs import LOGIT, optimal_cutoffs, partition_cost
from fairseq_efficient.text.reading import Bad, read_lines

EPILOG = """
FILE is a fairseq dictionary (dict.txt: "symbol count" a line; its ids are kept, special symbols come before them), or a
list of counts or probabilities, one a line in any order (ids are by falling count). Only the cutoffs go to standard
output; what they cost goes to standard error.

cost models
  time    multiply-adds of a token on average: (c0 + J) (d + x) + sum of p_i (d d_i + n_i (d_i + x)), for a head of c0
          types and J clusters, and tails of n_i types, probability p_i and width d_i = d / factor^i; x is what the
          softmax of a logit takes, counted in multiply-adds (--logit-cost)
  matmul  the same without x: the products alone
  size    sum over all bins, the head too, of types x count
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="dict.txt or a list of counts")
    parser.add_argument(
        "--clusters", type=int, default=3, metavar="K", help="bins with the head (default: %(default)s)"
    )
    parser.add_argument("--cost", choices=["time", "matmul", "size"], default="time", help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=512, help="--decoder-embed-dim of the model (default: %(default)s)")
    parser.add_argument(
        "--factor", type=float, default=4.0, help="its --adaptive-softmax-factor (default: %(default)s)"
    )
    parser.add_argument(
        "--logit-cost", type=float, metavar="X", help=f"x of --cost time (default: {LOGIT:g}, measured on a CPU)"
    )
    return parser


def is_list(path: Path) -> bool:
    """Whether the first line is a number alone. UserError for an empty file."""
    for line in read_lines(path):
        if isinstance(line, Bad):
            raise line.error()
        if line.text.strip():
            return len(line.text.split()) == 1
    raise UserError(f"{path}: is empty")


def read_list(path: Path) -> np.ndarray:
    """Falling counts. UserError for a line that is no number of at least 0."""
    counts = []
    for line in read_lines(path):
        if isinstance(line, Bad):
            raise line.error()
        if not line.text.strip():
            continue
        try:
            counts.append(float(line.text))
        except ValueError:
            raise UserError(f"{line.where}: expected a number, got {line.text.strip()[:40]!r}") from None
        if not (counts[-1] >= 0 and math.isfinite(counts[-1])):
            raise UserError(f"{line.where}: {line.text.strip()} is not a finite number of at least 0")
    return np.sort(np.array(counts))[::-1]


def read_dictionary(path: Path) -> tuple[np.ndarray, int]:
    """Counts by id, and how many ids are special symbols."""
    logging.disable(logging.INFO)
    from fairseq.data import Dictionary

    try:
        words = Dictionary.load(str(path))
    except Exception as err:  # fairseq raises bare ones too
        raise UserError(f"{path}: {' '.join(str(err).split())[:200]}") from None
    counts = np.array(words.count, dtype=np.float64)
    counts[: words.nspecial] = 0  # fairseq counts them as 1; how often they occur is not in the file
    if (counts < 0).any():
        raise UserError(f"{path}: {words[int(counts.argmin())]!r} has a negative count")
    return counts, words.nspecial


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 1, "clusters", "dim", "factor")
    check_least(args, 0, "logit_cost")
    if args.logit_cost is not None and args.cost != "time":
        raise UserError("--logit-cost is for --cost time")
    logit = LOGIT if args.logit_cost is None else args.logit_cost
    counts, special = (read_list(args.file), 0) if is_list(args.file) else read_dictionary(args.file)
    if not counts.sum() > 0:
        raise UserError(f"{args.file}: all counts are 0")
    if special + args.clusters > len(counts):
        raise UserError(
            f"--clusters {args.clusters}: more than the {len(counts) - special:,} types of {args.file} fill"
        )
    if special and (np.diff(counts[special:]) > 0).any():
        print(f"note: {args.file} is not sorted by count; ids stay as they are", file=sys.stderr)
    model = {} if args.cost == "size" else {"dim": args.dim, "factor": args.factor}
    model |= {"logit": logit} if args.cost == "time" else {}
    cutoffs, cost = optimal_cutoffs(counts, args.clusters, smallest_head=special + 1, **model)
    print(",".join(map(str, cutoffs)), flush=True)
    full = partition_cost(counts, [], **model)
    unit = "types x tokens" if args.cost == "size" else "multiply-adds a token"
    text = f"{len(counts):,} ids: {cost:,.0f} {unit}, {full / cost:.2f} times fewer than a full softmax"
    if not cutoffs:
        text += " (one cluster is a full softmax: leave --adaptive-softmax-cutoff out)"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
