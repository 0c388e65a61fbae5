"""What a measurement ran on and from: processor, versions, commit, command. Holds no path and no host name."""

import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fairseq-efficient", "fairseq-fixed", "torch", "numpy", "transformers")


def provenance(argv: Sequence[str], threads: int, device: str = "cpu") -> dict[str, Any]:
    """The head of every file of measured numbers: date, machine, versions, commit, dirty, command."""
    commit, dirty = git_state(ROOT)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(threads, device),
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "command": command_line(argv),
    }


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads used, memory and, with a CUDA device, the GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(device),
    }


def check_device(device: str) -> None:
    """UserError where ``--device cuda`` finds none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here")


def describe(found: dict[str, Any]) -> str:
    """:func:`machine` on one line."""
    text = f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['memory_gb']} GB"
    return f"{found['gpu']}; {text}" if found["gpu"] else text


def cpu_model() -> str:
    """Name as the kernel gives it, with family and model, because virtual machines shorten the name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    name = found.get("model name", platform.machine())
    return f"{name} (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else name


def _gpu(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return str(torch.cuda.get_device_name(torch.device(device)))


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a measurement, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it), or (None, None) outside our git checkout."""
    commit = _git(root, "rev-parse", "HEAD") if (root / "pyproject.toml").exists() else None
    if commit is None:
        return None, None
    # what earlier measurements wrote into the tree is no change of what is measured
    found = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results", ":!pretrained")
    return commit.strip(), bool((found or "").strip())


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def command_line(argv: Sequence[str]) -> str:
    """``argv`` as typed in the repository: paths inside it are relative, of others only the file's name is kept."""
    words = ["python"] if argv and argv[0].endswith(".py") else []
    for word in argv:
        flag, equals, value = word.partition("=")
        path = Path(value if equals else word)
        if path.is_absolute():
            resolved = path.resolve()
            short = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name
            word = f"{flag}={short}" if equals else short
        elif ".." in path.parts:
            word = f"{flag}={path.name}" if equals else path.name
        words.append(f"'{word}'" if re.search(r"[\s;&|()'\"{}*?$]", word) else word)
    return " ".join(words)


def this_command() -> list[str]:
    """``sys.argv``, the script given by its whole path."""
    return [str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
