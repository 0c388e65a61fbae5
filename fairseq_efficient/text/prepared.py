"""Folders of prepared data: files named on a command line, an earlier run recognised, a new one renamed when whole."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fairseq_efficient.errors import DISK, CannotWrite, UserError
from fairseq_efficient.text.reading import parse_json

FORMAT = 1  # of prepare.json
Report = dict[str, Any]


class Prepared(Protocol):
    """What :func:`existing` asks of a script's options."""

    @property
    def destination(self) -> Path: ...

    @property
    def overwrite(self) -> bool: ...

    def fingerprint(self) -> dict[str, Any]: ...


def read_file(path: Path) -> bytes:
    """The content; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None


def read_object(path: Path, otherwise: str) -> dict[str, Any]:
    """The JSON object in a file; UserError, saying ``otherwise``, if it holds anything else."""
    try:
        found = parse_json(read_file(path))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: {otherwise}")
    return found


def sha256_or_none(path: Path | None) -> str | None:
    """Of a file's content; None for no file."""
    return None if path is None else hashlib.sha256(read_file(path)).hexdigest()


def named_files(flag: str, values: list[str], default: str | None = None) -> dict[str, Path]:
    """``NAME=FILE`` arguments as a dict in order; UserError for a bad or repeated name."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, file = value.partition("=")
        if default is not None and (not equals or Path(value).exists()):
            name, file = default, value
        elif not equals or not file:
            raise UserError(f"{flag} {value}: expected NAME=FILE")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(f"{flag} {value}: a split name has letters, digits, - and _ only")
        if name in found:
            raise UserError(f"{flag} {value}: split {name} is given twice")
        found[name] = Path(file)
    return found


def check_names(names: Iterable[str]) -> list[str]:
    """fairseq joins train, train1, train2 ... into one: refuse such names side by side."""
    names = list(names)
    for name in names:
        for other in names:
            if re.fullmatch(rf"{re.escape(name)}\d+", other):
                raise UserError(f"split names {name} and {other}: fairseq-train would join them; rename one")
    return names


def describe(paths: list[Path]) -> list[list[Any]]:
    """Name, size and time of files, to notice that they changed."""
    for path in paths:
        try:
            there = path.is_file()
        except OSError as err:
            raise UserError(f"{str(path)[:80]}: {err.strerror}") from None
        if not there:
            raise UserError(f"{path}: No such file")
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def train_split(names: list[str]) -> str:
    """The split that vocabulary and counts come from: ``train`` if there is one, else the first."""
    return "train" if "train" in names else names[0]


def _files(folder: Path) -> list[str]:
    """Everything inside that is not a folder with something in it, by its name from there."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    return [path.relative_to(folder).as_posix() for path in found]


def _made_here(destination: Path) -> dict[str, Any] | None:
    """prepare.json of a folder that an earlier run wrote, or None."""
    with contextlib.suppress(OSError, ValueError):
        report = parse_json((destination / "prepare.json").read_text(encoding="utf-8"))
        if isinstance(report, dict) and report.get("format") == FORMAT:
            files = report.get("files", [])
            if isinstance(files, list) and all(isinstance(one, str) and len(one) < 256 for one in files):
                return report
    return None


def read_report(folder: Path) -> Report | None:
    """prepare.json; None where there is none (fairseq-preprocess made the data). UserError if it is damaged."""
    path = folder / "prepare.json"
    return read_object(path, "damaged; prepare the data again") if path.is_file() else None


def existing(options: Prepared) -> dict[str, Any] | None:
    """The report of an earlier identical run, None if there is work to do; UserError if DEST holds anything else."""
    dest = options.destination
    try:
        if not dest.exists():
            return None
    except OSError as err:  # a name that is too long, a folder that must not be entered
        raise UserError(f"{str(dest)[:80]}: {err.strerror}") from None
    if Path.cwd() == dest.resolve():
        raise UserError(f"{dest}: is the folder you are in; name another one")
    if not dest.is_dir():
        raise UserError(f"{dest}: exists and is not a folder")
    report = _made_here(dest)
    if report is None:
        if any(dest.iterdir()):
            raise UserError(f"{dest}: exists and was not made by this script; choose another folder")
        return None
    missing = [name for name in report.get("files", []) if not (dest / name).is_file()]
    if report.get("options") == options.fingerprint() and not missing and not options.overwrite:
        return report
    if not options.overwrite:
        raise UserError(f"{dest}: holds data prepared with other options or inputs; give --overwrite to replace it")
    foreign = sorted(set(_files(dest)) - set(report.get("files", [])))
    if foreign:
        raise UserError(f"{dest}: --overwrite would delete {foreign[0]}, which this script did not make; move it away")
    return None


def prepare_once(options: Prepared, make: Callable[[], Report], show: Callable[[Report], None]) -> None:
    """What the preparing scripts do: ``make`` the data and ``show`` the report, unless an identical run has."""
    if existing(options) is not None:
        print(f"{options.destination}: already prepared with these options, nothing to do")
        return
    start = time.time()
    show(make())
    print(f"wrote {options.destination} in {time.time() - start:.1f} s")


@contextlib.contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``destination`` if the block ends well and disappears if not.

    Raises:
        UserError: it cannot be made. CannotWrite: the disk is full, or fails.
    """
    destination = Path(os.path.realpath(destination))  # a link stays one, what it points to is replaced
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # a process of the same number may have been killed here
    folder = destination.with_name(f".{destination.name}.tmp-{own}")
    try:
        folder.mkdir(parents=True)
    except OSError as err:
        raise UserError(f"{destination}: {err.strerror}") from None
    try:
        yield folder
        old = destination.with_name(f".{destination.name}.old-{own}")
        if destination.exists():
            os.rename(destination, old)
        os.rename(folder, destination)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as err:
        if err.errno not in (*DISK, errno.EROFS):
            raise
        raise CannotWrite(err.errno, err.strerror, str(destination)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def package_versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {}
    for package in ("fairseq-efficient", "sentencepiece", "tokenizers", "numpy"):
        with contextlib.suppress(ImportError):
            found[package] = version(package)
    return found


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Complete a report with the names of the folder's files and write it as prepare.json."""
    report = {"format": FORMAT, **report, "files": sorted([*_files(folder), "prepare.json"])}
    (folder / "prepare.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return report
