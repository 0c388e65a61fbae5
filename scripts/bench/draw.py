#!/usr/bin/env python3
"""Draw the results of a benchmark again, from the JSON that it wrote."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_efficient.bench.machine import describe
from fairseq_efficient.bench.picture import draw
from fairseq_efficient.bench.rows import read_rows
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON file of a benchmark, with its rows")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    args = parser.parse_args()
    check_output(args.picture, "picture")
    try:
        document = json.loads(args.results.read_text(encoding="utf-8"))
        about, machine = document["picture"], describe(document["machine"])
        device = document["settings"]["device"]
    except OSError as err:
        raise UserError(f"{args.results}: {err.strerror}") from None
    except (ValueError, KeyError, TypeError) as err:
        raise UserError(f"{args.results}: not the results of a benchmark ({type(err).__name__}: {err})") from None
    draw(args.picture, read_rows(document), about["ours"], f"{machine}, {device}", about["sizes"])
    print(f"wrote {args.picture}")
    return 0


if __name__ == "__main__":
    run_main(main)
