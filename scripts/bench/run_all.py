#!/usr/bin/env python3
"""Run all benchmarks, one after the other: one table, one page. `python scripts/bench/run_all.py --quick`"""

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# ruff: noqa: E402
sys.path.insert(0, str(FOLDER.parents[1]))

from fairseq_efficient.bench.rows import HEADER, read_rows, summary, table_line, table_row
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least, chosen
from fairseq_efficient.report import benches
from fairseq_efficient.report.page import write

BENCHES = {
    "deep_pyramidion": "Pyramidion",
    "dynamic_pooling": "Dynamic pooling",
    "skimming": "Skimming",
    "par_search": "PAR search",
    "adaptive_span": "Adaptive spans",
    "precision": "bf16",
    "peers": "Peers",
}
OPTIONAL = {"peers": "transformers"}  # benchmark -> package that it needs and that is not always there
EPILOG = """
DIR then holds bench_NAME.json and bench_NAME.png of each benchmark and index.html, all of them on one page. One that
fails or is interrupted does not lose the others. With --quick below 5 minutes on 2 cores; without, about two hours.
The machine should be idle: everything is measured against a baseline in the same run, but not at the same instant.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=FOLDER.parents[1] / "runs" / "bench",
        metavar="DIR",
        help="where everything goes (default: runs/bench)",
    )
    parser.add_argument("--quick", action="store_true", help="the rows that matter most, at small sizes")
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {','.join(BENCHES)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    return parser


def command(name: str, args: argparse.Namespace) -> list[str]:
    found = [sys.executable, str(FOLDER / f"{name}.py"), "--threads", str(args.threads), "--device", args.device]
    found += ["--json", str(args.out / f"bench_{name}.json")]
    found += [] if name == "precision" else ["--png", str(args.out / f"bench_{name}.png")]
    return [*found, "--quick"] if args.quick else found


def run(name: str, args: argparse.Namespace) -> int:
    """The exit status of a benchmark; 130 if it was interrupted. What it prints is shown as it comes."""
    (args.out / f"bench_{name}.json").unlink(missing_ok=True)  # of an earlier run
    print(f"== {BENCHES[name]}", flush=True)
    with subprocess.Popen(command(name, args)) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has got it too, and writes what it has
            child.wait()
            return 130


def present(names: list[str]) -> list[str]:
    """Those whose packages are installed; it says which are left out."""
    missing = {name: OPTIONAL[name] for name in names if name in OPTIONAL and not find_spec(OPTIONAL[name])}
    for name, package in missing.items():
        print(f"== {BENCHES[name]}: left out, {package} is not installed (pip install 'fairseq-efficient[{name}]')")
    return [name for name in names if name not in missing]


def collected(names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """title -> document of each benchmark that wrote one."""
    found = {}
    for name in names:
        path = folder / f"bench_{name}.json"
        if path.is_file():
            found[BENCHES[name]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> int:
    args = get_parser().parse_args()
    names = chosen("--only", args.only, BENCHES) if args.only else present(list(BENCHES))
    check_least(args, 1, "threads")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"--out {args.out}: {err.strerror}") from None
    start, statuses = time.monotonic(), {}
    for name in names:
        statuses[name] = run(name, args)
        if statuses[name] == 130:
            break
    documents = collected(list(statuses), args.out)
    failed = [BENCHES[name] for name, status in statuses.items() if status and BENCHES[name] not in documents]
    print(f"\n{table_line(HEADER)}")
    rows = [row for document in documents.values() for row in read_rows(document)]
    for row in rows:
        print(table_row(row))
    print(summary(rows))
    write(benches.page(documents, failed), args.out / "index.html")
    print(f"wrote {args.out / 'index.html'} after {(time.monotonic() - start) / 60:.1f} minutes")
    worst = max(statuses.values(), default=0)
    return 130 if 130 in statuses.values() else int(worst != 0)


if __name__ == "__main__":
    run_main(main)
