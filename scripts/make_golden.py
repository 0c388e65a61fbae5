#!/usr/bin/env python
"""Write tests/golden/VERSION: a tiny checkpoint of every model with every family of options, and what it computes.

Done once for each release, of the version in setup.py; what is there is never written again, because later versions
must load it. Families are listed in tests/reliability/golden.py.
"""

import argparse
import contextlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import efficient_systems  # noqa: F401  (registers)
from fairseq_efficient.checkpoints import atomic_save, read_checkpoint
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import chosen
from fairseq_efficient.tensor_files import tensor_file
from fairseq_efficient.text.prepared import staging
from tests.made_data import make_pair_data, make_sentence_data, make_stream_data
from tests.reliability import golden
from tests.squad_data import prepared, random_squad
from tests.util import run_in_process, train_args

MAKE: dict[str, Callable[[Path], Path]] = {
    "pairs": make_pair_data,
    "questions": lambda folder: prepared(folder, train=random_squad(12)),
    "sentences": make_sentence_data,
    "stream": make_stream_data,
}
DICTIONARIES = "**/dict*.txt"


def this_version() -> str:
    """That of the package, without what says that it is under way."""
    return importlib.metadata.version("fairseq-efficient").partition(".dev")[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """fairseq's own lines go nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def write_one(one: golden.Golden, data: Path, out: Path, work: Path) -> None:
    """Train, keep what shall be kept, and check its size."""
    save, path = work / one.name, out / one.file
    flags = ("--max-update", str(golden.UPDATES), "--no-epoch-checkpoints", "--disable-validation")
    with quiet():
        run_in_process("train", train_args(data, save, one.system, *flags))
    state: dict[str, Any] = read_checkpoint(str(save / "checkpoint_last.pt"))
    state["cfg"]["task"]["data"] = "data"  # no folders of this machine
    for section, name in (("checkpoint", "save_dir"), ("common", "user_dir")):
        state["cfg"][section][name] = one.system.user_dir if name == "user_dir" else "checkpoints"
    if one.tensors:
        path.write_bytes(tensor_file(state))
    else:
        if not one.state:
            state.update(last_optimizer_state=None)
        atomic_save(state, str(path))
    size = path.stat().st_size
    if size > golden.LARGEST:
        raise UserError(f"{path.name}: {size:,} bytes are more than {golden.LARGEST:,}; make its model smaller")
    print(f"{path.name}: {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=golden.FOLDER, metavar="DIR", help="default: tests/golden")
    parser.add_argument("--only", metavar="NAME,NAME", help="of the families (to try it; give another --out)")
    args = parser.parse_args()
    known = {one.name: one for one in golden.GOLDEN}
    names = chosen("--only", args.only, known) if args.only else list(known)
    if args.only and args.out == golden.FOLDER:
        raise UserError("--only: a release has all families; give another --out")
    version = args.out / this_version()
    if version.exists():
        raise UserError(f"{version} exists: what a version wrote is not written again")
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    with staging(version) as out, tempfile.TemporaryDirectory() as work:
        write(out, Path(work), [known[name] for name in names])
    print(f"wrote {version}")


def write(out: Path, work: Path, families: list[golden.Golden]) -> None:
    from safetensors.torch import save_file

    made, outputs = {}, {}
    for one in families:
        place = golden.data_of(out, one)
        if place not in made:
            made[place] = MAKE[place.name](work / place.name)
            for file in made[place].glob(DICTIONARIES):
                target = place / file.relative_to(made[place])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        write_one(one, made[place], out, work)
        outputs[one.file] = golden.compute(out / one.file, place, one.system.data)
    save_file(outputs, out / golden.OUTPUTS)
    size = (out / golden.OUTPUTS).stat().st_size
    if size > golden.LARGEST:
        raise UserError(f"{golden.OUTPUTS}: {size:,} bytes are more than {golden.LARGEST:,}")


if __name__ == "__main__":
    run_main(main)
