#!/usr/bin/env python3
"""Draw runs, each a folder or a checkpoint, as one self-contained HTML page: `python scripts/report.py SYSTEM RUN ...
--out page.html`."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report_pages import adaptive_span, deep_pyramidion, dynamic_pooling, par_search, skimming

from fairseq_efficient.errors import run_main
from fairseq_efficient.report import page

SYSTEMS: dict[str, ModuleType] = {
    "deep_pyramidion": deep_pyramidion,
    "dynamic_pooling": dynamic_pooling,
    "par_search": par_search,
    "adaptive_span": adaptive_span,
    "skimming": skimming,
}
SHORT = {"pyramidion": "deep_pyramidion"}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parsers = parser.add_subparsers(dest="system", required=True, metavar="SYSTEM", help="what was trained:")
    for name, module in SYSTEMS.items():
        one = parsers.add_parser(
            name,
            aliases=[short for short, system in SHORT.items() if system == name],
            help=module.HELP,
            description=module.__doc__,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    page.write(SYSTEMS[SHORT.get(args.system, args.system)].build(args), args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MB)")


if __name__ == "__main__":
    run_main(main)
