#!/usr/bin/env python
"""Compare ours with a recording of a published implementation: prints the largest absolute difference of each quantity.

Exit status 0: all within tolerance; 1: some are not; 2: not a recording we know.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adaptive_span import recording as adaptive_span
from deep_pyramidion import recording as pyramidion
from dynamic_pooling import recording as dynamic_pooling
from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError, run_main
from par_search import recording as par_search
from skimming import recording as skimming

CHECKS = {**pyramidion.CHECKS, **dynamic_pooling.CHECKS, **skimming.CHECKS, **par_search.CHECKS, **adaptive_span.CHECKS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="+", metavar="FILE.pt", help="recording written by torch.save, with a 'kind'")
    failed = 0
    for name in parser.parse_args().file:
        recording = read_checkpoint(name)
        check = CHECKS.get(str(recording.get("kind")))
        if check is None:
            kind = recording.get("kind")
            raise UserError(f"{name}: kind {kind!r} is not one of {', '.join(sorted(CHECKS))}")
        print(f"{Path(name).name} ({recording['kind']})")
        count = 0
        for quantity in compared(check, recording, name):
            count += 1
            failed += not quantity.within
            verdict = "ok  " if quantity.within else "FAIL"
            tolerance = f"(tolerance {quantity.tolerance})"
            print(f"  {verdict} {quantity.name}: largest difference {quantity.largest:.3g} {tolerance}")
        if not count:
            raise UserError(f"{name}: the recording holds nothing to compare")
    print("all within tolerance" if not failed else f"{failed} quantities differ")
    return 1 if failed else 0


def compared(check: Callable[[Any], Iterator[Any]], recording: Any, name: str) -> Iterator[Any]:
    try:
        yield from check(recording)
    except KeyError as err:
        raise UserError(f"{name}: the recording has no {err}") from None


if __name__ == "__main__":
    run_main(main)
