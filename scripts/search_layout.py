#!/usr/bin/env python3
"""Search with several seeds, one after the other, and show what they found: `python scripts/search_layout.py RUN_DIR
--seeds 1,2,3 -- DATA --arch par_supernet_tiny ...`."""

import argparse
import contextlib
import io
import json
import runpy
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "experiments")]

# ruff: noqa: E402

from experiment_parts.stages import StageFailed, fairseq, read_training_log, run, show_training

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import write_json, write_text
from fairseq_efficient.flags import numbers

EPILOG = """
What follows -- are the arguments of fairseq-train; --seed, --save-dir, --log-file, --log-format json and the plugin are
added. Each seed has a folder RUN_DIR/seedN with checkpoints/, train.log and layout.json. A seed whose training has
ended is not trained again, one that was stopped goes on from its last checkpoint; both only with the same arguments.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN_DIR [--seeds N,N] [--derive FLAGS] -- ARGUMENTS OF FAIRSEQ-TRAIN",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the runs")
    parser.add_argument("--seeds", default="1,2,3", metavar="N,N", help="default: %(default)s")
    parser.add_argument("--derive", default="", metavar="FLAGS", help="of derive_layout.py: --derive='...'")
    return parser


def seeds_of(text: str) -> list[int]:
    found: list[int] = numbers("--seeds", text)
    if len(found) < len(text.split(",")):
        raise UserError(f"--seeds {text}: must be different numbers")
    return found


def check(words: list[str]) -> list[str]:
    """The arguments of fairseq-train; UserError for those that belong to this script."""
    if not words:
        raise UserError("the arguments of fairseq-train are missing (after --)")
    for word in words:
        if word.split("=")[0] in ("--seed", "--save-dir", "--log-file", "--log-format"):
            raise UserError(f"{word}: is set by this script for each seed")
    return words


def last_update(words: list[str]) -> int:
    """What --max-update says; 0: nothing."""
    pairs = pairwise([part for word in words for part in word.split("=", 1)])
    return next((int(value) for flag, value in pairs if flag == "--max-update" and value.isdigit()), 0)


def train_one(words: list[str], folder: Path, seed: int) -> None:
    """Train until it ends by itself; UserError if the command was wrong, StageFailed if it failed."""
    done, kept = folder / "done", folder / "arguments.json"
    begun = done.exists() or (folder / "checkpoints" / "checkpoint_last.pt").exists()
    if begun and kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != words:
        raise UserError(f"{folder}: was searched with other arguments; give another RUN_DIR")
    if done.exists():
        print(f"seed {seed}: trained already ({folder})", flush=True)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"{folder}: {err.strerror}") from None
    if not begun or not kept.exists():
        write_json(kept, words)
    more = ["--seed", str(seed), "--save-dir", str(folder / "checkpoints"), "--log-format", "json", "--log-file",
            str(folder / "train.log")]  # fmt: skip
    if not any(word.split("=")[0] == "--user-dir" for word in words):
        more += ["--user-dir", str(ROOT / "par_search")]
    log = folder / "output.log"
    if not begun or not log.exists() or not read_training_log(log).finished:  # fairseq would do one update more
        print(f"seed {seed}: {log}", flush=True)
        show = show_training(f"seed {seed}", last_update(words))
        try:
            run([*fairseq("train"), *words, *more], log, show, append=True)
        except StageFailed as err:
            said = [line for line in str(err).splitlines() if line.startswith("error: ")]
            if said:
                raise UserError(f"seed {seed}: {said[-1].removeprefix('error: ')}") from None
            raise
    done.touch()


def derive_one(folder: Path, flags: str) -> dict[str, Any]:
    """What scripts/derive_layout.py writes of the last checkpoint; its text goes to layout.txt."""
    script, result = str(ROOT / "scripts" / "derive_layout.py"), folder / "layout.json"
    argv = [script, str(folder / "checkpoints" / "checkpoint_last.pt"), "--json", str(result), *flags.split()]
    text = io.StringIO()
    with patch.object(sys, "argv", argv), contextlib.redirect_stdout(text):
        runpy.run_path(script)["main"]()
    write_text(folder / "layout.txt", text.getvalue())
    return dict(json.loads(result.read_text(encoding="utf-8")))


def derived_before(run: Path, words: list[str]) -> dict[int, dict[str, Any]]:
    """Of seeds that were searched in ``run`` by the same arguments."""
    found = {}
    for folder in run.glob("seed*"):
        kept, result, number = folder / "arguments.json", folder / "layout.json", folder.name.removeprefix("seed")
        ended = number.isdigit() and (folder / "done").exists() and result.exists()
        if ended and kept.exists() and json.loads(kept.read_text(encoding="utf-8")) == words:
            found[int(number)] = json.loads(result.read_text(encoding="utf-8"))
    return found


def summary(found: dict[int, dict[str, Any]]) -> str:
    width = max(len(one["layout"]) for one in found.values())
    unit = next(iter(found.values()))["unit"]
    lines = [f"seed  {'layout':{width}}  attention  cost ({unit})"]
    for seed, one in found.items():
        layout = one["layout"]
        lines.append(f"{seed:4}  {layout:{width}}  {layout.count('a'):9}  {one['cost']:.4g}")
    places = Counter(place for one in found.values() for place, kind in enumerate(one["with_identity"]) if kind == "a")
    blocks = len(next(iter(found.values()))["with_identity"])
    shares = " ".join(f"{places[place] / len(found):.2f}" for place in range(blocks))
    return "\n".join([*lines, f"share of seeds with attention, block by block: {shares}"])


def main() -> int:
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = get_parser().parse_args(sys.argv[1:place])
    seeds, words = seeds_of(args.seeds), check(sys.argv[place + 1 :])
    found = {}
    try:
        for seed in seeds:
            train_one(words, args.run / f"seed{seed}", seed)
            found[seed] = derive_one(args.run / f"seed{seed}", args.derive)
    except StageFailed as err:
        print(err, file=sys.stderr)
        return 1
    known = dict(sorted({**derived_before(args.run, words), **found}.items()))
    print(summary(known))
    write_json(args.run / "layouts.json", known)
    for seed, one in found.items():
        print(f"train the layout of seed {seed}:\n{one['command']}")
    return 0


if __name__ == "__main__":
    run_main(main)
