#!/usr/bin/env python
"""Train and read tiny models of every system for as long as asked; memory, open files and data workers must not grow.

Each system gets an equal share of the time: four fifths of it for one endless training that validates and saves all the
while, its data read by workers that start anew with each epoch; one fifth for a process that loads its checkpoint and
evaluates it, over and over. Both are watched from outside.
Exit status 0: flat; 1: something grew, or ended by itself.
"""

import argparse
import contextlib
import dataclasses
import gc
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.bench.machine import provenance, this_command
from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output, write_json
from fairseq_efficient.flags import check_least, chosen
from tests.made_data import make_pair_data, make_sentence_data, make_stream_data
from tests.reliability.systems import MAIN_SYSTEMS
from tests.util import System, train_args

MAKE: dict[str, Callable[[Path], Any]] = {"pairs": make_pair_data, "sentences": make_sentence_data}
NAMES = [system.user_dir for system in MAIN_SYSTEMS]
ENDLESS = ("--max-update", str(10**9), "--save-interval-updates", "20", "--keep-interval-updates", "2",
           "--no-epoch-checkpoints", "--log-interval", "20")  # fmt: skip
START = 120.0  # seconds a process may take until it works
ALLOWANCE = 8.0  # MB that the allocator may take or give back in any time
FILES = 2  # that may be open for a moment
SHARED = 50  # files of the batches that wait between a worker and the training, one for each tensor: as many as fit


