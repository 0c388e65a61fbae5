#!/usr/bin/env python3
"""Docstrings as HTML pages, one a module, with a search: `python scripts/render_api.py`."""

import argparse
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fairseq_efficient.errors import UserError, run_main  # noqa: E402
from fairseq_efficient.systems import SYSTEMS  # noqa: E402

EPILOG = """
Needs pdoc (pip install pdoc; scripts/bootstrap.sh has it). Pages of modules that are gone stay: remove DIR first.
"""
PACKAGES = (*SYSTEMS, "fairseq_efficient")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "api", metavar="DIR", help="(default: docs/api)")
    parser.add_argument(
        "--modules", nargs="+", default=PACKAGES, metavar="NAME", help="these and what is in them (default: all)"
    )
    return parser


def main() -> int:
    args = get_parser().parse_args()
    try:
        import pdoc
    except ImportError:
        raise UserError("pdoc is not installed: pip install pdoc") from None
    for name in args.modules:
        if name.partition(".")[0] not in PACKAGES:
            raise UserError(f"--modules {name}: not in one of {', '.join(PACKAGES)}")
    pdoc.render.configure(docformat="google", show_source=False, footer_text="fairseq-efficient")
    warnings.filterwarnings("ignore", "Cannot find spec", module="pdoc")  # it raises too, in one line
    try:
        pdoc.pdoc(*args.modules, output_directory=args.out)
    except (RuntimeError, ValueError) as err:  # no module of that name
        raise UserError(f"--modules: {err}") from None
    except OSError as err:
        raise UserError(f"--out {args.out}: {err.strerror}") from None
    print(f"wrote {args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    run_main(main)
