"""Wheel and source archive: what they hold, and that all systems work from an installed wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fairseq_efficient.systems import PACKAGES
from tests.reliability.systems import MAIN_SYSTEMS
from tests.util import ROOT, run_cli, train_args

BUILD = "import sys; from setuptools.build_meta import build_sdist, build_wheel; build_{}(sys.argv[1])"
KEPT = ("configs/*.yaml", "templates/*", "py.typed", "README.md", "*.py")


def build(kind: str, source: Path, out: Path) -> Path:
    """A wheel or sdist of ``source``, built by what is installed here."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(kind), str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=600)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packaging reads, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("built") / "wheel")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_packages_whole(wheel: Path):
    files = [path for package in PACKAGES for kept in KEPT for path in (ROOT / package).rglob(kept)]
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert names(wheel) == expected
    for package in PACKAGES:
        assert f"{package}/py.typed" in expected, f"{package} has no py.typed"
    assert "fairseq_efficient/report/templates/page.html" in expected and "skimming/configs" in "".join(expected)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    for line in (
        "Name: fairseq-efficient",
        "Requires-Dist: fairseq-fixed==",
        "License: MIT",
        "Requires-Python: >=3.11",
    ):
        assert f"\n{line}" in text
    assert "# fairseq-efficient" in text


def test_the_source_archive_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path):
    archive = build("sdist", source, tmp_path / "sdist")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(unpacked)], check=True)
    (unpacked,) = unpacked.iterdir()
    assert names(build("wheel", unpacked, tmp_path / "again")) == names(wheel)


@pytest.mark.full
def test_every_system_works_from_an_installed_wheel(wheel: Path, datasets: dict[str, Path], tmp_path: Path):
    """No file of the repository is used: not the packages, not the working directory."""
    place, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=600)
    env = {"PYTHONPATH": str(place)}
    folders = {}
    for package in PACKAGES[1:]:
        command = [sys.executable, "-m", package]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=elsewhere, env=env).stdout
        folders[package] = output.strip()
        assert folders[package] == str(place / package)
    for system in MAIN_SYSTEMS:
        for user_dir in (system.user_dir, "efficient_systems"):
            words = train_args(datasets[system.data], tmp_path / f"{system}-{user_dir}", system, "--max-update", "3")
            words[words.index("--user-dir") + 1] = folders[user_dir]
            output = run_cli("train", words, cwd=elsewhere, env=env, fresh=True, timeout=600)
            assert "done training" in output and str(ROOT) not in output.replace(str(Path(sys.prefix)), "")
