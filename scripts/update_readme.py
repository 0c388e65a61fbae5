#!/usr/bin/env python
"""Write what README.md, docs/results/README.md and docs/reliability.md say of docs/results/*.json; ``--check`` only
says whether they are up to date."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# ruff: noqa: E402
from readme_parts import benches, decision, pretrained, quality
from readme_parts.files import load

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import write_text
from fairseq_efficient.report import reliability

BEGIN, END = "<!-- {}: written by scripts/update_readme.py from docs/results/*.json -->", "<!-- /{} -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if one is out of date")
    check = parser.parse_args().check
    return max([update(name, parts, check) for name, parts in documents().items()])


def documents() -> dict[str, dict[str, str]]:
    """Document -> name of a section -> what belongs there."""
    results = "\n".join([benches.best(), "Quality ([tables, all sizes](docs/results/README.md)):", quality.lines()])
    return {
        "README.md": {"decision": decision.section(), "pretrained": pretrained.section(), "results": results},
        "docs/results/README.md": {"results": tables()},
        "docs/reliability.md": {"results": reliability.section(load("reliability.json"))},
    }


def tables() -> str:
    """Of each system speed, then quality; what was not measured is left out."""
    pairs = zip(benches.BENCHES, quality.tables(), strict=True)
    parts = [part for bench, table in pairs for part in (benches.speed(bench), table)]
    return "\n".join(part for part in [*parts, benches.speed(benches.PEERS)] if part)


def update(name: str, parts: Mapping[str, str], check: bool) -> int:
    """Put each of ``parts`` between its markers in a document; 1 if it is out of date and shall not be changed."""
    path = ROOT / name
    text = new = path.read_text(encoding="utf-8")
    for section, content in parts.items():
        begin, end = BEGIN.format(section), END.format(section)
        if begin not in new or end not in new:
            raise UserError(f"{name}: the markers of the section {section} are missing")
        head, rest = new.split(begin)
        new = head + begin + "\n" + content + end + rest.split(end)[1]
    if new == text:
        print(f"{name} is up to date")
        return 0
    if check:
        print(f"{name} is out of date: run scripts/update_readme.py")
        return 1
    write_text(path, new)
    print(f"{name} written")
    return 0


if __name__ == "__main__":
    run_main(main)