@dataclasses.dataclass
class Watched:
    """One process: seconds since the first sample, resident MB, open files, files in shared memory; how many processes
    it has started that still are there, and the MB of the largest of them."""

    system: str
    what: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    megabytes: list[float] = dataclasses.field(default_factory=list)
    files: list[int] = dataclasses.field(default_factory=list)
    shared: list[int] = dataclasses.field(default_factory=list)
    workers: list[int] = dataclasses.field(default_factory=list)
    worker_megabytes: list[float] = dataclasses.field(default_factory=list)

    def add(self, process: psutil.Process) -> None:
        self.seconds.append(time.monotonic() - (self._start if self.seconds else self._begin()))
        self.megabytes.append(process.memory_info().rss / 2**20)
        shared = [name.startswith("/dev/shm/") for name in open_files(process)]
        self.files.append(shared.count(False))
        self.shared.append(shared.count(True))
        sizes = [0.0]
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                sizes.append(child.memory_info().rss / 2**20)
        self.workers.append(len(sizes) - 1)
        self.worker_megabytes.append(max(sizes))

    def _begin(self) -> float:
        self._start = time.monotonic()
        return self._start

    def slope(self) -> float:
        """MB a minute after the first third, which warms up: the median of the slopes between all pairs of samples
        (Theil and Sen), which jumps and single samples do not move."""
        third = len(self.seconds) // 3
        points = list(zip(self.seconds[third:], self.megabytes[third:], strict=True))
        return 60 * statistics.median((y - b) / (x - a) for (a, b), (x, y) in itertools.combinations(points, 2))

    def stayed(self, counts: list[int]) -> float:
        """How much more there is in the last third than in the second: the least by which minimum, median and maximum
        grew. What comes and goes moves one of them now and then, what is never given back all three."""
        third = len(counts) // 3
        before, after = counts[third : 2 * third], counts[2 * third :]
        return min(measure(after) - measure(before) for measure in (min, statistics.median, max))

    def worker_growth(self) -> float:
        """MB, of the largest in the last third over the largest in the second; 0 where one has none."""
        third = len(self.worker_megabytes) // 3
        before, after = max(self.worker_megabytes[third : 2 * third]), max(self.worker_megabytes[2 * third :])
        return after - before if before and after else 0.0

    def summary(self) -> dict[str, Any]:
        minutes, slope = self.seconds[-1] / 60, self.slope()
        return {
            "system": self.system,
            "what": self.what,
            "minutes": round(minutes, 2),
            "samples": len(self.seconds),
            "megabytes": round(statistics.median(self.megabytes[-len(self.megabytes) // 3 :]), 1),
            "growth_mb": round(slope * minutes * 2 / 3, 2),
            "mb_per_minute": round(slope, 3),
            "files_growth": self.stayed(self.files),
            "shared_growth": self.stayed(self.shared),
            "workers": max(self.workers),
            "workers_growth": self.stayed(self.workers),
            "worker_growth_mb": round(self.worker_growth(), 2),
        }


def grew(found: dict[str, Any], limit: float) -> bool:
    """Whether memory grew by more than ``limit`` MB a minute and more than the allocator may, or open files, those
    in shared memory, or workers or their memory."""
    more = found["mb_per_minute"] > limit and found["growth_mb"] > ALLOWANCE
    workers = found["workers_growth"] > 0 or found["worker_growth_mb"] > ALLOWANCE
    return bool(more or workers or found["files_growth"] > FILES or found["shared_growth"] > SHARED)


def open_files(process: psutil.Process) -> Iterator[str]:
    """What each of its file descriptors is open on; elsewhere than on Linux, an empty name for each."""
    folder = Path(f"/proc/{process.pid}/fd")
    if not folder.exists():
        yield from [""] * process.num_fds()
        return
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            yield os.readlink(entry)


@contextlib.contextmanager
def started(command: list[str], log: Path, works: str) -> Iterator[psutil.Process]:
    """A process that has written ``works`` into its log; it is ended with the block.

    Raises:
        UserError: it ended, or did not begin to work.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + START * float(os.environ.get("TEST_PATIENCE", "1"))
        while works not in log.read_text(encoding="utf-8", errors="replace"):
            if child.poll() is not None or time.monotonic() > end:
                raise UserError(f"{' '.join(command[:4])} ... does not work: see {log}")
            time.sleep(0.2)
        yield psutil.Process(child.pid)
        if child.poll() is not None:
            raise UserError(f"{' '.join(command[:4])} ... ended by itself: see {log}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.wait()


def watch(system: System, what: str, process: psutil.Process, seconds: float) -> Watched:
    """About 200 samples."""
    found, end = Watched(system.arch, what), time.monotonic() + seconds
    while time.monotonic() < end or len(found.seconds) < 9:
        with contextlib.suppress(psutil.Error, OSError):  # started() says that it ended
            found.add(process)
        time.sleep(seconds / 200)
    return found


def soak(system: System, folder: Path, seconds: float, workers: int) -> list[Watched]:
    data = folder / system.data
    if not data.exists():
        MAKE.get(system.data, make_stream_data)(data)
    save = folder / system.arch
    train = [
        sys.executable,
        "-m",
        "fairseq_cli.train",
        *train_args(data, save, system, *ENDLESS, "--num-workers", str(workers)),
    ]
    with started(train, folder / f"{system.arch}.train.log", '"num_updates": "40"') as process:
        found = [watch(system, "training", process, seconds * 0.8)]
    read = [sys.executable, str(Path(__file__).resolve()), "--read", str(save / "checkpoint_last.pt"), str(data)]
    with started([*read, system.user_dir], folder / f"{system.arch}.read.log", "read 3 times") as process:
        found.append(watch(system, "reading", process, seconds * 0.2))
    return found


def read_for_ever(path: str, data: str, system: str) -> None:
    """Load a checkpoint and evaluate it on the split ``valid``, again and again."""
    import importlib

    import torch
    from fairseq import checkpoint_utils, tasks

    importlib.import_module(system)
    torch.set_num_threads(1)
    times = 0
    while True:
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], {"data": data})
        model, criterion = models[0].eval(), task.build_criterion(cfg.criterion)
        task.load_dataset("valid")
        assert isinstance(task, tasks.FairseqTask)
        batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=4, ignore_invalid_inputs=True)
        for sample in batches.next_epoch_itr(shuffle=False):
            task.valid_step(sample, model, criterion)
        gc.collect()  # models and their files are in cycles; what Python frees sooner or later is no leak
        times += 1
        if times <= 3:
            print(f"read {times} times", flush=True)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all systems together (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=1.0, metavar="MB", help="a minute (default: %(default)s)")
    parser.add_argument("--systems", default=",".join(NAMES), metavar="NAME,NAME", help="default: all")
    parser.add_argument("--num-workers", type=int, default=1, help="that read data in training (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--read", nargs=3, metavar=("CKPT", "DATA", "SYSTEM"), help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = get_parser().parse_args()
    if args.read:
        read_for_ever(*args.read)
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes}: must be greater than 0")
    check_least(args, 0, "num_workers")
    systems = chosen("--systems", args.systems, NAMES)
    check_output(args.json, "--json")
    found = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for system in MAIN_SYSTEMS:
            if system.user_dir in systems:
                for one in soak(system, Path(folder), args.minutes * 60 / len(systems), args.num_workers):
                    found.append(one.summary())
                    print(describe(found[-1], args.limit), flush=True)
    if args.json:
        report = {**provenance(this_command(), 1), "limit_mb_per_minute": args.limit, "processes": found}
        write_json(args.json, report, "--json")
    return 1 if any(grew(one, args.limit) for one in found) else 0


def describe(found: dict[str, Any], limit: float) -> str:
    verdict = "GREW" if grew(found, limit) else "flat"
    return (
        f"{verdict}  {found['system']} {found['what']}: {found['minutes']} min, {found['megabytes']} MB, "
        f"{found['mb_per_minute']:+} MB a minute, open files {found['files_growth']:+}, "
        f"in shared memory {found['shared_growth']:+}, data workers {found['workers_growth']:+}"
    )


if __name__ == "__main__":
    run_main(main)
