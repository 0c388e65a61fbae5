"""What all pages need: files of a run, its model, and the footer."""

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_efficient.bench import machine
from fairseq_efficient.errors import UserError

_SAVED = "checkpoints"  # folder of them in a run's
CHECKPOINTS = (f"{_SAVED}/checkpoint_best.pt", f"{_SAVED}/checkpoint_last.pt", "checkpoint_best.pt",
               "checkpoint_last.pt", "model.safetensors", "model.pt")  # fmt: skip
RUN = "folder of a run, or a checkpoint in it"


def folder_of(run: Path) -> Path:
    """The folder of a run, of which one may also name a checkpoint. UserError if there is neither."""
    if run.is_file():
        return run.parent.parent if run.parent.name == _SAVED else run.parent
    if not run.is_dir():
        raise UserError(f"{run}: no such file or folder")
    return run


def find_files(
    named: Path, places: Mapping[str, Sequence[str]], given: Mapping[str, Path | None] | None = None
) -> dict[str, Path | None]:
    """For each name the path given by its flag, or the first of its places in the run's folder that exists, or None.

    ``named``: see :func:`folder_of`; a checkpoint stands for the place of that name. UserError for a folder that is
    none and for a flag whose path does not exist.
    """
    run = folder_of(named)
    paths: dict[str, Path | None] = {}
    for name, candidates in places.items():
        path = (given or {}).get(name)
        if path is None and name == "checkpoint" and named.is_file():
            path = named
        flag = f" (--{name.replace('_', '-')})" if given is not None and name in given else ""
        if path is not None and not path.exists():
            raise UserError(f"{flag.strip(' ()')} {path}: no such file or folder")
        paths[name] = path or next((run / place for place in candidates if (run / place).exists()), None)
        if paths[name] is None:
            print(f"no {run / candidates[0]}: left out{flag}", file=sys.stderr)
    return paths


def run_names(args: argparse.Namespace) -> list[str]:
    """``--names``, or the part of the folders' paths in which they differ; UserError if they are not told apart."""
    if args.names:
        names = [name.strip() for name in args.names.split(",")]
        if len(names) != len(args.runs):
            raise UserError(f"--names {args.names}: {len(names)} names for {len(args.runs)} runs")
    else:
        folders = [folder_of(run) for run in args.runs]
        told = folders if len(set(folders)) == len(folders) else args.runs
        paths = [list(run.resolve().parts) for run in told]
        while len(paths) > 1 and min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
            paths = [path[:-1] for path in paths]
        while len(paths) > 1 and min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
            paths = [path[1:] for path in paths]
        own = 2 if re.fullmatch(r"seed\d+.*", paths[0][-1]) else 1  # MODEL/seedN, as the quality run names its folders
        names = ["/".join(path if len(paths) > 1 else path[-own:]) for path in paths]
    if len(set(names)) < len(names) or not all(names):
        raise UserError("the runs must be different folders (or give them different --names)")
    return names


def load_model(checkpoint: Path, system: str, data: Path | None = None) -> Any:
    """What :func:`fairseq_efficient.hub.loading.load` gives for a checkpoint of the package ``system``."""
    logging.disable(logging.INFO)
    importlib.import_module(system)
    from fairseq_efficient.hub.loading import load

    return load(checkpoint, data_name_or_path=data)


def updates_of(checkpoint: Path) -> int:
    """Updates of training behind a checkpoint; 0 where it does not say (an exported model)."""
    from fairseq_efficient.checkpoints import read_checkpoint

    history = read_checkpoint(str(checkpoint)).get("optimizer_history") or [{}]
    return int(history[-1].get("num_updates") or 0)


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
