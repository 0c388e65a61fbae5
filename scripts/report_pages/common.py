"""What all pages need: files of a run, and the footer."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairseq_efficient.bench import machine
from fairseq_efficient.errors import UserError

CHECKPOINTS = ("checkpoints/checkpoint_best.pt", "checkpoints/checkpoint_last.pt")


def find_files(
    run: Path, places: Mapping[str, Sequence[str]], given: Mapping[str, Path | None] | None = None
) -> dict[str, Path | None]:
    """For each name the path given by its flag, or the first of its places in ``run`` that exists, or None.

    UserError for a folder that is none and for a flag whose path does not exist.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder")
    paths: dict[str, Path | None] = {}
    for name, candidates in places.items():
        path = (given or {}).get(name)
        flag = f" (--{name.replace('_', '-')})" if given is not None and name in given else ""
        if path is not None and not path.exists():
            raise UserError(f"{flag.strip(' ()')} {path}: no such file or folder")
        paths[name] = path or next((run / place for place in candidates if (run / place).exists()), None)
        if paths[name] is None:
            print(f"no {run / candidates[0]}: left out{flag}", file=sys.stderr)
    return paths


def footer() -> list[tuple[str, str]]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = machine.provenance(machine.this_command(), torch.get_num_threads(), device)
    commit = (found["commit"] or "unknown")[:12] + (" with changes" if found["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        ("date", found["date"]),
        ("machine", machine.describe(found["machine"])),
        ("versions", versions),
        ("commit", commit),
        ("command", found["command"]),
    ]
